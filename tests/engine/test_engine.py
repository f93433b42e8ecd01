"""Exactness: any way through the engine against the whole picture in one forward pass."""

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import SHAPES, forward, network, noise, padded, whole
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.engine import canvas, sweep
from pipeline.engine.canvas import Packing, Placement
from pipeline.engine.network import Gutter, Network
from pipeline.engine.upscaler import Launch, Upscaler
from pipeline.errors import ConfigError, TooLargeError, UpscaleError
from pipeline.models.rrdbnet import RRDBNetShape
from pipeline.models.srvgg import SRVGGShape

CPU = torch.device("cpu")
some = settings(deadline=None, derandomize=True, max_examples=15)
sides = st.one_of(st.integers(1, 3), st.integers(1, 40))
# Rounding ties: where the sum of the same numbers in another order falls on the other side of a
# half. In levels of 255: 1e-5 of the whole range.
TIE = 0.5 + 255e-5


@pytest.fixture(scope="module")
def networks():
    return {name: network(shape) for name, shape in SHAPES.items()}


def upscaler_of(net, **more):
    return Upscaler(net, device="cpu", precision="fp32", **more)


def engine_of(net):
    graph = net.shape.graph()
    return Network(net, graph, fold=net.shape.multiple, device=CPU, precision="fp32")


