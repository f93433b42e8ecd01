"""The evaluation as a person meets it: test sets on disk and in a store, tables, files, errors."""

import io
import math

import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
import torch
from running import SHARED, opened, picture

from pipeline import cli
from pipeline.errors import ConfigError
from pipeline.models.srvgg import SRVGGNetCompact, SRVGGShape
from pipeline.storage import Store
from pipeline.training import evaluate, pairs, quality
from pipeline.training.quality import Quality
from pipeline.training.sheet import most_detailed, resize, sheet

SCALE = 2  # of small_model
FIGURES = ("psnr", "ssim", "psnr_y", "ssim_y")


def saved(folder, number=0, width=32, height=24, name=None):
    """A picture in a file; its pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    picture(number, width, height).save(folder / (name or f"{number}.png"))
    return np.asarray(picture(number, width, height))


def a_set(root, targets="GTmod12", inputs="LRbicx2", count=2, suffix=""):
    """Targets of 48 x 36 pixels and inputs of half of it."""
    for number in range(count):
        whole = saved(root / targets, number, 48, 36)
        (root / inputs).mkdir(parents=True, exist_ok=True)
        half = resize(whole, 24, 18)
        PIL.Image.fromarray(half).save(root / inputs / f"{number}{suffix}.png")
    return root


def evaluated(model, *arguments, code=0):
    asked = ["--model", str(model), "--device", "cpu", *map(str, arguments)]
    assert cli.run("evaluate", asked) == code


def rows(file):
    return pyarrow.parquet.read_table(file).to_pylist()


def by_hand(model, given):
    """What the plain network makes of a picture."""
    net = SRVGGNetCompact(SRVGGShape(features=8, convs=2, scale=SCALE)).eval()
    net.load_state_dict(torch.load(model, weights_only=True)["params"])
    x_bchw = torch.from_numpy(given.copy()).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        y_chw = (net(x_bchw)[0].clamp(0, 1) * 255).round().byte()
    return y_chw.permute(1, 2, 0).numpy()


# ------------------------------------------------------------------------------------- results


def test_a_test_set_is_evaluated_as_by_hand(tmp_path, small_model, capsys):
    a_set(tmp_path / "set")
    evaluated(small_model, "--pairs", tmp_path / "set", "--output", tmp_path / "new" / "e.parquet")
    shown = capsys.readouterr().out
    assert str(tmp_path / "set" / "GTmod12") in shown
    assert str(tmp_path / "set" / "LRbicx2") in shown
    table = pyarrow.parquet.read_table(tmp_path / "new" / "e.parquet")
    assert table.schema.equals(evaluate.SCHEMA)
    found = table.to_pylist()
    assert [(row["name"], row["method"]) for row in found] == [
        (name, method) for name in "01" for method in ("model", "bicubic")
    ]
    for row in found:
        target, given = (np.asarray(opened(row[f"{kind}_uri"])) for kind in ("target", "input"))
        bicubic = np.asarray(
            PIL.Image.fromarray(given).resize((48, 36), PIL.Image.Resampling.BICUBIC)
        )
        made = by_hand(small_model, given) if row["method"] == "model" else bicubic
        expected = quality.compare(made, target, border=SCALE)
        for figure in ("psnr", "ssim", "psnr_y", "ssim_y"):
            # The engine may round a sum to the level beside.
            assert row[figure] == pytest.approx(getattr(expected, figure), rel=1e-3)
        assert f"{row['psnr']:.3f} {row['ssim']:7.4f}" in shown
        assert (row["width"], row["height"], row["scale"]) == (48, 36, SCALE)
        assert (row["degrade"], row["seed"], row["precision"]) == (None, None, "fp32")
    means = shown.split("mean")[1].split()
    for column, figure in enumerate(("psnr", "ssim", "psnr_y", "ssim_y")):
        for offset, method in ((1, "model"), (6, "bicubic")):
            figures = [row[figure] for row in found if row["method"] == method]
            assert float(means[offset + column]) == pytest.approx(sum(figures) / 2, abs=6e-4)


def test_inputs_are_made_of_targets_cut_to_the_scale(tmp_path, small_model):
    whole = saved(tmp_path / "images", 3, 49, 37, name="odd.png")
    evaluated(small_model, "--images", tmp_path / "images", "--output", tmp_path / "e.parquet")
    found = rows(tmp_path / "e.parquet")[1]
    target = whole[:36, :48]
    enlarged = resize(resize(target, 24, 18), 48, 36)
    assert found["method"] == "bicubic"
    assert found["psnr"] == quality.psnr(enlarged, target)
    assert (found["width"], found["height"]) == (48, 36)
    assert (found["input_uri"], found["degrade"], found["seed"]) == (None, "bicubic", 0)


def test_inputs_of_the_recipe_repeat_with_their_seed(tmp_path, small_model):
    for number in range(2):  # one content, but each picture has a degradation of its own
        saved(tmp_path / "images", 0, 64, 48, name=f"{number}.png")
    found = {}
    for name, seed in (("first", 5), ("again", 5), ("other", 6)):
        file = tmp_path / f"{name}.parquet"
        flags = ["--degrade", "second_order", "--seed", seed, "--output", file]
        evaluated(small_model, "--images", tmp_path / "images", *flags)
        found[name] = rows(file)
    assert {(row["degrade"], row["seed"]) for row in found["first"]} == {("second_order", 5)}
    assert found["first"] == found["again"]
    figures = {row["psnr"] for name in ("first", "other") for row in found[name]}
    assert len(figures) == 8
    assert max(figures) < 40


def test_equal_pictures_are_infinitely_good(tmp_path, small_model, capsys):
    flat = PIL.Image.new("RGB", (48, 36), (90, 120, 60))
    for folder, size in (("hr", (48, 36)), ("lr", (24, 18))):
        (tmp_path / folder).mkdir()
        flat.resize(size).save(tmp_path / folder / "flat.png")
    evaluated(small_model, "--pairs", tmp_path, "--output", tmp_path / "e.parquet")
    assert "bicubic      inf  1.0000     inf  1.0000" in capsys.readouterr().out
    assert rows(tmp_path / "e.parquet")[1]["psnr_y"] == math.inf


def test_gray_pictures_count_as_three_equal_channels(tmp_path, small_model):
    picture(0, 48, 36).convert("L").save(tmp_path / "gray.png")
    picture(0, 48, 36).convert("L").convert("RGB").save(tmp_path / "same.png")
    evaluated(small_model, "--images", tmp_path, "--output", tmp_path / "e.parquet")
    found = rows(tmp_path / "e.parquet")
    for gray, same in zip(found[:2], found[2:], strict=True):
        assert gray["name"] != same["name"]
        assert [gray[name] for name in ("psnr", "ssim")] == [same[n] for n in ("psnr", "ssim")]


def test_a_set_in_a_store_is_found_and_results_are_left_there(tmp_path, small_model):
    store, bucket = Store(), "memory://evaluated"
    a_set(tmp_path / "set", count=1)
    for file in (tmp_path / "set").rglob("*.png"):
        store.publish(f"{bucket}/set/{file.relative_to(tmp_path / 'set')}", file.read_bytes())
    evaluated(small_model, "--pairs", f"{bucket}/set", "--output", f"{bucket}/e.parquet")
    evaluated(small_model, "--pairs", tmp_path / "set", "--output", tmp_path / "e.parquet")
    stored = rows(io.BytesIO(store.read(f"{bucket}/e.parquet")))
    local = rows(tmp_path / "e.parquet")
    assert stored[0]["target_uri"] == f"{bucket}/set/GTmod12/0.png"
    assert [[row[name] for name in FIGURES] for row in stored] == [
        [row[name] for name in FIGURES] for row in local
    ]


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared data is not here")
def test_a_released_model_beats_bicubic_on_a_photograph(tmp_path, monkeypatch):
    monkeypatch.setenv("REMASTER_MODELS", str(SHARED / "weights"))
    photo = PIL.Image.open(SHARED / "kodak" / "01.png").crop((400, 100, 592, 244))
    photo.save(tmp_path / "crop.png")
    file = tmp_path / "e.parquet"
    evaluated("realesr-animevideov3", "--images", tmp_path, "--output", file)
    model, bicubic = rows(file)
    assert model["scale"] == 4
    assert model["psnr_y"] > bicubic["psnr_y"]
    assert model["ssim_y"] > bicubic["ssim_y"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared data is not here")
@pytest.mark.parametrize(("degrade", "gain"), [("second_order", 0.6), ("bicubic", 0.4)])
def test_the_model_in_the_box_beats_bicubic_on_photographs_it_never_saw(tmp_path, degrade, gain):
    file = tmp_path / "e.parquet"
    asked = ("--images", SHARED / "kodak", "--degrade", degrade, "--output", file)
    evaluated("remaster-compact-x4", *asked)
    model, bicubic = (
        quality.mean([Quality(**{name: row[name] for name in FIGURES}) for row in found])
        for found in (rows(file)[::2], rows(file)[1::2])
    )
    assert model.psnr_y >= bicubic.psnr_y + gain
    assert model.ssim_y > bicubic.ssim_y


# ---------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize(
    ("targets", "inputs", "suffix"),
    [
        ("GTmod12", "LRbicx2", ""),
        ("HR", "LR", "x2"),
        ("gt", "lq", "_x2"),
        ("target", "input", "_X2"),
        ("DIV2K_valid_HR", "DIV2K_valid_LR_bicubic/X2", "x2"),
    ],
)
def test_test_sets_are_found_as_they_are_published(tmp_path, targets, inputs, suffix):
    a_set(tmp_path, targets, inputs, suffix=suffix)
    folders = pairs.in_set(Store(), str(tmp_path), SCALE)
    assert folders == (f"{tmp_path}/{targets}", f"{tmp_path}/{inputs}")
    found = pairs.matched(Store(), *folders, SCALE)
    assert [pair.name for pair in found] == ["0", "1"]
    assert found[1].target == f"{tmp_path}/{targets}/1.png"
    assert found[1].input == f"{tmp_path}/{inputs}/1{suffix}.png"


def test_of_several_inputs_those_of_the_models_scale_are_meant(tmp_path):
    for scale in (2, 3, 4):
        saved(tmp_path / f"LRbicx{scale}")
    saved(tmp_path / "GTmod12")
    saved(tmp_path / "original")
    for scale in (2, 3, 4):
        targets, inputs = pairs.in_set(Store(), str(tmp_path), scale)
        assert (targets, inputs) == (f"{tmp_path}/GTmod12", f"{tmp_path}/LRbicx{scale}")
    with pytest.raises(ConfigError, match=r"3 folders .* inputs of x8.*--inputs.*LRbicx2, LRbicx3"):
        pairs.in_set(Store(), str(tmp_path), 8)


def test_a_name_that_ends_like_a_scale_is_a_name_where_a_target_has_it(tmp_path):
    for folder in ("hr", "lr"):
        saved(tmp_path / folder, name="fox2.png")
        saved(tmp_path / folder, name="owl.png")
    found = pairs.matched(Store(), str(tmp_path / "hr"), str(tmp_path / "lr"), SCALE)
    assert [pair.name for pair in found] == ["fox2", "owl"]


# --------------------------------------------------------------------------------------- errors


def refused(capsys, model, *arguments):
    """The one line that says why nothing was evaluated."""
    evaluated(model, *arguments, code=2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_pictures_that_do_not_fit_are_refused_with_both_sizes(tmp_path, small_model, capsys):
    saved(tmp_path / "hr", 0, 48, 36)
    saved(tmp_path / "lr", 0, 24, 17)
    line = refused(capsys, small_model, "--pairs", tmp_path)
    assert "lr/0.png: 24 x 17 pixels" in line
    assert "x2 makes 48 x 34" in line
    assert "hr/0.png has 48 x 36" in line


def test_what_no_figures_can_be_had_of_is_refused_by_name(tmp_path, small_model, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    line = refused(capsys, small_model, "--images", tmp_path / "broken")
    assert "broken/cut.png: " in line
    (tmp_path / "alpha").mkdir()
    picture(0, 48, 36).convert("RGBA").save(tmp_path / "alpha" / "logo.png")
    line = refused(capsys, small_model, "--images", tmp_path / "alpha")
    assert "alpha/logo.png has an alpha channel" in line
    saved(tmp_path / "tiny", 0, 40, 15)
    line = refused(capsys, small_model, "--images", tmp_path / "tiny")
    assert "40 x 14 pixels, SSIM needs 15 a side" in line


def test_a_broken_picture_is_left_out_of_the_figures_and_counted(tmp_path, small_model, capsys):
    saved(tmp_path / "set", 0, 48, 36, name="good.png")
    (tmp_path / "set" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    file = tmp_path / "e.parquet"
    evaluated(small_model, "--images", tmp_path / "set", "--output", file, code=3)
    assert {row["name"] for row in rows(file)} == {"good"}
    shown = capsys.readouterr().out
    assert "cut.png: " in shown
    assert "1 of 2 pictures are in no figure above" in shown


def test_pictures_without_a_counterpart_are_refused(tmp_path, small_model, capsys):
    a_set(tmp_path, "hr", "lr")
    (tmp_path / "lr" / "1.png").unlink()
    line = refused(capsys, small_model, "--pairs", tmp_path)
    assert "1 pictures in" in line
    assert "have no input of their name, the first is 1" in line
    saved(tmp_path / "lr", name="0x2.png")
    line = refused(capsys, small_model, "--targets", tmp_path / "hr", "--inputs", tmp_path / "lr")
    assert "lr holds two pictures for the target 0" in line
    saved(tmp_path / "twice", name="a.png")
    saved(tmp_path / "twice", name="a.jpg")
    line = refused(capsys, small_model, "--images", tmp_path / "twice")
    assert "two pictures with the name a" in line


def test_folders_that_hold_no_set_are_refused(tmp_path, small_model, capsys):
    assert "no pictures in" in refused(capsys, small_model, "--pairs", tmp_path / "nowhere")
    saved(tmp_path / "set" / "photos")
    line = refused(capsys, small_model, "--pairs", tmp_path / "set")
    assert "--targets and --inputs (found: photos)" in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--targets", "hr"], "--targets and --inputs go together"),
        (["--images", "hr", "--inputs", "lr"], "--targets and --inputs go together"),
        (["--pairs", "set", "--degrade", "bicubic"], "--degrade makes inputs for --images"),
        (["--images", "hr", "--output", "results"], "--output is a file that ends in .parquet"),
        (["--images", "hr", "--sheet", "sheet.jpg"], "--sheet is a file that ends in .png"),
        (["--images", "hr", "--limit", "0"], "--limit 0"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, said, capsys):
    assert said in refused(capsys, "small.pth", *flags)


def test_help_says_how_published_figures_can_be_checked(capsys):
    with pytest.raises(SystemExit) as left:
        cli.run("evaluate", ["--help"])
    assert left.value.code == 0
    assert "28.03 dB and 0.8236" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:  # no pictures
        cli.run("evaluate", [])
    assert left.value.code == 2


# --------------------------------------------------------------------------------------- sheets


def test_the_sheet_shows_the_same_place_of_each_method(tmp_path, small_model):
    target = saved(tmp_path / "images", 5, 300, 200)
    file = tmp_path / "sheet.png"
    evaluated(small_model, "--images", tmp_path / "images", "--sheet", file)
    shown = np.asarray(opened(file))
    enlarged = resize(resize(target, 150, 100), 300, 200)
    place = most_detailed(target, 128)
    for left, expected in ((8, enlarged), (8 + 2 * 264, target)):
        cell = shown[48 : 48 + 256, left : left + 256]
        assert np.array_equal(cell, expected[place].repeat(2, axis=0).repeat(2, axis=1))


def test_a_sheet_has_a_row_a_label_and_crops_of_any_size():
    crops = [np.full((side, 64, 3), side % 256, np.uint8) for side in (64, 30, 300)]
    drawn = PIL.Image.open(io.BytesIO(sheet([("one", crops[:2]), ("two", crops[1:])], "ab")))
    levels = np.asarray(drawn)
    widest = 256
    assert drawn.size == (8 + 2 * (widest + 8), 24 + (24 + 256 + 8) + (24 + 300 + 8))
    assert (levels[48 : 48 + 256, 8 : 8 + 256] == 64).all()
    assert (levels[48 : 48 + 120, 272 : 272 + 256] == 30).all()
    assert (levels[336 : 336 + 300, 272 : 272 + 64] == 300 % 256).all()
    for top in (0, 24, 312):  # headings and labels, black on white
        assert levels[top : top + 24, 8:200].min() < 100
    with pytest.raises(ValueError, match="zip"):
        sheet([("one", crops)], "ab")


def test_the_most_detailed_square_is_where_the_detail_is():
    pixels = np.full((90, 120, 3), 128, np.uint8)
    pixels[40:60, 70:90] = np.random.default_rng(0).integers(0, 256, (20, 20, 1))
    rows, columns = most_detailed(pixels, 32)
    assert rows.start <= 40
    assert rows.stop >= 60
    assert columns.start <= 70
    assert columns.stop >= 90
    assert (rows.stop - rows.start, columns.stop - columns.start) == (32, 32)
    assert most_detailed(pixels, 100) == (slice(0, 90), most_detailed(pixels, 100)[1])
    assert most_detailed(pixels, 200) == (slice(0, 90), slice(0, 120))
