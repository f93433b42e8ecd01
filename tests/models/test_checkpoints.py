"""Every layout loads to the same network as its plain form; nothing in a file is run; broken
files are refused with one kind of error."""

import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models import checkpoints, formats, layouts
from pipeline.models.checkpoints import Checkpoint
from pipeline.models.rrdbnet import RRDBNet, RRDBNetShape
from pipeline.models.srvgg import SRVGGNetCompact, SRVGGShape
from pipeline.models.zoo import ZOO

OFFICIAL = Path(__file__).parents[3] / "shared/data/weights/realesr-animevideov3.pth"

Weights = dict[str, Tensor]

PLAIN = RRDBNetShape(features=8, blocks=2, growth=4)
PLUS = RRDBNetShape(features=8, blocks=2, growth=4, plus=True)
COMPACT = SRVGGShape(features=8, convs=2)


def weights(shape: layouts.Shape, seed: int = 0) -> Weights:
    torch.manual_seed(seed)
    network = RRDBNet(shape) if isinstance(shape, RRDBNetShape) else SRVGGNetCompact(shape)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def saved(content: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def legacy(content: object) -> bytes:
    return saved(content, _use_new_zipfile_serialization=False)


def outputs(checkpoint: Checkpoint) -> Tensor:
    x = torch.rand(
        1, checkpoint.shape.in_channels, 8, 4, generator=torch.Generator().manual_seed(1)
    )
    return checkpoints.build(checkpoint)(x)


def assert_same(found: Checkpoint, shape: layouts.Shape, wanted: Weights) -> None:
    """The same network, weight by weight and in what it computes."""
    assert found.shape == shape
    assert found.state_dict.keys() == wanted.keys()
    assert all(torch.equal(found.state_dict[name], wanted[name]) for name in wanted)
    plain = replace(found, shape=shape, state_dict=wanted)
    assert torch.equal(outputs(found), outputs(plain))


# ------------------------------------------------- the layouts, written down from their sources


def esrgan(plain: Weights, shape: RRDBNetShape) -> Weights:
    """The names of ESRGAN's second code, of BSRGAN and RealSR."""
    renamed = {}
    for name, tensor in plain.items():
        if name.startswith("body."):
            name = "RRDB_trunk." + name.removeprefix("body.").replace("rdb", "RDB")
        name = name.replace("conv_body", "trunk_conv").replace("conv_hr", "HRconv")
        renamed[name.replace("conv_up", "upconv")] = tensor
    return renamed


def old_esrgan(plain: Weights, shape: RRDBNetShape) -> Weights:
    """The nest of nn.Sequential of ESRGAN's first code: index by index."""
    ups = len(shape.upsampling)
    renamed = {}
    for name, tensor in plain.items():
        module, _, parameter = name.rpartition(".")
        if module == "conv_first":
            place = "model.0"
        elif module == "conv_body":
            place = f"model.1.sub.{shape.blocks}"
        elif module.startswith("conv_up"):
            place = f"model.{3 * int(module.removeprefix('conv_up'))}"
        elif module == "conv_hr":
            place = f"model.{3 * ups + 2}"
        elif module == "conv_last":
            place = f"model.{3 * ups + 4}"
        else:
            _, block, dense, conv = module.split(".")
            place = f"model.1.sub.{block}.{dense.upper()}.{conv}"
            place += "" if conv == "conv1x1" else ".0"
        renamed[f"{place}.{parameter}"] = tensor
    return renamed


def real_esrgan(plain: Weights, shape: RRDBNetShape) -> Weights:
    return plain


SPELLINGS = {"Real-ESRGAN": real_esrgan, "ESRGAN": esrgan, "old ESRGAN": old_esrgan}


@pytest.mark.parametrize("layout", SPELLINGS)
@pytest.mark.parametrize(
    "shape",
    [
        PLAIN,
        RRDBNetShape(features=6, blocks=1, growth=3, upsampling=()),
        RRDBNetShape(features=6, blocks=3, growth=7, upsampling=(2,)),
        RRDBNetShape(features=4, blocks=1, growth=2, upsampling=(2, 2, 2)),
        RRDBNetShape(features=4, blocks=12, growth=2, upsampling=(2, 2, 2, 2)),
        RRDBNetShape(features=4, blocks=1, growth=4, unshuffle=2),
        RRDBNetShape(features=4, blocks=1, growth=4, unshuffle=4),
        RRDBNetShape(features=4, blocks=1, growth=4, upsampling=(2,), unshuffle=2),
        RRDBNetShape(features=4, blocks=1, growth=4, in_channels=1, out_channels=1),
        RRDBNetShape(features=4, blocks=1, growth=4, in_channels=1, out_channels=3),
        RRDBNetShape(features=4, blocks=1, growth=4, in_channels=4, out_channels=4),
        RRDBNetShape(features=4, blocks=1, growth=4, in_channels=4, out_channels=3),
        RRDBNetShape(features=4, blocks=1, growth=4, in_channels=3, out_channels=1),
        RRDBNetShape(features=4, blocks=1, growth=4, in_channels=1, out_channels=1, unshuffle=2),
        RRDBNetShape(features=4, blocks=1, growth=4, in_channels=4, out_channels=4, unshuffle=2),
        RRDBNetShape(features=4, blocks=1, growth=4, in_channels=1, out_channels=1, unshuffle=4),
    ],
    ids=str,
)
def test_every_spelling_of_rrdbnet_is_the_same_network(layout: str, shape: RRDBNetShape) -> None:
    plain = weights(shape)
    found = checkpoints.load(saved(SPELLINGS[layout](plain, shape)))
    assert_same(found, shape, plain)
    assert found.layout == layout


@pytest.mark.parametrize("layout", SPELLINGS)
def test_esrgan_plus_is_recognised(layout: str) -> None:
    plain = weights(PLUS)
    found = checkpoints.load(saved(SPELLINGS[layout](plain, PLUS)))
    assert_same(found, PLUS, plain)
    assert found.layout == ("ESRGAN+" if layout == "old ESRGAN" else layout)


def test_names_of_the_old_spelling_are_those_of_a_released_file() -> None:
    """Written out for a x4 network of 23 blocks, against a mistake made twice."""
    names = old_esrgan(weights(RRDBNetShape(features=1, growth=1)), RRDBNetShape())
    assert {name.removesuffix(".weight") for name in names if ".sub." not in name} >= {
        *("model.0", "model.3", "model.6", "model.8", "model.10")
    }
    assert "model.1.sub.23.weight" in names
    assert "model.1.sub.22.RDB3.conv5.0.bias" in names
    assert len(names) == 702


@pytest.mark.parametrize(
    "shape",
    [
        COMPACT,
        *(SRVGGShape(features=4, convs=1, scale=scale) for scale in range(1, 17)),
        SRVGGShape(features=4, convs=0, scale=2),
        SRVGGShape(features=4, convs=1, scale=2, in_channels=1, out_channels=1),
        SRVGGShape(features=4, convs=1, scale=2, in_channels=4, out_channels=4),
        SRVGGShape(features=4, convs=1, scale=2, in_channels=1, out_channels=3),
    ],
    ids=str,
)
def test_every_compact_shape_is_recognised(shape: SRVGGShape) -> None:
    plain = weights(shape)
    found = checkpoints.load(saved(plain))
    assert_same(found, shape, plain)
    assert found.layout == "Real-ESRGAN compact"


# ---------------------------------------------------------------------- containers and prefixes


def prefixed(prefix: str, tensors: Weights) -> Weights:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def training_state() -> dict[str, Any]:
    """What an optimizer leaves in a file."""
    moments = {
        "step": torch.tensor(5.0),
        "exp_avg": torch.zeros(3, dtype=torch.bfloat16),
        "exp_avg_sq": torch.zeros(3),
    }
    return {
        "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "epoch": 7,
        "meta": {"config": "a text", "time": None},
    }


MADE: dict[str, Callable[[Weights, Weights], Any]] = {
    "": lambda good, other: good,
    "params": lambda good, other: {"params": good},
    "params_ema": lambda good, other: {"params": other, "params_ema": good},
    "params-ema": lambda good, other: {"params": other, "params-ema": good},
    "state_dict": lambda good, other: {"state_dict": good, **training_state()},
    "model_state_dict": lambda good, other: {"model_state_dict": good, **training_state()},
    "model": lambda good, other: {"model": good, "optimizer": training_state()["optimizer"]},
    "net": lambda good, other: {"net": good, "acc": 0.5, "epoch": 3},
    "module": lambda good, other: prefixed("module.", good),
    "netG": lambda good, other: prefixed("netG.", good),
    "anything": lambda good, other: {"anything": good},
    "one.in.another": lambda good, other: {"one": {"in": {"another": good}}},
    "params.module": lambda good, other: {"params": prefixed("module.", good), "iter": 1},
    "generator": lambda good, other: prefixed("generator.", good),
    "generator_ema": lambda good, other: {
        **prefixed("generator.", other),
        **prefixed("generator_ema.", good),
    },
    "state_dict.generator_ema": lambda good, other: {
        "meta": {"mmedit_version": "0.11"},
        "state_dict": OrderedDict(
            {
                "step_counter": torch.tensor([400_000]),
                **prefixed("generator.", other),
                "discriminator.conv_0.weight": torch.zeros(4, 3, 3, 3),
                "discriminator.conv_0.bias": torch.zeros(4),
                "perceptual_loss.vgg.mean": torch.zeros(1, 3, 1, 1),
                **prefixed("generator_ema.", good),
            }
        ),
        **training_state(),
    },
    "module.generator_ema": lambda good, other: {
        **prefixed("module.generator.", other),
        **prefixed("module.generator_ema.", good),
        **prefixed("module.discriminator.", {"conv_0.weight": torch.zeros(4, 3, 3, 3)}),
    },
}


@pytest.mark.parametrize("container", MADE)
@pytest.mark.parametrize("save", [saved, legacy])
@pytest.mark.parametrize("shape", [PLAIN, COMPACT], ids=["RRDBNet", "SRVGGNetCompact"])
def test_the_generator_is_found_in_whatever_holds_it(
    container: str, save: Callable[[object], bytes], shape: layouts.Shape
) -> None:
    good, other = weights(shape), weights(shape, seed=1)
    found = checkpoints.load(save(MADE[container](good, other)))
    assert_same(found, shape, good)
    assert found.container == container
    assert found.file_format == ("zipped pickle" if save is saved else "pickle")


def test_old_spelling_is_found_under_a_wrapper_of_the_same_name() -> None:
    old = old_esrgan(weights(PLAIN), PLAIN)
    assert_same(checkpoints.load(saved({"model": old, "epoch": 1})), PLAIN, weights(PLAIN))
    inner = {name.removeprefix("model."): tensor for name, tensor in old.items()}
    assert_same(checkpoints.load(saved({"model": inner})), PLAIN, weights(PLAIN))


def test_what_stands_beside_a_bare_generator_is_left_out() -> None:
    beside = {"discriminator.conv0.weight": torch.zeros(4, 3, 3, 3), **training_state()}
    found = checkpoints.load(saved(weights(PLAIN) | beside))
    assert_same(found, PLAIN, weights(PLAIN))
    assert found.dropped == (*("discriminator (1)", "optimizer (4)", "epoch (1)", "meta (2)"),)


def test_what_was_dropped_is_named_by_where_it_leaves_the_path() -> None:
    file = MADE["state_dict.generator_ema"](weights(COMPACT), weights(COMPACT))
    assert checkpoints.load(saved(file)).dropped == (
        "meta (2)",
        "state_dict.step_counter (1)",
        f"state_dict.generator ({len(weights(COMPACT))})",
        "state_dict.discriminator (2)",
        "state_dict.perceptual_loss (1)",
        "optimizer (4)",
        "epoch (1)",
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("save", [saved, legacy, safetensors.torch.save])
def test_other_precisions_become_float32(
    dtype: torch.dtype, save: Callable[[Weights], bytes]
) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in weights(PLAIN).items()}
    found = checkpoints.load(save(stored))
    assert_same(found, PLAIN, {name: tensor.float() for name, tensor in stored.items()})
    assert found.dtype == str(dtype).removeprefix("torch.")


def test_mixed_precisions_are_named() -> None:
    stored = weights(PLAIN)
    stored["conv_last.weight"] = stored["conv_last.weight"].half()
    assert checkpoints.load(saved(stored)).dtype == "float16 and float32"


def test_safetensors_are_read_with_prefixes_and_all() -> None:
    stored = prefixed("module.", esrgan(weights(PLAIN), PLAIN))
    found = checkpoints.load(safetensors.torch.save(stored, metadata={"format": "pt"}))
    assert_same(found, PLAIN, weights(PLAIN))
    assert (found.file_format, found.container) == ("safetensors", "module")


@pytest.mark.parametrize("activation", ["relu", "leakyrelu"])
def test_safetensors_tell_what_tensors_leave_open(activation: str) -> None:
    shape = SRVGGShape(features=4, convs=1, scale=2, activation=activation)
    written = safetensors.torch.save(weights(shape), metadata=layouts.to_metadata(shape))
    assert_same(checkpoints.load(written), shape, weights(shape))
    with pytest.raises(ConfigError, match=r"scale: 4 is stated, 2 is in the file"):
        checkpoints.load(written, stated={"scale": 4})


@pytest.mark.parametrize(
    "metadata",
    [
        {"architecture": "ESRGAN", "scale": "x4"},
        {"architecture": '"SwinIR"'},
        {"architecture": '"SRVGGNetCompact"', "features": "[" * 100_000},
        {"architecture": '"SRVGGNetCompact"', "features": '"many"'},
        {"scale": "4"},
    ],
)
def test_metadata_of_other_programs_do_not_count(metadata: dict[str, str]) -> None:
    written = safetensors.torch.save(weights(PLAIN), metadata=metadata)
    assert_same(checkpoints.load(written), PLAIN, weights(PLAIN))


def test_parameters_and_memory_layouts_do_not_matter() -> None:
    """A file of nn.Parameters, in channels_last, views of one storage and requiring gradients."""
    plain = weights(PLAIN)
    stored: dict[str, Tensor] = {}
    for name, tensor in plain.items():
        order = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
        stored[name] = torch.nn.Parameter(tensor.to(memory_format=order))
    shared = torch.cat([plain["conv_hr.bias"], plain["conv_up1.bias"]])
    stored["conv_hr.bias"], stored["conv_up1.bias"] = shared[:8], shared[8:]
    found = checkpoints.load(saved(stored))
    assert_same(found, PLAIN, plain)
    assert all(tensor.is_contiguous() for tensor in found.state_dict.values())
    assert not any(tensor.requires_grad for tensor in found.state_dict.values())


def test_compressed_archives_are_read() -> None:
    repacked = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(weights(COMPACT)))) as source,
        zipfile.ZipFile(repacked, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert_same(checkpoints.load(repacked.getvalue()), COMPACT, weights(COMPACT))


def test_a_built_network_is_ready_to_run() -> None:
    network = checkpoints.build(checkpoints.load(saved(weights(PLUS))))
    assert not network.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in network.parameters())
    assert network.shape == PLUS


