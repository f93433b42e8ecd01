"""Crops are true parts of their pictures, and the same whoever cuts them."""

import itertools
import threading
from contextlib import closing
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, FatalError
from pipeline.storage import Store
from pipeline.training.config import TrainConfig
from pipeline.training.crops import Reader
from pipeline.training.pictures import find

SIDE = 16
exact = settings(deadline=None, derandomize=True, max_examples=20)
AS_IS = {"scales": [1], "shortest": None, "hflip": 0}


def coordinates(number, height, width):
    """A picture whose pixels say where they are: row, column, and the picture's number."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, number)], 2).astype(np.uint8)


def save(folder, sizes):
    """Pictures of these heights and widths, numbered in the order in which they are found."""
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        PIL.Image.fromarray(coordinates(number, *size)).save(folder / f"{number:03d}.png")
    return folder


def configured(folder, *, crops=AS_IS, workers=None, **values):
    asked = {
        "images": str(folder),
        "output": "/elsewhere",
        "crops": {"side": SIDE, "target": SIDE, **crops},
        "workers": {"readers": 1, **(workers or {})},
        "pool": 0,
        **values,
    }
    return TrainConfig.load(None, asked)


def reader_of(config, store=None, scale=4):
    return Reader(find(config), config, store or Store(), scale=scale)


def lanes_of(config, steps):
    """All crops of so many steps, in order: (steps x batch, side, side, 3)."""
    with closing(reader_of(config).ahead(range(steps), range(config.lanes))) as ahead:
        return np.concatenate([crops.targets for crops in ahead])


def threads():
    """Of a reader."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("pictures")]


def numbers_of(targets):
    """Which picture each crop is of."""
    assert (targets[..., 2] == targets[:, :1, :1, 2]).all()
    return targets[:, 0, 0, 2].tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.default_rng(0)
    sizes = [tuple(map(int, rng.integers(20, 90, 2))) for _ in range(7)]
    return save(tmp_path_factory.mktemp("folder"), sizes)


# ------------------------------------------------------------------------- the same for everybody


@exact
@given(
    readers=st.integers(1, 8),
    cache_bytes=st.sampled_from([0, 20_000, 2**30]),
    lane=st.sampled_from([1, 2, 3, 6]),
    seed=st.integers(0, 2**40),
)
def test_threads_cache_and_lanes_change_nothing(folder, readers, cache_bytes, lane, seed):
    values = {"batch": 6, "seed": seed, "crops": {"shortest": 18, "transpose": 0.5}}
    config = configured(folder, lane=6, workers={"cache_bytes": 0}, **values)
    workers = {"readers": readers, "cache_bytes": cache_bytes}
    other = configured(folder, lane=lane, workers=workers, **values)
    np.testing.assert_array_equal(lanes_of(other, 3), lanes_of(config, 3))


@exact
@given(workers=st.sampled_from([1, 2, 3]), start=st.integers(0, 20))
def test_workers_that_share_the_lanes_take_the_same_crops(folder, workers, start):
    config = configured(folder, batch=6, lane=1)
    steps, count = range(start, start + 2), config.lanes
    alone = reader_of(config)
    expected = {(step, lane): alone.crops(step, lane) for step in steps for lane in range(count)}
    for rank in range(workers):
        lanes = range(rank, count, workers)
        with closing(reader_of(config).ahead(steps, lanes)) as ahead:
            for place, crops in zip(itertools.product(steps, lanes), ahead, strict=True):
                np.testing.assert_array_equal(crops.targets, expected[place].targets)


def test_another_seed_takes_other_crops(folder):
    first, second = (lanes_of(configured(folder, batch=7, lane=7, seed=seed), 2) for seed in (0, 1))
    assert numbers_of(first) != numbers_of(second)
    assert (first != second).any()