def fed(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


@torch.inference_mode()
def run(engine, x_bchw, rows, gutter=None):
    """float32 (H, W, C) in levels of 255."""
    return (torch.cat(list(engine.run(x_bchw, rows, gutter)), dim=2)[0] * 255).permute(1, 2, 0)


# ------------------------------------------------------------------------------------ one picture


@pytest.mark.parametrize("name", SHAPES)
@some
@given(height=st.integers(1, 90), width=sides, rows=st.integers(1, 90))
def test_a_sweep_gives_what_the_whole_picture_gives(networks, name, height, width, rows):
    net = networks[name]
    pixels = padded(noise(height, width, 3), net.shape.multiple)
    got = run(engine_of(net), fed(pixels), rows).numpy()
    wanted = forward(net, pixels)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= 255e-5


@pytest.mark.parametrize("name", SHAPES)
@some
@given(height=sides, width=st.integers(1, 90), scarce=st.integers(1, 8))
def test_any_budget_that_suffices_gives_the_same_picture(networks, name, height, width, scarce):
    net = networks[name]
    pixels = noise(height, width, 3)
    wanted = whole(net, pixels)
    plenty = upscaler_of(net)(pixels).pixels
    assert plenty.shape == wanted.shape
    assert np.abs(plenty - wanted).max() <= TIE
    try:
        little = upscaler_of(net, budget_bytes=scarce * 60_000)(pixels)
    except TooLargeError:
        return
    assert np.abs(little.pixels - wanted).max() <= TIE
    assert little.warnings == ()


@pytest.mark.parametrize("name", ["compact", "rrdb-x2"])
@pytest.mark.parametrize(("channels", "size"), [(3, None), (1, None), (4, (900, 70))])
def test_bands_of_columns_give_the_same_picture(networks, name, channels, size):
    net = networks[name]
    pixels = noise(31, 801, channels)
    graph, fold = net.shape.graph(), net.shape.multiple
    sizes = (4,) * len(graph.levels)
    budget = sweep.peak_bytes(graph, 4, sizes) * 250 // fold
    plan = sweep.fit(graph, height=31, width=801 // fold, sizes=sizes, budget=budget, pixels=6000)
    assert len(plan.bands) > 1
    banded = upscaler_of(net, budget_bytes=budget)(pixels, size).pixels
    assert np.abs(banded.astype(int) - upscaler_of(net)(pixels, size).pixels).max() <= 1
    if channels == 3:
        assert np.abs(banded - whole(net, pixels)).max() <= TIE


def test_a_halo_one_column_too_small_would_be_seen(networks):
    net = networks["compact"]
    pixels, reach = noise(20, 60, 3), net.shape.radius
    wanted = forward(net, pixels)[:, 30 * 4 : 40 * 4]
    good, bad = (
        run(engine_of(net), fed(pixels[:, 30 - halo : 40 + halo].copy()), 8)[:, halo * 4 :][:, :40]
        for halo in (reach, reach - 1)
    )
    assert np.abs(good.numpy() - wanted).max() < 1e-2 < np.abs(bad.numpy() - wanted).max()


# -------------------------------------------------------------------------- many small pictures


def upscale_together(upscaler, pictures, width, height):
    """All pictures through canvases of one size; returns the results and the canvases' packings."""
    split = [upscaler.split(pixels) for pixels in pictures]
    waiting = [plane for planes, _ in split for plane in planes]
    packings = []
    while waiting:
        sizes = [upscaler._folded(plane) for plane in waiting]
        packing = canvas.pack(sizes, width, height)
        planes = tuple(waiting[place.index] for place in packing.placements)
        assert upscaler.run(Launch(planes, packing)) == [()] * len(planes)
        waiting = [plane for plane in waiting if plane not in planes]
        packings.append(packing)
    return [out for _, out in split], packings


@pytest.mark.parametrize("name", SHAPES)
@some
@given(
    sizes=st.lists(st.tuples(sides, sides), min_size=1, max_size=12),
    side=st.integers(40, 70),
    channels=st.integers(1, 4),
    budget=st.sampled_from([None, 2_000_000]),
)
def test_a_canvas_gives_what_each_whole_picture_gives(
    networks, name, sizes, side, channels, budget
):
    net = networks[name]
    upscaler = upscaler_of(net, budget_bytes=budget)
    pictures = [noise(h, w, channels, seed=i) for i, (h, w) in enumerate(sizes)]
    got, _ = upscale_together(upscaler, pictures, side, side)
    for pixels, result in zip(pictures, got, strict=True):
        alone = upscaler_of(net)(pixels).pixels
        np.testing.assert_array_equal(result, alone)
        if channels == 3:
            assert np.abs(result - whole(net, pixels)).max() <= TIE


def run_canvas(net, pictures, packing):
    """Each picture's result off a canvas, in levels of 255, as float."""
    taken = torch.zeros(packing.height, packing.width, dtype=torch.bool)
    x_bchw = torch.zeros(1, 3, packing.height, packing.width, dtype=torch.uint8)
    for place in packing.placements:
        area = (
            slice(place.top, place.top + place.height),
            slice(place.left, place.left + place.width),
        )
        taken[area] = True
        x_bchw[:, :, *area] = fed(pictures[place.index])
    y_hwc, scale = run(engine_of(net), x_bchw, 8, Gutter(taken)).numpy(), net.shape.scale
    return {
        place.index: y_hwc[place.top * scale :, place.left * scale :][
            : place.height * scale, : place.width * scale
        ]
        for place in packing.placements
    }


def worst(net, pictures, packing):
    results = run_canvas(net, pictures, packing)
    return max(np.abs(y - forward(net, pictures[index])).max() for index, y in results.items())


@pytest.mark.parametrize("name", ["compact", "rrdb-x4"])
def test_a_canvas_is_exact_in_floating_point_and_a_lost_gutter_would_be_seen(networks, name):
    net = networks[name]
    pictures = [noise(h, w, 3, seed=h) for h, w in ((9, 12), (14, 12), (5, 20), (30, 7), (1, 1))]
    packing = canvas.pack([(p.shape[1], p.shape[0]) for p in pictures], 40, 40)
    assert len(packing.placements) == 5
    assert worst(net, pictures, packing) <= 255e-5
    left, right = Placement(0, 0, 0, 12, 9), Placement(1, 12, 0, 12, 14)  # no pixel between
    assert worst(net, pictures[:2], Packing(24, 14, (left, right))) > 1


def test_a_gutter_that_is_not_cleared_would_be_seen(networks):
    net = networks["compact"]
    x_bchw = torch.zeros(1, 3, 12, 25, dtype=torch.uint8)
    pictures = [noise(12, 12, 3, seed=seed) for seed in (1, 2)]
    x_bchw[..., :12], x_bchw[..., 13:] = map(fed, pictures)
    taken = torch.ones(12, 25, dtype=torch.bool)
    taken[:, 12] = False
    for gutter, exact in ((Gutter(taken), True), (None, False)):
        y_hwc = run(engine_of(net), x_bchw, 5, gutter).numpy()
        off = np.abs(y_hwc[:, :48] - forward(net, pictures[0])).max()
        assert off < 1e-2 if exact else off > 1


def test_a_picture_that_overflows_spoils_nobody_beside_it():
    net = network(SHAPES["compact"])
    with torch.no_grad():
        next(net.parameters()).mul_(5e4)  # fp16 ends at 65,504: black stays, the rest overflows
        list(net.parameters())[-2].mul_(2e-5)
    upscaler = Upscaler(net, device="cpu", precision="fp16")
    black = np.zeros((9, 9, 3), dtype=np.uint8)
    split = [upscaler.split(pixels) for pixels in (black, noise(9, 9, 3))]
    planes = tuple(plane for parts, _ in split for plane in parts)
    packing = canvas.pack([(9, 9)] * 2, 19, 9)
    assert upscaler.run(Launch(planes, packing)) == [(), ("repeated_in_fp32",)]
    wanted = upscaler_of(net)
    np.testing.assert_array_equal(split[1][1], wanted(noise(9, 9, 3)).pixels)
    assert np.abs(split[0][1].astype(int) - wanted(black).pixels).max() <= 1


@pytest.mark.parametrize("name", SHAPES)
def test_a_batch_of_one_size_gives_what_each_gives_alone(networks, name):
    upscaler = upscaler_of(networks[name])
    pictures = [noise(21, 14, 3, seed=seed) for seed in range(5)]
    split = [upscaler.split(pixels) for pixels in pictures]
    planes = tuple(plane for parts, _ in split for plane in parts)
    assert upscaler.run(Launch(planes)) == [()] * 5
    for pixels, (_, out) in zip(pictures, split, strict=True):
        np.testing.assert_array_equal(out, upscaler(pixels).pixels)


def test_who_shares_a_launch(networks):
    upscaler = upscaler_of(networks["compact"])
    planes = {
        side: [upscaler.split(noise(side, side, 3))[0][0] for _ in range(n)]
        for side, n in ((256, 9), (250, 3), (257, 1))
    }
    assert not upscaler.packable(planes[257][0])
    assert all(upscaler.packable(plane) for plane in planes[256])
    assert upscaler.choose(planes[256]).planes == tuple(planes[256][:8])  # a full batch
    assert upscaler.choose(planes[256]).packing is None
    ragged = upscaler.choose(planes[250] + planes[256][:3])
    assert len(ragged.planes) == len(ragged.packing.placements) == 6
    assert upscaler.choose(planes[256][:1]) == Launch((planes[256][0],))


# --------------------------------------------------------------------------------------- limits


def test_what_does_not_fit_is_an_error_with_both_numbers_and_the_knob():
    shape = SHAPES["rrdb-x4"]
    graph = shape.graph()
    budget = sweep.peak_bytes(graph, 4, (4,) * len(graph.levels)) * 24
    upscaler = Upscaler(network(shape), device="cpu", precision="fp32", budget_bytes=budget)
    assert upscaler(noise(100, 24, 3)).pixels.shape == (400, 96, 3)
    with pytest.raises(TooLargeError, match=r"25 x 100 pixels need .* at 4 rows.*device_bytes"):
        upscaler(noise(100, 25, 3))


class Scarce(TorchDispatchMode):
    """An allocator that gives out above so many bytes a tensor, in the words of the CPU's."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit
        self.refused = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        is_value = isinstance(made, torch.Tensor) and made.dtype == torch.float32
        if is_value and made.untyped_storage().nbytes() > self.limit:
            self.refused += 1
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
        return made


def test_out_of_memory_repeats_the_whole_picture_with_less_and_remembers(networks):
    net = networks["compact"]
    pixels = noise(90, 30, 3)
    upscaler, wanted = upscaler_of(net), whole(net, pixels)
    with Scarce(100_000) as scarce:
        got = upscaler(pixels).pixels
        assert scarce.refused > 0
        assert np.abs(got - wanted).max() <= TIE
        scarce.refused = 0
        upscaler(pixels)
        assert scarce.refused == 0


def test_out_of_memory_at_the_least_is_an_error_of_this_picture_alone(networks):
    upscaler = upscaler_of(networks["compact"])
    with Scarce(1000), pytest.raises(TooLargeError, match=r"30 x 90 pixels ran out .* 4 rows"):
        upscaler(noise(90, 30, 3))
    assert upscaler(noise(90, 30, 3)).pixels.shape == (360, 120, 3)


def test_out_of_memory_on_a_canvas_makes_the_next_ones_smaller(networks):
    upscaler = upscaler_of(networks["compact"])
    planes = [upscaler.split(noise(200, 200, 3))[0][0] for _ in range(20)]
    ragged = [upscaler.split(noise(9, 200, 3))[0][0], *planes]
    before = upscaler.canvas_pixels
    with Scarce(100_000), pytest.raises(TooLargeError):
        upscaler.run(upscaler.choose(ragged))
    assert upscaler.canvas_pixels < before
    assert upscaler.choose(ragged).packing.width < 520


def test_gray_goes_in_as_three_equal_channels_and_comes_out_as_their_mean():
    net = network(SHAPES["compact"])
    gray = noise(12, 9, 1)
    upscaled = Upscaler(net, device="cpu", precision="fp32")(gray).pixels
    wanted = forward(net, np.repeat(gray, 3, axis=2)).mean(axis=2, keepdims=True).clip(0, 255)
    assert upscaled.shape == (48, 36, 1)
    assert np.abs(upscaled - wanted).max() <= TIE


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_a_picture_of_its_own_and_opaque_stays_opaque(channels):
    upscaler = Upscaler(network(SHAPES["compact"]), device="cpu", precision="fp32")
    pixels = noise(12, 9, channels)
    upscaled = upscaler(pixels).pixels
    np.testing.assert_array_equal(upscaled[..., :-1], upscaler(pixels[..., :-1]).pixels)
    np.testing.assert_array_equal(upscaled[..., -1:], upscaler(pixels[..., -1:]).pixels)
    pixels[..., -1] = 255
    assert upscaler(pixels).pixels[..., -1].min() == 255


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("picture", [1, 2, 3, 4])
def test_networks_of_one_and_four_channels_take_every_picture(channels, picture):
    shape = SRVGGShape(in_channels=channels, out_channels=channels, features=8, convs=1, scale=2)
    upscaler = Upscaler(network(shape), device="cpu", precision="fp32")
    assert upscaler(noise(5, 6, picture)).pixels.shape == (10, 12, picture)
    if picture in (2, 4) and channels == 1:
        opaque = noise(5, 6, picture)
        opaque[..., -1] = 255
        assert upscaler(opaque).pixels[..., -1].min() == 255


def test_other_channels_are_refused_with_both_numbers():
    shape = RRDBNetShape(in_channels=1, out_channels=3, features=8, blocks=1, growth=4)
    with pytest.raises(ConfigError, match="1 channels to 3"):
        Upscaler(network(shape), device="cpu", precision="fp32")


def test_the_final_size_is_resized_before_it_is_rounded_to_8_bits():
    net = network(SHAPES["compact"])
    pixels = noise(16, 20, 3)
    upscaled = Upscaler(net, device="cpu", precision="fp32")(pixels, (50, 41)).pixels
    y_chw = torch.from_numpy(forward(net, pixels)).permute(2, 0, 1)
    resized = torch.nn.functional.interpolate(
        y_chw[None], size=(41, 50), mode="bicubic", antialias=True
    )
    wanted = resized[0].permute(1, 2, 0).numpy().clip(0, 255)
    assert upscaled.shape == (41, 50, 3)
    assert np.abs(upscaled - wanted).max() <= 0.51  # torch places its kernel up to 2e-5 off


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_near_and_a_non_finite_result_is_repeated_in_fp32(precision):
    net = network(SHAPES["compact"])
    pixels = noise(16, 16, 3)
    exact_pixels = Upscaler(net, device="cpu", precision="fp32")(pixels).pixels
    near = Upscaler(network(SHAPES["compact"]), device="cpu", precision=precision)(pixels)
    assert np.abs(near.pixels.astype(int) - exact_pixels).mean() < 3
    assert near.warnings == ()
    steep = network(SHAPES["compact"])
    with torch.no_grad():
        next(steep.parameters()).mul_(1e6)
        list(steep.parameters())[-2].mul_(1e-6)
    wanted = Upscaler(steep, device="cpu", precision="fp32")(pixels).pixels
    if precision == "fp16":
        repeated = Upscaler(steep, device="cpu", precision="fp16")(pixels)
        assert repeated.warnings == ("repeated_in_fp32",)
        np.testing.assert_array_equal(repeated.pixels, wanted)


def test_a_result_that_overflows_only_far_below_is_noticed():
    net = network(SHAPES["compact"])
    with torch.no_grad():
        next(net.parameters()).mul_(5e4)  # fp16 ends at 65,504: black stays, the rest overflows
        list(net.parameters())[-2].mul_(2e-5)
    pixels = np.zeros((3000, 20, 3), dtype=np.uint8)
    pixels[-1] = 255
    upscaled = Upscaler(net, device="cpu", precision="fp16")(pixels)
    assert upscaled.warnings == ("repeated_in_fp32",)
    np.testing.assert_array_equal(upscaled.pixels, upscaler_of(net)(pixels).pixels)


def test_bf16_keeps_the_first_and_the_last_convolution_in_fp32():
    """One convolution is both: then nothing is in bf16. With more, the rest is."""
    pixels = noise(16, 16, 3)
    for convs, same in ((0, True), (3, False)):
        net = network(SRVGGShape(features=8, convs=convs, scale=2))
        results = [
            Upscaler(net, device="cpu", precision=name)(pixels).pixels for name in ("fp32", "bf16")
        ]
        assert np.array_equal(*results) == same


def test_what_is_not_finite_in_fp32_is_an_error():
    net = network(SHAPES["compact"])
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    for precision in ("fp32", "fp16"):
        with pytest.raises(UpscaleError, match="NaN") as caught:
            Upscaler(net, device="cpu", precision=precision)(noise(4, 4, 3))
        assert caught.value.code == "non_finite"


def test_rounding_ties_are_rarer_than_one_in_a_hundred_thousand(networks):
    """Ragged pictures as a worker packs them, against the plain network in its two layouts."""
    for name in ("compact", "rrdb-x4"):
        upscaler = upscaler_of(networks[name])
        pictures = [noise(24 + 9 * i, 200 - 8 * i, 3, seed=i) for i in range(20)]
        split = [upscaler.split(pixels) for pixels in pictures]
        waiting = [plane for planes, _ in split for plane in planes]
        while waiting:
            launch = upscaler.choose(waiting)
            assert upscaler.run(launch) == [()] * len(launch.planes)
            waiting = [plane for plane in waiting if plane not in launch.planes]
        for layout in (torch.contiguous_format, torch.channels_last):
            plain = network(SHAPES[name]).to(memory_format=layout)
            off = np.concatenate(
                [
                    np.abs(out - np.rint(whole(plain, pixels))).ravel()
                    for pixels, (_, out) in zip(pictures, split, strict=True)
                ]
            )
            assert off.max() <= 1
            assert np.count_nonzero(off) < 1e-5 * off.size
        assert np.count_nonzero(off) == 0  # in the engine's own layout, not even ties


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that are alive at once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        storage = made.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.now += storage.nbytes()
            weakref.finalize(storage, self.forget, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def forget(self, storage, size):
        self.known.discard(storage)
        self.now -= size


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rows", [4, 16])
def test_a_sweep_holds_what_was_planned_and_little_less(networks, name, precision, rows):
    net = networks[name]
    graph, fold = net.shape.graph(), net.shape.multiple
    engine = Network(net, graph, fold=fold, device=CPU, precision=precision)
    x_bchw = fed(noise(40 * fold, 20 * fold, 3))
    with torch.inference_mode(), Held() as held:
        for _ in engine.run(x_bchw, rows):
            pass
    planned = sweep.peak_bytes(graph, rows, engine.sizes) * 20
    assert held.peak <= planned <= 2.5 * held.peak