def test_a_path_is_read_like_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "called-like-nothing"
    path.write_bytes(saved(weights(COMPACT)))
    for source in (path, str(path)):
        assert_same(checkpoints.load(source), COMPACT, weights(COMPACT))


def test_description_says_what_a_person_wants_to_know() -> None:
    file = {"params_ema": weights(RRDBNetShape(features=8, blocks=2, growth=4)), "iter": 5}
    assert checkpoints.describe(checkpoints.load(saved(file))) == {
        "architecture": "RRDBNet",
        "scale": 4,
        "shape": "in_channels 3, out_channels 3, features 8, blocks 2, growth 4, "
        "upsampling [2, 2], unshuffle 1, plus False",
        "parameters": sum(tensor.numel() for tensor in weights(PLAIN).values()),
        "radius": 34,
        "file_format": "zipped pickle",
        "container": "params_ema",
        "layout": "Real-ESRGAN",
        "dtype": "float32",
        "dropped": "iter (1)",
    }


@pytest.mark.skipif(not OFFICIAL.exists(), reason="the shared weights are not here")
def test_the_released_animevideov3_loads() -> None:
    entry = ZOO["realesr-animevideov3"]
    assert hashlib.sha256(OFFICIAL.read_bytes()).hexdigest() == entry.sha256
    assert OFFICIAL.stat().st_size == entry.bytes
    found = checkpoints.load(OFFICIAL)
    assert found.shape == SRVGGShape(features=64, convs=16, scale=4)
    assert (found.container, found.dtype) == ("params", "float32")
    assert checkpoints.describe(found)["parameters"] == 621_424
    x = torch.full((1, 3, 8, 8), 0.5)
    assert float((checkpoints.build(found)(x) - 0.5).abs().max()) < 0.1  # plain gray stays gray


