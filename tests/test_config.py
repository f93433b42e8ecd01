"""Flags win over the file, the file over the default; whatever is wrong is one clear sentence."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config
from pipeline.config import UpscaleConfig
from pipeline.errors import ConfigError
from pipeline.report.config import ReportConfig
from pipeline.settings import Section
from pipeline.training.config import TrainConfig

REQUIRED = ["--manifest", "in", "--output", "out"]
ROOT = Path(__file__).resolve().parent.parent


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("manifest: in\noutput: out\nscale: 3\nencode: {jpeg_quality: 80}\nlimit: 7\n")
    asked = UpscaleConfig.parse(
        ["--config", str(file), "--scale", "2.5", "--encode.png-effort", "max"]
    )
    assert (asked.scale, asked.limit) == (2.5, 7)
    assert (asked.encode.jpeg_quality, asked.encode.png_effort) == (80, "max")
    assert asked.encode.webp_quality == config.Encode().webp_quality


@pytest.mark.parametrize("spelling", ["--dry-run", "--dry_run"])
def test_flags_take_hyphens_and_underscores(spelling):
    assert UpscaleConfig.parse([*REQUIRED, spelling]).dry_run


def test_words_and_booleans_of_the_command_line_are_what_they_say():
    asked = UpscaleConfig.parse(
        [*REQUIRED, "--carry", "none", "--storage.source.options", "anon=false"]
    )
    assert asked.carry == "none"
    assert asked.storage.source.options == {"anon": False}
    assert UpscaleConfig.parse([*REQUIRED, "--carry", "none,all"]).carry == ["none", "all"]


def test_values_keep_their_underscores():
    asked = UpscaleConfig.parse(
        [*REQUIRED, "--columns", "uri=my_uri", "--storage.source.profile=a_b"]
    )
    assert asked.columns == {"uri": "my_uri"}
    assert asked.storage.source.profile == "a_b"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ["manifest is required", "output is required"]),
        ([*REQUIRED, "--outptu", "x"], ["--outptu"]),
        ([*REQUIRED, "--precision", "fp99"], ["precision", "fp99", "bf16"]),
        ([*REQUIRED, "--scale", "2", "--long-side", "3000"], ["scale (2)", "long_side (3000)"]),
        ([*REQUIRED, "--encode.jpeg-quality", "0"], ["encode.jpeg_quality", "1", "'0'"]),
        ([*REQUIRED, "--config", "/nowhere.yaml"], ["/nowhere.yaml"]),
    ],
)
def test_what_is_wrong_is_said_with_its_key_and_value(arguments, said):
    with pytest.raises(ConfigError) as caught:
        UpscaleConfig.parse(arguments)
    assert all(part in str(caught.value) for part in said)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_of_a_file_is_answered_with_the_nearest(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("manifest: in\noutput: out\nencode: {jpeg_qualty: 80}\n")
    with pytest.raises(ConfigError, match=r"'encode.jpeg_qualty', did you mean 'encode.jpeg_qual"):
        UpscaleConfig.load(str(file), {})


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit) as left:
        UpscaleConfig.parse(["--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0
    keys = [key for key in _keys(UpscaleConfig) if not key.endswith("storage.report")]
    assert [key for key in keys if f"--{key.replace('_', '-')}" not in shown] == []


@pytest.mark.parametrize(
    ("kind", "name", "required"),
    [
        (UpscaleConfig, "reference.yaml", ("manifest", "output")),
        (TrainConfig, "train/reference.yaml", ("images", "output")),
        (ReportConfig, "report/reference.yaml", ("output",)),
    ],
)
def test_the_reference_holds_every_key_with_its_default(kind, name, required):
    file = ROOT / "configs" / name
    assert file.read_text() == kind.reference(), "run `make reference`"
    values = yaml.safe_load(file.read_text())
    asked = dict.fromkeys(required, "")
    defaults = kind(**asked).model_dump(mode="json")
    del defaults["config"]
    assert {**values, **asked} == defaults


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "upscale").glob("*.yaml")), ids=str)
def test_every_shipped_configuration_loads(file):
    assert UpscaleConfig.load(str(file), {"manifest": "in", "output": "out"}).manifest == "in"


def test_a_setting_of_the_second_round_leaves_its_others_alone():
    blur = {"second": {"blur": {"sinc": 0.2}}}
    asked = TrainConfig.load(None, TRAINING | {"degradation": blur}).degradation.second
    assert (asked.blur.sinc, asked.blur.sigma, asked.blur.probability) == (0.2, (0.2, 1.5), 0.8)
    assert (asked.resize.factors, asked.noise.sigma) == ((0.3, 1.2), (1, 25))


TRAINING = {"images": "in", "output": "out"}


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "train").glob("*.yaml")), ids=str)
def test_every_shipped_training_loads(file):
    assert TrainConfig.load(str(file), TRAINING).images == "in"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch": 10}, "batch 10 is no multiple of lane 12"),
        ({"workers": {"count": 3}}, "4 lanes .* evenly by 3 workers"),
        ({"pool": 100}, "pool 100 is no multiple of lane 12"),
        ({"crops": {"side": 100}}, "crops.target 256 is larger than crops.side 100"),
        ({"crops": {"scales": [2]}}, "crops.scales.0: .*less than or equal to 1"),
        ({"deadline": "5"}, "a duration is a number above 0 with s, m"),
        ({"degradation": {"first": {"jpeg_quality": [95, 30]}}}, "least value 95 is above"),
        ({"degradation": {"first": {"blur": {"sizes": [8, 21]}}}}, "8 to 21 are not odd"),
        ({"degradation": {"second": {"blur": {"kinds": {"iso": 0.4}}}}}, "sum is 0.4, not 1"),
        ({"degradation": {"second": {"resize": {"factors": [2, 3]}}}}, "have 1 between them"),
    ],
)
def test_trainings_that_cannot_be_are_refused_with_the_numbers(values, words):
    with pytest.raises(ConfigError, match=words):
        TrainConfig.load(None, TRAINING | values)


@pytest.mark.parametrize("written", ["off", "'off'"])
def test_off_is_off_however_yaml_reads_it(tmp_path, written):
    file = tmp_path / "train.yaml"
    file.write_text(f"losses: {{perceptual: {written}}}\n")
    assert TrainConfig.load(str(file), TRAINING).losses.perceptual == "off"


def test_a_training_recipe_says_what_was_done_and_not_where():
    places = {
        "images": "/home/me/photos",
        "output": "s3://mine/out",
        "start": "/home/me/first.pth",
        "losses": {"vgg19": "/home/me/vgg19.pth", "gan": 0.2},
        "validation": {"images": "/home/me/kept"},
        "storage": {"output": {"endpoint": "http://mine:9000"}},
        "workers": {"count": 2},
    }
    recipe = TrainConfig.load(None, places).recipe()
    assert "mine" not in recipe
    assert "/home/me" not in recipe
    said = yaml.safe_load(recipe)
    assert (said["start"], said["losses"]["gan"], said["batch"]) == ("first.pth", 0.2, 48)
    assert recipe == TrainConfig.load(None, {**places, "images": "elsewhere"}).recipe()


def test_saved_configurations_hold_no_secret():
    options = {"key": "AKIA", "secret": "geheim", "token": "geheim", "anon": False}
    side = {"options": options, "endpoint": "http://store"}
    asked = UpscaleConfig.load(None, {"manifest": "a", "output": "b", "storage": {"output": side}})
    saved = asked.to_yaml()
    deep = {
        "client_kwargs": {"aws_secret_access_key": "geheim"},
        "headers": {"Authorization": "geheim"},
    }
    side["endpoint"] = "http://someone:geheim@store"
    values = {"manifest": "https://h/m.csv?X-Amz-Signature=geheim", "output": "b"}
    values["storage"] = {"source": {**side, "options": deep}}
    assert "geheim" not in UpscaleConfig.load(None, values).to_yaml()
    assert "geheim" not in saved
    assert "AKIA" not in saved
    assert "http://store" in saved


def test_the_recipe_holds_what_changes_the_result_and_no_default():
    def made(**values):
        asked = UpscaleConfig.load(None, {"manifest": "a", "output": "b", **values})
        return config.recipe(asked, model_sha256="ab", model_scale=4, precision="fp32")

    plain = made()
    assert plain == {"version": 2, "model": "ab", "precision": "fp32"}
    assert made(scale=4) == made(workers={"in_flight": 2}, limit=3) == plain
    assert made(scale=2)["scale"] == 2
    assert made(encode={"jpeg_quality": 80})["encode"] == {"jpeg_quality": 80}
    assert made(format="jpeg") != plain
    assert made(long_side=3000)["long_side"] == 3000
    asked = UpscaleConfig.load(None, {"manifest": "a", "output": "b"})
    stated = {"architecture": "SRVGGNetCompact", "activation": "relu"}
    other = config.recipe(asked, model_sha256="ab", model_scale=4, precision="fp32", stated=stated)
    assert other == plain | {"stated": stated}


@settings(deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from("abcdef"), st.integers() | st.text(), min_size=1))
def test_a_digest_depends_on_the_recipe_and_not_on_its_order(recipe):
    backwards = dict(reversed(list(recipe.items())))
    assert config.digest(recipe) == config.digest(backwards)
    assert config.digest(recipe) != config.digest({**recipe, "z": 1})


def _keys(section, prefix=""):
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _keys(inner, f"{prefix}{name}.")
        else:
            yield prefix + name