@exact
@given(count=st.integers(1, 9), batch=st.integers(1, 5), epochs=st.integers(1, 3))
def test_an_epoch_takes_every_picture_once(tmp_path_factory, count, batch, epochs):
    config = configured(
        save(tmp_path_factory.mktemp("all"), [(SIDE, SIDE)] * count), batch=batch, lane=batch
    )
    steps = -(-count * epochs // batch)
    taken = numbers_of(lanes_of(config, steps))
    for epoch in range(epochs):
        assert sorted(taken[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_differ_in_their_order(folder):
    taken = numbers_of(lanes_of(configured(folder, batch=7, lane=7), 20))
    assert len({tuple(taken[start : start + 7]) for start in range(0, 140, 7)}) > 15


# -------------------------------------------------------------------------- parts of the pictures


def mirrored(start, length):
    """Indices from `start` on that go back and forth without repeating the ends."""
    period = max(1, 2 * (length - 1))
    index = (start + np.arange(SIDE)) % period
    return np.minimum(index, period - index)


@exact
@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    hflip=st.booleans(),
    vflip=st.booleans(),
    transpose=st.booleans(),
)
def test_crops_are_windows_of_their_picture(tmp_path_factory, sizes, hflip, vflip, transpose):
    folder = save(tmp_path_factory.mktemp("windows"), sizes)
    turns = {"hflip": float(hflip), "vflip": float(vflip), "transpose": float(transpose)}
    config = configured(folder, crops=AS_IS | turns, batch=8, lane=8)
    targets = lanes_of(config, 1)
    for number, crop in zip(numbers_of(targets), targets, strict=True):
        crop = crop.swapaxes(0, 1) if transpose else crop
        crop = crop[::-1] if vflip else crop
        crop = crop[:, ::-1] if hflip else crop
        height, width = sizes[number]
        top, left = map(int, crop[0, 0, :2])
        assert top == 0 or top + SIDE <= height
        assert left == 0 or left + SIDE <= width
        expected = coordinates(number, height, width)
        rows, columns = mirrored(top, height), mirrored(left, width)
        np.testing.assert_array_equal(crop, expected[rows][:, columns])


def test_every_place_of_a_picture_is_equally_likely(tmp_path):
    config = configured(save(tmp_path / "one", [(SIDE + 3, SIDE + 1)]), batch=50, lane=50)
    corners = lanes_of(config, 32)[:, 0, 0, :2].astype(int)
    counts = np.bincount(corners[:, 0] * 2 + corners[:, 1], minlength=8)
    assert counts.sum() == 1600
    assert 150 < counts.min() <= counts.max() < 250  # 200 each, deviation 13


def test_turns_have_their_probabilities(tmp_path):
    folder = save(tmp_path / "one", [(SIDE, SIDE)])
    turns = {"hflip": 0.5, "vflip": 0.25, "transpose": 0.1}
    targets = lanes_of(configured(folder, crops=AS_IS | turns, batch=50, lane=50), 40).astype(int)
    down, across = targets[:, -1, 0] - targets[:, 0, 0], targets[:, 0, -1] - targets[:, 0, 0]
    transposed = down[:, 0] == 0
    columns = np.where(transposed, down[:, 1], across[:, 1])
    rows = np.where(transposed, across[:, 0], down[:, 0])
    shares = [(columns < 0).mean(), (rows < 0).mean(), transposed.mean()]
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.1], atol=0.035)


def test_scales_and_the_shortest_side_are_equally_likely(tmp_path):
    folder = save(tmp_path / "one", [(240, 200)])
    crops = {"scales": [1, 0.5, 0.25], "shortest": 80, "hflip": 0}
    targets = lanes_of(configured(folder, crops=crops, batch=50, lane=50), 20).astype(float)
    inner = targets[:, 4:-4, 4:-4, 1]  # near an edge of the picture the filter has less to read
    slopes = np.diff(inner, axis=2).mean((1, 2))
    wanted = np.array([1, 2, 2.5, 4])  # columns of the picture to one of the crop; 200 / 80 = 2.5
    distances = np.abs(slopes[:, None] - wanted)
    assert distances.min(1).max() < 0.2
    shares = np.bincount(distances.argmin(1), minlength=4) / len(slopes)
    np.testing.assert_allclose(shares, 0.25, atol=0.05)


