"""The benchmark: that it measures what it says, on real contenders. Nothing here asserts a time."""

import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from running import ROOT, opened, picture, pictures

from pipeline import cli
from pipeline.benchmark import contender, figures
from pipeline.benchmark import pictures as sets
from pipeline.benchmark.figures import Entry, Trial, Work
from pipeline.benchmark.survey import flop_per_pixel
from pipeline.models.rrdbnet import RRDBNet, RRDBNetShape
from pipeline.models.srvgg import SRVGGNetCompact, SRVGGShape

COMPACT = SRVGGShape(features=8, convs=2, scale=2)
DEEP = RRDBNetShape(features=8, growth=4, blocks=1, upsampling=(2, 2), unshuffle=2)
SURVEY = {"flop_per_input_pixel": 1e6, "product_flop_per_s": {"fp32": 1e12, "fp16": 4e12}}


def network(shape):
    torch.manual_seed(0)
    kind = SRVGGNetCompact if isinstance(shape, SRVGGShape) else RRDBNet
    return kind(shape).eval().requires_grad_(requires_grad=False)


def by_hand(net, path):
    """What the network makes of a picture, (H, W, 3) in 0..255."""
    x = torch.from_numpy(np.asarray(opened(path).convert("RGB")).copy()).permute(2, 0, 1)
    return (net(x[None] / 255)[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def trial(process_s, work_s, device_s, peak_bytes=5_000_000):
    work = Work(
        pictures=10,
        input_pixels=10_000_000,
        output_pixels=160_000_000,
        work_s=work_s,
        device_s=device_s,
        peak_bytes=peak_bytes,
    )
    return Trial(work, process_s, 7_000_000)


# -------------------------------------------------------------------------------------- training


def test_a_training_is_measured_in_both_stages(tmp_path, small_model, capsys):
    facts = tmp_path / "facts.json"
    flags = ["--model", str(small_model), "--device", "cpu", "--json", str(facts)]
    flags += ["--count", "2", "--size", "32x32", "--repeats", "1"]
    assert cli.run("benchmark", ["--train", *flags]) == 0
    made = json.loads(facts.read_text())
    assert [row["stage"] for row in made["trainings"]] == ["net", "gan"]
    for row in made["trainings"]:
        assert 0 < row["data_s"] < 100
        assert row["steps_per_s"] == 1 / row["step_s"]
        per_step = 3 * 2 * 16**2 * flop_per_pixel(SRVGGShape(features=8, convs=2, scale=2))
        assert row["flop_per_s"] == pytest.approx(per_step / row["step_s"])
    assert "steps/s (fp32)" in capsys.readouterr().out


# ------------------------------------------------------------------------------- plain and tiles


def test_the_plain_loop_writes_what_the_network_computes(tmp_path, small_model, capsys):
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    picture(0).save(tmp_path / "in" / "a.png")
    picture(1, 17, 23).convert("L").save(tmp_path / "in" / "deeper" / "b.jpg")
    (tmp_path / "in" / ".hidden.png").write_text("left out, as a run does")
    folders = ["--manifest", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    facts = tmp_path / "facts.json"
    flags = ["--plain", *folders, "--device", "cpu", "--json", str(facts)]
    assert cli.run("benchmark", [*flags, "--model", str(small_model)]) == 0
    assert "2 pictures" in capsys.readouterr().out
    net = contender.load(str(small_model))
    for source, result in (("a.png", "a.png"), ("deeper/b.jpg", "deeper/b.png")):
        made = opened(tmp_path / "out" / result)
        assert made.format == "PNG"
        np.testing.assert_array_equal(made, by_hand(net, tmp_path / "in" / source))
    work = Work(**json.loads(facts.read_text()))
    assert work.input_pixels == 32 * 24 + 17 * 23
    assert work.output_pixels == 4 * work.input_pixels
    assert 0 < work.device_s < work.work_s


def test_sides_that_the_network_cannot_take_are_padded_and_cut(tmp_path):
    picture(0, 31, 23).save(tmp_path / "in.png")
    contender.plain(network(DEEP), [tmp_path / "in.png"], [tmp_path / "out.png"], device="cpu")
    made = np.asarray(opened(tmp_path / "out.png"))
    even = np.pad(np.asarray(picture(0, 31, 23)), ((0, 1), (0, 1), (0, 0)), "reflect")
    PIL.Image.fromarray(even).save(tmp_path / "even.png")
    whole = by_hand(network(DEEP), tmp_path / "even.png")
    np.testing.assert_array_equal(made, whole[: 23 * 2, : 31 * 2])


def test_tiles_are_exact_with_the_whole_radius_around_them_and_else_not():
    net, x = network(COMPACT), torch.rand(1, 3, 50, 70)
    whole = net(x)
    exact = contender.in_tiles(net, x, tile=16, pad=COMPACT.radius)
    torch.testing.assert_close(exact, whole, rtol=0, atol=1e-6)
    assert (contender.in_tiles(net, x, tile=16, pad=1) - whole).abs().max() > 1e-3


def test_the_engine_makes_as_many_pixels(tmp_path):
    paths = pictures(tmp_path, 2)
    work = contender.engine(network(COMPACT), paths, device="cpu", precision="fp32")
    assert (work.pictures, work.input_pixels) == (2, 2 * 32 * 24)
    assert work.output_pixels == 4 * work.input_pixels
    assert work.device_s == work.work_s > 0


# --------------------------------------------------------------------------------------- figures


def test_operations_of_a_compact_network_by_hand():
    first, middle, last = 3 * 8, 2 * 8 * 8, 8 * 3 * 2**2
    assert flop_per_pixel(COMPACT) == 2 * 9 * (first + middle + last)


@pytest.mark.parametrize("shape", [COMPACT, DEEP, RRDBNetShape(features=8, blocks=1, plus=True)])
def test_operations_are_those_of_the_network_s_steps(shape):
    weights = dict(network(shape).named_parameters())
    steps = shape.graph().steps
    counted = sum(2 * weights[f"{step.conv}.weight"].numel() * step.level**2 for step in steps)
    assert flop_per_pixel(shape) == counted / shape.multiple**2


def test_figures_are_medians_and_ratios_are_taken_round_by_round():
    plain = Entry("plain", "fp32", [trial(20, 16, 10), trial(40, 36, 30), trial(10, 6, 5)])
    run = Entry("run", "fp16", [trial(5, 4, 2), trial(8, 7, 2), trial(5, 4, 2)], levels=2)
    row = figures.row(run, plain, SURVEY, price_per_hour=3.6)
    assert row["images_per_s"] == 2
    assert row["images_per_s_range"] == [1.25, 2]
    assert row["times_plain"] == 4  # the median of 20 / 5, 40 / 8 and 10 / 5
    assert row["input_megapixels_per_s"] == 2
    assert row["output_megapixels_per_s"] == 32
    assert row["tflop_per_s"] == 2
    assert row["share_of_peak"] == 0.5
    assert row["device_busy_share"] == 0.4
    assert (row["peak_bytes"], row["host_bytes"]) == (5_000_000, 7_000_000)
    assert row["per_million_images"] == pytest.approx(500)
    json.dumps(row)


def test_the_bare_engine_is_compared_with_the_seconds_in_the_network():
    plain = Entry("plain", "fp32", [trial(20, 16, 10)])
    engine = Entry("engine", "fp32", [trial(9, 2, 2, peak_bytes=None)])
    row = figures.row(engine, plain, SURVEY, price_per_hour=None)
    assert (row["images_per_s"], row["times_plain"], row["device_busy_share"]) == (5, 5, 1)
    assert (row["start_s"], row["peak_bytes"], row["per_million_images"]) == (7, None, None)
    assert figures.row(engine, None, SURVEY, price_per_hour=None)["times_plain"] is None


def test_the_table_has_a_line_for_each_and_says_what_failed():
    plain = Entry("plain", "fp32", error="exit code 1, memory")
    engine = Entry("engine", "fp16", [trial(9, 2, 2)])
    rows = [figures.row(entry, plain, SURVEY, price_per_hour=None) for entry in (plain, engine)]
    heading, failed, line = figures.table(rows).splitlines()
    assert failed.split() == ["plain", "fp32", "failed:", "exit", "code", "1,", "memory"]
    assert len(line.split()) == len(figures.COLUMNS)
    assert len(line) == len(heading)


# ------------------------------------------------------------------------------------ the command


def test_drawn_pictures_are_the_same_every_time_and_of_the_size_asked_for(tmp_path):
    for folder in ("one", "two"):
        sets.draw(tmp_path / folder, "1300x30", 2)
    first, second = ([p.read_bytes() for p in sets.found(tmp_path / f)] for f in ("one", "two"))
    assert first == second
    assert first[0] != first[1]
    assert {opened(path).size for path in sets.found(tmp_path / "one")} == {(1300, 30)}
    sets.draw(tmp_path / "ragged", "8..64", 20)
    sizes = {opened(path).size for path in sets.found(tmp_path / "ragged")}
    assert len(sizes) > 10
    assert all(8 <= side <= 64 for size in sizes for side in size)


def test_the_largest_difference_is_found(tmp_path):
    for name, level in (("a", 100), ("b", 103)):
        (tmp_path / name).mkdir()
        pixels = np.full((4, 6, 3), 100, np.uint8)
        pixels[2, 3, 1] = level
        PIL.Image.fromarray(pixels).save(tmp_path / name / "p.png")
    assert sets.largest_difference(tmp_path / "a", tmp_path / "b") == 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--size", "768"], "--size"),
        (["--size", "64..8"], "--size"),
        (["--size", "0x8"], "--size"),
        (["--count", "0"], "--count"),
        (["--price-per-hour", "nan"], "--price-per-hour"),
        (["--device", "tpu"], "--device"),
        (["--contenders", "plane"], "--contenders"),
        (["--sise", "1x1"], "--sise"),
        (["--plain"], "--manifest"),
        (["--plain", "--manifest", str(ROOT)], "--output"),
        (["--pictures", str(ROOT / "nowhere")], "nowhere"),
        (["--json", str(ROOT / "nowhere" / "made.json")], "--json"),
        (["--plain", "--manifest", str(ROOT / "jobs"), "--output", "x"], "no pictures"),
        (["--only", "survey", "--device", "cpu", "--model", "no-such-model"], "no-such-model"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(flags, said, capsys):
    assert cli.run("benchmark", flags) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_two_pictures_with_one_result_are_refused(tmp_path, small_model, capsys):
    picture(0).save(tmp_path / "a.png")
    picture(0).save(tmp_path / "a.jpg")
    folders = ["--manifest", str(tmp_path), "--output", str(tmp_path / "out")]
    assert cli.run("benchmark", ["--plain", *folders, "--model", str(small_model)]) == 2
    assert "suffixes" in capsys.readouterr().err


def test_all_contenders_on_the_same_pictures(runs):
    pictures(runs.folder / "in", 2)
    command = [sys.executable, ROOT / "jobs" / "benchmark.py", "--pictures", "in"]
    command += ["--model", runs.model, "--device", "cpu", "--repeats", "1"]
    command += ["--price-per-hour", "1", "--output", "scratch", "--json", "made.json"]
    options = {"env": runs.env(), "cwd": runs.folder, "capture_output": True, "text": True}
    ended = subprocess.run([*map(str, command)], **options)
    assert ended.returncode == 0, ended.stderr
    made = json.loads((runs.folder / "made.json").read_text())
    assert made["survey"]["product_flop_per_s"]["fp32"] > 0
    rows = {row["contender"]: row for row in made["rows"]}
    assert list(rows) == ["plain", "tiles", "engine", "run"]
    for name, row in rows.items():
        assert (row["error"], row["pictures"], row["pictures_of"]) == (None, 2, "in")
        assert row["images_per_s"] > 0
        assert row["per_million_images"] > 0
        assert row["host_bytes"] > 50e6
        assert 0 < row["device_busy_share"] <= 1
        assert row["output_megapixels_per_s"] == pytest.approx(4 * row["input_megapixels_per_s"])
        assert f"\n{name} " in ended.stdout
    assert rows["tiles"]["largest_difference"] == 0, "pictures of a single tile"
    assert rows["run"]["largest_difference"] <= 1
    assert list((runs.folder / "scratch").iterdir()) == []


def test_a_contender_that_fails_is_a_row(tmp_path, small_model, capsys):
    (tmp_path / "broken.png").write_text("no picture")
    flags = ["--pictures", str(tmp_path), "--contenders", "plain", "--device", "cpu"]
    flags += ["--model", str(small_model), "--json", str(tmp_path / "made.json")]
    assert cli.run("benchmark", flags) == 3
    (row,) = json.loads((tmp_path / "made.json").read_text())["rows"]
    assert "cannot identify image" in row["error"]
    shown = capsys.readouterr()
    assert "failed: exit code 1" in shown.out
    assert "round 2" not in shown.err