# -------------------------------------------------------------------------------------- blending


def test_blend_is_the_weighted_sum() -> None:
    one, two = (checkpoints.load(saved(weights(COMPACT, seed))) for seed in (0, 1))
    mixed = checkpoints.blend([one, two], [0.25, 0.75])
    for name, tensor in mixed.state_dict.items():
        assert torch.equal(tensor, 0.25 * one.state_dict[name] + 0.75 * two.state_dict[name])
    assert torch.equal(outputs(checkpoints.blend([one, two], [1.0, 0.0])), outputs(one))


def test_different_networks_do_not_blend() -> None:
    one = checkpoints.load(saved(weights(COMPACT)))
    two = checkpoints.load(saved(weights(SRVGGShape(features=8, convs=3))))
    with pytest.raises(ConfigError, match=r"different networks: .*convs=2.*convs=3"):
        checkpoints.blend([one, two], [0.5, 0.5])


# ---------------------------------------------------------------------------------------- stated


@pytest.mark.parametrize("activation", ["relu", "leakyrelu"])
def test_an_activation_without_parameters_must_be_stated(activation: str) -> None:
    shape = SRVGGShape(features=8, convs=2, activation=activation)
    file = saved(weights(shape))
    with pytest.raises(ConfigError, match=r"leakyrelu or relu: state `activation` in a model YAML"):
        checkpoints.load(file)
    assert_same(checkpoints.load(file, stated={"activation": activation}), shape, weights(shape))