def test_pictures_that_are_no_larger_have_no_shortest_side_to_be_reduced_to(tmp_path):
    config = configured(save(tmp_path / "one", [(50, 60)]), batch=20, lane=20)
    config = config.model_copy(update={"crops": config.crops.model_copy(update={"shortest": 50})})
    steps = np.diff(lanes_of(config, 1)[..., 1].astype(int), axis=2)
    assert (steps == 1).all()


# ------------------------------------------------------------------------------------------ pairs


@exact
@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3),
    scale=st.sampled_from([1, 2, 4]),
    turns=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_pairs_are_cut_at_the_same_place(tmp_path_factory, sizes, scale, turns):
    folder = tmp_path_factory.mktemp("pairs")
    low = save(folder / "low", sizes)
    (folder / "high").mkdir()
    for file in low.iterdir():
        enlarged = np.asarray(PIL.Image.open(file)).repeat(scale, 0).repeat(scale, 1)
        PIL.Image.fromarray(enlarged).save(folder / "high" / file.name)
    chances = dict(zip(("hflip", "vflip", "transpose"), map(float, turns), strict=True))
    crops = {"side": 48, "shortest": 20, **chances}  # neither degraded nor reduced
    config = configured(folder / "high", crops=crops, pairs=str(low), batch=6, lane=6)
    taken = reader_of(config, scale=scale).crops(0, 0)
    assert taken.targets.shape == (6, SIDE, SIDE, 3)
    assert taken.inputs.shape == (6, SIDE // scale, SIDE // scale, 3)
    np.testing.assert_array_equal(taken.inputs.repeat(scale, 1).repeat(scale, 2), taken.targets)


def test_pairs_of_another_scale_are_skipped(tmp_path):
    low = save(tmp_path / "low", [(10, 10), (10, 11)])
    high = save(tmp_path / "high", [(40, 40), (40, 40)])
    reader = reader_of(configured(high, pairs=str(low), batch=4, lane=4))
    assert numbers_of(reader.crops(0, 0).targets) == [0] * 4
    message = "40 x 40 pixels, its input 11 x 10: not 4 times as large"
    assert reader.skipped == {str(high / "001.png"): message}


def test_a_broken_input_is_skipped_by_its_own_name(tmp_path):
    low = save(tmp_path / "low", [(10, 10), (10, 10)])
    high = save(tmp_path / "high", [(40, 40), (40, 40)])
    (low / "000.png").write_bytes(b"no picture")
    reader = reader_of(configured(high, pairs=str(low), batch=4, lane=4))
    assert numbers_of(reader.crops(0, 0).targets) == [1] * 4
    assert list(reader.skipped) == [str(low / "000.png")]


def test_crops_of_pairs_must_fit_the_scale(tmp_path):
    high, low = save(tmp_path / "high", [(40, 40)]), save(tmp_path / "low", [(10, 10)])
    with pytest.raises(ConfigError, match=r"crops\.target 16 is no multiple of the scale 3"):
        reader_of(configured(high, pairs=str(low), batch=1, lane=1), scale=3)


# --------------------------------------------------------------------------------------- skipping


@exact
@given(broken=st.sets(st.integers(0, 6), max_size=6), seed=st.integers(0, 99))
def test_the_next_of_the_epoch_stands_in_for_what_cannot_be_used(tmp_path_factory, broken, seed):
    folder = save(tmp_path_factory.mktemp("broken"), [(SIDE, SIDE)] * 7)
    config = configured(folder, batch=7, lane=7, seed=seed, workers={"readers": 3})
    order = numbers_of(lanes_of(config, 1))
    pictures, reader = find(config), reader_of(config)
    for number in broken:
        (folder / f"{number:03d}.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    expected = [
        next(one for one in order[turn:] + order[:turn] if one not in broken) for turn in range(7)
    ]
    with closing(reader.ahead([0], [0])) as ahead:
        assert numbers_of(next(ahead).targets) == expected
    assert set(reader.skipped) == {pictures.targets[number].uri for number in broken}


def test_a_picture_that_comes_back_is_used_again(tmp_path):
    folder = save(tmp_path / "two", [(SIDE, SIDE)] * 2)
    reader = reader_of(configured(folder, batch=2, lane=2))
    away = (folder / "000.png").rename(tmp_path / "away.png")
    assert numbers_of(reader.crops(0, 0).targets) == [1, 1]
    away.rename(folder / "000.png")
    assert sorted(numbers_of(reader.crops(1, 0).targets)) == [0, 1]
    assert "no such file" in reader.skipped[str(folder / "000.png")].lower()


@pytest.mark.parametrize("ahead", [False, True])
def test_without_any_usable_picture_the_training_cannot_go_on(tmp_path, ahead):
    folder = save(tmp_path / "none", [(SIDE, SIDE)] * 3)
    for file in folder.iterdir():
        file.write_bytes(b"")
    reader = reader_of(configured(folder, batch=2, lane=1))
    said = r"3 pictures in a row, of 3, cannot be used .*/00\d\.png: the file is empty \(0 bytes\)"
    with pytest.raises(FatalError, match=said):
        next(reader.ahead([0], [0])) if ahead else reader.crops(0, 0)
    assert threads() == []


def test_hundred_unusable_pictures_in_a_row_stand_for_all(tmp_path):
    folder = save(tmp_path / "one", [(SIDE, SIDE)])
    config = configured(folder, batch=1, lane=1)
    one = find(config).targets[0]
    many = tuple(replace(one, uri=f"/nowhere/{number}.png") for number in range(5000))
    reader = Reader(replace(find(config), targets=many), config, Store(), scale=4)
    with pytest.raises(FatalError, match="100 pictures in a row, of 5000"):
        reader.crops(0, 0)
    assert len(reader.skipped) == 100


# ------------------------------------------------------------------------------- cache and threads


class CountingStore(Store):
    """Knows what was read, in which threads."""

    def __init__(self):
        super().__init__()
        self.read_uris = list[str]()
        self.threads = set[str]()

    def read(self, uri, **options):
        self.read_uris.append(uri)
        self.threads.add(threading.current_thread().name)
        return super().read(uri, **options)


def test_pictures_are_kept_up_to_the_bytes_allowed(tmp_path):
    folder = save(tmp_path / "four", [(30, 30)] * 4)
    reads = []
    for cache_bytes in (0, 3 * 30 * 30 * 4 - 1, 3 * 30 * 30 * 4):
        config = configured(folder, batch=4, lane=4, workers={"cache_bytes": cache_bytes})
        reader = reader_of(config, store := CountingStore())
        for step in range(5):
            reader.crops(step, 0)
        reads.append(len(store.read_uris))
    assert reads[0] == 20
    assert 4 < reads[1] < 20
    assert reads[2] == 4


def test_a_picture_larger_than_the_cache_does_not_empty_it(tmp_path):
    folder = save(tmp_path / "two", [(30, 30), (90, 90)])
    config = configured(folder, batch=2, lane=2, workers={"cache_bytes": 3 * 30 * 30})
    reader = reader_of(config, store := CountingStore())
    for step in range(3):
        reader.crops(step, 0)
    assert sorted(store.read_uris) == [str(folder / "000.png")] + [str(folder / "001.png")] * 3


def test_closing_ends_the_threads_and_what_was_read_ahead_is_bounded(folder):
    workers = {"readers": 3, "cache_bytes": 0}
    config = configured(folder, batch=2, lane=2, workers=workers)
    reader = reader_of(config, store := CountingStore())
    ahead = reader.ahead(itertools.count(), range(1))
    assert threads() == []
    taken = [next(ahead) for _ in range(5)]
    assert 1 <= len(threads()) <= 3
    ahead.close()
    assert threads() == []
    assert all(name.startswith("pictures") for name in store.threads)
    assert 10 <= len(store.read_uris) <= 2 * (len(taken) + 3)