@pytest.mark.parametrize("layout", SPELLINGS)
def test_enlargement_by_three_must_be_stated(layout: str) -> None:
    shape = RRDBNetShape(features=8, blocks=1, growth=4, upsampling=(3,))
    file = saved(SPELLINGS[layout](weights(shape), shape))
    assert checkpoints.load(file).shape == replace(shape, upsampling=(2,))
    for stated in ({"scale": 3}, {"upsampling": [3]}, {"upsampling": (3,)}):
        assert_same(checkpoints.load(file, stated=stated), shape, weights(shape))


def test_what_is_stated_wins_where_tensors_leave_a_choice() -> None:
    unfolded = RRDBNetShape(features=8, blocks=1, growth=4, in_channels=4, out_channels=1)
    file = saved(weights(unfolded))
    assert checkpoints.load(file).shape == replace(unfolded, in_channels=1, unshuffle=2)
    assert checkpoints.load(file, stated={"unshuffle": 1}).shape == unfolded
    assert checkpoints.load(file, stated={"in_channels": 4}).shape == unfolded
    coloured = SRVGGShape(features=8, convs=1, in_channels=1, out_channels=4, scale=1)
    file = saved(weights(coloured))
    assert checkpoints.load(file).shape == replace(coloured, out_channels=1, scale=2)
    assert checkpoints.load(file, stated={"scale": 1}).shape == coloured


@pytest.mark.parametrize("shape", [PLAIN, PLUS, COMPACT], ids=str)
def test_the_whole_shape_may_be_stated(shape: layouts.Shape) -> None:
    stated = layouts.shape_to_dict(shape)
    assert_same(checkpoints.load(saved(weights(shape)), stated=stated), shape, weights(shape))


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"blocks": 23}, "blocks: 23 is stated, 2 is in the file"),
        ({"growth": 32, "features": 64}, "growth: 32 is stated, 4 is in the file, features: 64 is"),
        ({"scale": 2}, "scale: 2 is stated, 4 is in the file"),
        ({"scale": "4"}, "scale: '4' is stated, 4 is in the file"),
        ({"upsampling": [3]}, r"upsampling: \[3\] is stated, \[2, 2\] is in the file"),
        ({"architecture": "SRVGGNetCompact"}, "'SRVGGNetCompact' is stated, 'RRDBNet' is in"),
        ({"convs": 16}, "convs: 16 is stated, 'nothing' is in the file"),
        ({"architecture": "RRDBNet", "convs": 16}, "unknown convs; there are architecture, blocks"),
        ({"num_block": 23}, "unknown num_block"),
        ({"architecture": "EDSR"}, "architecture 'EDSR' is none of RRDBNet, SRVGGNetCompact"),
    ],
    ids=str,
)
def test_a_contradiction_names_both_values(stated: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checkpoints.load(saved(weights(PLAIN)), stated=stated)


# --------------------------------------------------------------------------------------- refusals


def without(name: str) -> Weights:
    return {key: tensor for key, tensor in weights(PLAIN).items() if key != name}


def changed(name: str, value: object) -> dict[str, object]:
    return {**weights(PLAIN), name: value}


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def terabytes_of_header() -> bytes:
    """An archive whose directory says that its first member has 2 GiB less one, thrice."""
    names = ("a/data.pkl", "a/data/0", "a/data/1")
    file = bytearray(zipped(dict.fromkeys(names, b"xx")))
    at = -1
    for _ in names:
        at = file.index(b"PK\x01\x02", at + 1)
        file[at + 24 : at + 28] = struct.pack("<I", 2**31 - 1)
    return bytes(file)


def terabytes_of_safetensors() -> bytes:
    header = {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64)


def safetensors_of(dtype: str, size: int) -> bytes:
    header = {"a": {"dtype": dtype, "shape": [size], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


EDSR = {
    "conv_first.weight": torch.zeros(8, 3, 3, 3),
    "body.0.conv1.weight": torch.zeros(8, 8, 3, 3),
    "conv_last.weight": torch.zeros(3, 8, 3, 3),
}
LARGER = {  # a network in which a compact one is a part
    "encoder.weight": torch.zeros(8, 3, 3, 3),
    **prefixed("upsampler.", weights(COMPACT)),
}


REFUSED = {
    "empty file": (b"", "an empty file"),
    "random bytes": (bytes(range(7, 70)), "an unknown file, its first bytes are 07 08 09"),
    "text": (b"weights of a network\n" * 20, "an unknown file, its first bytes are 77 65"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(40), "a PNG image"),
    "web page": (b"<!DOCTYPE html><html>Sign in</html>", "an HTML or XML page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
    "zip of texts": (zipped({"a.txt": b"a", "b.txt": b"b"}), "a zip archive of a.txt, b.txt"),
    "empty zip": (b"PK\x03\x04", "a broken or truncated zip archive"),
    "TorchScript": (zipped({"a/data.pkl": b"", "a/constants.pkl": b""}), "a TorchScript program"),
    "terabytes, zip": (terabytes_of_header(), r"its 3 members claim 6,442,450,941 bytes"),
    "terabytes, safetensors": (terabytes_of_safetensors(), "a broken safetensors file"),
    "unknown dtype": (safetensors_of("F8_E8M0", 8), "a broken safetensors file: KeyError"),
    "cut in half, zip": (saved(weights(PLAIN))[:9000], "a broken or truncated zip archive"),
    "cut in half, pickle": (legacy(weights(PLAIN))[:9000], "a broken or refused pickle"),
    "cut in half, safetensors": (
        safetensors.torch.save(weights(PLAIN))[:9000],
        "a broken safetensors file",
    ),
    "a list": (saved([torch.zeros(3)]), "holds no dict of tensors but list"),
    "a tensor": (saved(torch.zeros(3)), "holds no dict of tensors but Tensor"),
    "an empty dict": (saved({}), "no RRDBNet or SRVGGNetCompact in it, but no tensors: nothing"),
    "no tensors": (saved({"epoch": 3, "lr": 0.1}), "but no tensors: epoch, lr"),
    "EDSR": (saved(EDSR), r"but 3 tensors: conv_first.weight \[8, 3, 3, 3\], body.0.conv1.weight"),
    "original EDSR": (
        saved(prefixed("body.0.", weights(COMPACT)) | EDSR),
        "in it, but 14 tensors: body.0.body.0.weight",
    ),
    "part of a larger network": (saved(LARGER), "in it, but 12 tensors: encoder.weight"),
    "a discriminator": (
        saved({"params": {"conv0.weight": torch.zeros(8, 3, 3, 3), "conv0.bias": torch.zeros(8)}}),
        r"but 2 tensors: params.conv0.weight \[8, 3, 3, 3\], params.conv0.bias \[8\]",
    ),
    "a missing bias": (
        saved(without("conv_hr.bias")),
        r"of its 72 tensors: 1 missing \(conv_hr.bias\)",
    ),
    "a missing first convolution": (
        saved(without("conv_first.weight")),
        "conv_first.weight is missing among 71 tensors",
    ),
    "an unknown tensor": (
        saved(changed("conv_extra.weight", torch.zeros(3))),
        r"1 not part of the network \(conv_extra.weight\)",
    ),
    "another size": (
        saved(changed("conv_body.weight", torch.zeros(8, 8, 1, 1))),
        r"of another size \(conv_body.weight \[8, 8, 1, 1\] instead of \[8, 8, 3, 3\]\)",
    ),
    "no convolution": (
        saved(changed("conv_first.weight", torch.zeros(8))),
        r"conv_first.weight is \[8\], not the weight of a convolution",
    ),
    "a number for a tensor": (
        saved(changed("conv_hr.weight", 3)),
        "conv_hr.weight is no tensor but int",
    ),
    "whole numbers": (
        saved(changed("conv_hr.bias", torch.zeros(8, dtype=torch.int32))),
        "conv_hr.bias is torch.int32, not one of torch.float32",
    ),
    "a sparse tensor": (
        saved(changed("conv_hr.bias", torch.zeros(8).to_sparse())),
        "conv_hr.bias is no plain tensor: torch.sparse_coo on cpu",
    ),
    "tensors without values": (
        saved({name: tensor.to("meta") for name, tensor in weights(PLAIN).items()}),
        "conv_first.weight is no plain tensor: torch.strided on meta",
    ),
    "NaN": (
        saved(changed("conv_hr.bias", torch.tensor([0.0, float("nan")] * 4))),
        "4 of the 8 values of conv_hr.bias are NaN or infinity",
    ),
    "too large for float32": (
        saved(changed("conv_hr.bias", torch.full((8,), 1e300, dtype=torch.float64))),
        "8 of the 8 values of conv_hr.bias",
    ),
    "terabytes of one value": (
        saved(changed("conv_hr.weight", torch.zeros(1).expand(10**6, 10**6, 3, 3))),
        r"its tensors claim 36,000,000,0\d\d,\d\d\d bytes, the file has",
    ),
    "channels of no picture": (
        saved(weights(RRDBNetShape(features=4, blocks=1, growth=2, in_channels=5, out_channels=5))),
        r"it makes 5 channels, a picture has one of \[1, 3, 4\]",
    ),
    "less than half the size": (
        saved(weights(RRDBNetShape(features=4, blocks=1, growth=2, upsampling=(), in_channels=12))),
        "it takes 12 channels before 0 enlargements",
    ),
    "no square of channels": (
        saved(weights(COMPACT) | {"body.6.weight": torch.zeros(24, 8, 3, 3)}),
        r"it makes 24 channels: not \[3\] times a square",
    ),
    "pictures of two channels": (
        saved(weights(SRVGGShape(features=4, convs=1, in_channels=2, out_channels=2))),
        r"it takes 2 channels, a picture has one of \[1, 3, 4\]",
    ),
    "one convolution alone": (
        saved({"body.0.weight": torch.zeros(12, 3, 3, 3), "body.0.bias": torch.zeros(12)}),
        "convs at 0, not -1",
    ),
    "a gap between blocks": (
        saved({k.replace("body.1.", "body.2."): t for k, t in weights(PLAIN).items()}),
        r"of its 42 tensors: 30 not part of the network \(body.2.rdb1.conv1.weight",
    ),
    "a block of astronomical number": (
        saved(changed("body.999999999999.rdb1.conv1.weight", torch.zeros(4, 8, 3, 3))),
        "1 not part of the network",
    ),
    "a name that cannot be printed": (
        saved({"a\ud800\nb" * 2000: torch.zeros(1)}),
        r"1 tensors: a\\ud800 ba\\ud800 b.* …$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_checkpoint_is_refused_with_what_it_is(case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as raised:
        checkpoints.load(data)
    assert str(raised.value).startswith("the checkpoint: ")
    assert len(str(raised.value)) < 700
    str(raised.value).encode()


def test_depth_and_number_of_dicts_are_bounded() -> None:
    """Ten dicts, each ten times in the one above it: ten milliards of entries in 500 bytes."""
    tree: dict[str, Any] = {}
    for _ in range(10):
        tree = {str(index): tree for index in range(10)}
    with pytest.raises(ConfigError, match="more than 100,000 entries"):
        checkpoints.load(saved(tree))
    circle: dict[str, Any] = {}
    circle["again"] = circle
    with pytest.raises(ConfigError, match=r"no tensors: again\.again"):
        checkpoints.load(saved(circle))


@pytest.mark.parametrize("name", ["missing.pth", "."])
def test_a_path_without_a_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r": (No such file or directory|Is a directory)$"):
        checkpoints.load(tmp_path / name)


def test_a_file_too_large_is_not_even_read(tmp_path: Path) -> None:
    with open(tmp_path / "huge.pth", "wb") as file:
        file.truncate(formats.MAX_BYTES + 1)  # sparse
    with pytest.raises(ConfigError, match="4,294,967,297 bytes are no checkpoint"):
        checkpoints.load(tmp_path / "huge.pth")


# ------------------------------------------------------------------------------ malicious pickles


class Malicious:
    """Leaves a file behind where it is unpickled without restrictions."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


MALICIOUS: dict[str, Callable[[Malicious], bytes]] = {
    "zip": lambda evil: saved({"params": evil}),
    "legacy": lambda evil: legacy({"params": evil}),
    "nested": lambda evil: saved({"params": {**weights(PLAIN), "x": [{"deep": (1, evil)}]}}),
    "nested, legacy": lambda evil: legacy({"params": weights(PLAIN), "meta": {"x": [evil]}}),
    "bare, protocol 2": lambda evil: pickle.dumps(evil, protocol=2),
    "bare, newest protocol": lambda evil: pickle.dumps({"a": evil}, protocol=5),
    "before a sound file": lambda evil: pickle.dumps(evil, 2) + legacy(weights(PLAIN)),
}


@pytest.mark.parametrize("case", MALICIOUS)
def test_a_malicious_pickle_is_refused_and_not_run(case: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    data = MALICIOUS[case](Malicious(marker))
    with pytest.raises(ConfigError, match=r"would run or import posix\.system; get it as safeten"):
        checkpoints.load(data)
    assert not marker.exists()


def test_the_malicious_pickle_of_these_tests_would_work(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Malicious(marker)))
    assert marker.exists()


def test_a_pickled_network_is_refused_by_the_name_of_its_class() -> None:
    network = SRVGGNetCompact(COMPACT)
    with pytest.raises(ConfigError, match=r"import pipeline\.models\.srvgg\.SRVGGNetCompact"):
        checkpoints.load(saved(network))
    with pytest.raises(ConfigError, match=r"run or import torch\.nn\.modules\.conv\.Conv2d"):
        checkpoints.load(saved(torch.nn.Conv2d(1, 1, 1)))


def pickled(number: int) -> bytes:
    digits = pickle.encode_long(number)
    return b"\x8a" + bytes([len(digits)]) + digits


@pytest.mark.parametrize("size", [10**15, 2**63 - 1, 10**300, -1])
def test_a_pickle_that_asks_for_terabytes_is_refused(size: int) -> None:
    """By a call that torch's reader allows, and by a storage that the file does not hold."""
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
    scripts = {
        "call": b"\x80\x02ctorch\nTensor\n" + pickled(size) + b"\x85R.",
        "storage": b"\x80\x02" + storage + pickled(size) + b"tQ.",
    }
    for script in scripts.values():
        with pytest.raises(ConfigError, match=r"a broken or refused pickle: \w+Error: \S"):
            checkpoints.load(scripted(script))
    old = legacy(torch.zeros(1)).split(b"\x80\x02")
    old[4] = storage + pickled(size) + b"NtQ."
    with pytest.raises(ConfigError, match=r"a broken or refused pickle: \w+Error: \S"):
        checkpoints.load(b"\x80\x02".join(old))


# --------------------------------------------------------------------------------------- fuzzing


def tiny() -> dict[str, object]:
    """A file of 4 KB whose parts are all in reach of a mutation."""
    shape = SRVGGShape(features=2, convs=0, scale=1, in_channels=1, out_channels=1)
    return {"params": weights(shape), "epoch": 3, "optimizer": training_state()["optimizer"]}


SOUND = {
    "zip": saved(tiny()),
    "legacy": legacy(tiny()),
    "safetensors": safetensors.torch.save(weights(SRVGGShape(features=2, convs=0, scale=1))),
}


def scripted(script: bytes) -> bytes:
    """The zip file with other pickle instructions, and right checksums."""
    with zipfile.ZipFile(io.BytesIO(SOUND["zip"])) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return zipped(members | {"archive/data.pkl": script})


def script() -> bytes:
    with zipfile.ZipFile(io.BytesIO(SOUND["zip"])) as archive:
        return archive.read("archive/data.pkl")


@st.composite
def mutations(draw: st.DrawFn, sound: bytes) -> bytes:
    """`sound` with a few bits flipped, bytes set, pieces cut out, inserted or moved."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 40))
        match draw(st.sampled_from(["flip", "set", "truncate", "cut", "insert", "splice"])):
            case "flip" if start < len(data):
                data[start] ^= 1 << draw(st.integers(0, 7))
            case "set" if start < len(data):
                data[start] = draw(
                    st.sampled_from(b"\x00\x01\x7f\x80\xff(.0R}]c)QKJXtqhub\x85\x8a")
                )
            case "truncate":
                del data[start:]
            case "cut":
                del data[start : start + length]
            case "insert":
                data[start:start] = draw(st.binary(max_size=20))
            case _:
                source = draw(st.integers(0, len(data)))
                data[start : start + length] = data[source : source + length]
    return bytes(data)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", [*SOUND, "script"])
@given(data=st.data())
@settings(deadline=None, derandomize=True, max_examples=250)
def test_a_mutated_file_loads_or_is_refused(kind: str, data: st.DataObject) -> None:
    if kind == "script":
        mutated = scripted(data.draw(mutations(script())))
    else:
        mutated = data.draw(mutations(SOUND[kind]))
    try:
        found = checkpoints.load(mutated)
    except ConfigError:
        return
    assert sum(tensor.nbytes for tensor in found.state_dict.values()) <= len(mutated)
    checkpoints.build(found)


@given(st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"x" * 8 + b"{"]))
@settings(deadline=None, derandomize=True, max_examples=150)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_arbitrary_bytes_are_refused(data: bytes, start: bytes) -> None:
    with pytest.raises(ConfigError):
        checkpoints.load(start + data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.text(max_size=5) | st.integers() | st.sampled_from(["params", "body.0.weight"]),
                inner | st.just(torch.zeros(2, 3, 3, 3)) | st.just(torch.zeros(2)),
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
@settings(deadline=None, derandomize=True, max_examples=150)
def test_any_nest_of_values_is_refused(content: object) -> None:
    with pytest.raises(ConfigError):
        checkpoints.load(saved(content))
