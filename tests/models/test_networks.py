"""The two networks against a plain functional reading of their papers, and their geometry."""

import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from pipeline.errors import ConfigError
from pipeline.models import layouts
from pipeline.models.rrdbnet import RRDBNet, RRDBNetShape
from pipeline.models.srvgg import SRVGGNetCompact, SRVGGShape

RRDB_SHAPES = [
    RRDBNetShape(features=8, blocks=2, growth=4),
    RRDBNetShape(features=6, blocks=1, growth=3, upsampling=()),
    RRDBNetShape(features=6, blocks=1, growth=5, upsampling=(2,)),
    RRDBNetShape(features=6, blocks=1, growth=5, upsampling=(3,)),
    RRDBNetShape(features=4, blocks=1, growth=2, upsampling=(2, 2, 2)),
    RRDBNetShape(features=4, blocks=1, growth=2, upsampling=(2, 2, 2, 2)),
    RRDBNetShape(features=8, blocks=1, growth=4, unshuffle=2),
    RRDBNetShape(features=8, blocks=1, growth=4, unshuffle=4),
    RRDBNetShape(features=8, blocks=1, growth=4, upsampling=(2,), unshuffle=2),
    RRDBNetShape(features=8, blocks=2, growth=4, plus=True),
    RRDBNetShape(features=8, blocks=1, growth=4, in_channels=1, out_channels=3),
    RRDBNetShape(features=8, blocks=1, growth=4, in_channels=4, out_channels=4),
]
SRVGG_SHAPES = [
    SRVGGShape(features=8, convs=3),
    SRVGGShape(features=8, convs=0, scale=1),
    SRVGGShape(features=8, convs=1, scale=2, activation="relu"),
    SRVGGShape(features=8, convs=2, scale=3, activation="leakyrelu"),
    SRVGGShape(features=4, convs=1, scale=16, in_channels=1, out_channels=1),
    SRVGGShape(features=8, convs=2, scale=2, in_channels=1),
    SRVGGShape(features=8, convs=2, scale=2, in_channels=4, out_channels=4),
]
SHAPES = RRDB_SHAPES + SRVGG_SHAPES


def named(value: object) -> str | None:
    """A test's id: the fields of a shape, pytest's own for anything else."""
    if not isinstance(value, layouts.Shape):
        return None
    return "-".join(str(field) for field in asdict(value).values())


def seeded(shape: layouts.Shape, seed: int = 0) -> RRDBNet | SRVGGNetCompact:
    """A network with weights that let every layer matter."""
    torch.manual_seed(seed)
    network = RRDBNet(shape) if isinstance(shape, RRDBNetShape) else SRVGGNetCompact(shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


def picture(shape: layouts.Shape, height: int = 8, width: int = 12) -> Tensor:
    return torch.rand(
        2, shape.in_channels, height, width, generator=torch.Generator().manual_seed(1)
    )


# --------------------------------------------------------------- the papers, read a second time


def conv(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = weights[f"{name}.weight"]
    return functional.conv2d(x, weight, weights.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def lrelu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * 0.2)


def enlarge(x: Tensor, factor: int) -> Tensor:
    return x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def unshuffle(x: Tensor, factor: int) -> Tensor:
    """Channel c*f*f + i*f + j holds the pixels (i, j) of each square of channel c."""
    parts = [
        x[:, c, i::factor, j::factor]
        for c in range(x.shape[1])
        for i in range(factor)
        for j in range(factor)
    ]
    return torch.stack(parts, 1)


def dense_block(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    known = [x]
    for index in range(1, 5):
        made = lrelu(conv(weights, f"{name}.conv{index}", torch.cat(known, 1)))
        if f"{name}.conv1x1.weight" in weights:
            if index == 2:
                made = made + conv(weights, f"{name}.conv1x1", x)
            if index == 4:
                made = made + known[2]
        known.append(made)
    return x + 0.2 * conv(weights, f"{name}.conv5", torch.cat(known, 1))


def rrdbnet(weights: dict[str, Tensor], shape: RRDBNetShape, x: Tensor) -> Tensor:
    first = conv(weights, "conv_first", unshuffle(x, shape.unshuffle))
    features = first
    for block in range(shape.blocks):
        entered = features
        for dense in (1, 2, 3):
            features = dense_block(weights, f"body.{block}.rdb{dense}", features)
        features = entered + 0.2 * features
    features = first + conv(weights, "conv_body", features)
    for index, factor in enumerate(shape.upsampling, start=1):
        features = lrelu(conv(weights, f"conv_up{index}", enlarge(features, factor)))
    return conv(weights, "conv_last", lrelu(conv(weights, "conv_hr", features)))


def srvgg(weights: dict[str, Tensor], shape: SRVGGShape, x: Tensor) -> Tensor:
    features = x
    for index in range(0, 2 * shape.convs + 2, 2):
        features = conv(weights, f"body.{index}", features)
        slopes = {"relu": 0.0, "leakyrelu": 0.1}
        slope = slopes.get(shape.activation)
        if slope is None:
            slope = weights[f"body.{index + 1}.weight"].view(1, -1, 1, 1)
        features = features.clamp(min=0) + slope * features.clamp(max=0)
    made = conv(weights, f"body.{2 * shape.convs + 2}", features)
    b, _, h, w = made.shape
    s = shape.scale
    detail = made.view(b, shape.out_channels, s, s, h, w).permute(0, 1, 4, 2, 5, 3)
    return detail.reshape(b, shape.out_channels, h * s, w * s) + enlarge(x, s)


def by_the_paper(weights: dict[str, Tensor], shape: layouts.Shape, x: Tensor) -> Tensor:
    if isinstance(shape, RRDBNetShape):
        return rrdbnet(weights, shape, x)
    return srvgg(weights, shape, x)


@pytest.mark.parametrize("shape", SHAPES, ids=named)
def test_forward_is_what_the_paper_says(shape: layouts.Shape) -> None:
    network, x = seeded(shape), picture(shape)
    with torch.no_grad():
        made = network(x)
        wanted = by_the_paper(dict(network.named_parameters()), shape, x)
    assert made.shape == (2, shape.out_channels, 8 * shape.scale, 12 * shape.scale)
    # Sums in another order may differ in the last bits, nothing more.
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("shape", SHAPES, ids=named)
def test_gradients_are_those_of_the_paper(shape: layouts.Shape) -> None:
    network, x = seeded(shape).train(), picture(shape)
    network(x).square().mean().backward()
    copies = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    by_the_paper(copies, shape, x).square().mean().backward()
    for name, parameter in network.named_parameters():
        wanted = copies[name].grad
        assert parameter.grad is not None
        assert wanted is not None
        limit = 1e-4 * float(wanted.abs().max())
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-3, atol=limit, msg=name)


@pytest.mark.parametrize("shape", [RRDB_SHAPES[0], RRDB_SHAPES[6], SRVGG_SHAPES[0]], ids=named)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_give_a_float32_result(
    shape: layouts.Shape, dtype: torch.dtype
) -> None:
    network, x = seeded(shape), picture(shape)
    for parameter in network.parameters():
        parameter.data *= 0.3
    with torch.no_grad():
        wanted = network(x)
        made = network.to(dtype)(x)
    assert made.dtype == torch.float32
    assert made.isfinite().all()
    assert 0 < float((made - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


def test_compact_base_stays_float32_beside_a_body_of_half_precision() -> None:
    """The enlarged input passes unrounded where the network adds nothing."""
    network = seeded(SRVGGShape(features=4, convs=1, scale=2)).to(torch.bfloat16)
    for parameter in network.parameters():
        parameter.data.zero_()
    x = picture(network.shape)
    assert torch.equal(network(x), enlarge(x, 2))


def test_result_is_not_clamped() -> None:
    network = seeded(SRVGGShape(features=4, convs=0, scale=1))
    with torch.no_grad():
        made = network(picture(network.shape) * 2 - 0.5)
    assert float(made.min()) < 0
    assert float(made.max()) > 1


def test_input_is_left_alone() -> None:
    for shape in SHAPES:
        x = picture(shape)
        before = x.clone()
        with torch.no_grad():
            seeded(shape)(x)
        assert torch.equal(x, before)


# ------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize(
    ("shape", "radius"),
    [
        (RRDBNetShape(), 349),
        (RRDBNetShape(blocks=6), 94),
        (RRDBNetShape(unshuffle=2), 698),
        (SRVGGShape(convs=16), 18),
        (SRVGGShape(convs=32), 34),
    ],
    ids=named,
)
def test_radius_of_the_released_networks(shape: layouts.Shape, radius: int) -> None:
    assert shape.radius == radius


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize(
    "shape", [s for s in SHAPES if s.scale <= 4 or isinstance(s, SRVGGShape)], ids=named
)
def test_radius_is_how_far_a_nan_spreads(shape: layouts.Shape, axis: int) -> None:
    """From every phase within the folded squares, and no nearer limit would do."""
    network = seeded(shape).double()
    centre = -(-(shape.radius + 2) // shape.multiple) * shape.multiple
    size = [1, shape.in_channels, shape.multiple, shape.multiple]
    size[axis] = 2 * centre + shape.multiple
    farthest = 0
    for phase in range(shape.multiple):
        x = torch.zeros(size)
        x.select(axis, centre + phase).fill_(math.nan)
        with torch.no_grad():
            hit = network(x).isnan().any(dim=1)[0].any(dim=3 - axis)
        reached = hit.nonzero().flatten() // shape.scale
        farthest = max(farthest, int((reached - (centre + phase)).abs().max()))
    assert farthest == shape.radius


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        (RRDBNetShape(), 16_697_987),
        (RRDBNetShape(unshuffle=2), 16_703_171),
        (RRDBNetShape(blocks=6), 4_467_779),
        (SRVGGShape(convs=16), 621_424),
        (SRVGGShape(convs=32), 1_213_296),
        (SRVGGShape(convs=16, scale=2), 600_652),
    ],
    ids=named,
)
def test_parameters_of_the_released_networks(shape: layouts.Shape, parameters: int) -> None:
    network = layouts.build_empty(shape)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert all(parameter.is_meta for parameter in network.parameters())


# -------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("shape", SHAPES, ids=named)
def test_shapes_are_values_and_go_through_plain_dicts(shape: layouts.Shape) -> None:
    plain = layouts.shape_to_dict(shape)
    assert layouts.shape_from_dict(plain) == shape
    assert hash(layouts.shape_from_dict(plain)) == hash(shape)
    assert {type(value) for value in plain.values()} <= {int, str, bool, list}


@given(
    blocks=st.integers(1, 40),
    upsampling=st.lists(st.sampled_from([2, 3]), max_size=4).map(tuple),
    fold=st.sampled_from([1, 2, 4]),
)
@settings(deadline=None, derandomize=True, max_examples=100)
def test_rrdbnet_radius_grows_by_fifteen_a_block(
    blocks: int, upsampling: tuple[int, ...], fold: int
) -> None:
    if math.prod(upsampling) % fold:
        with pytest.raises(ConfigError, match="no whole scale"):
            RRDBNetShape(blocks=blocks, upsampling=upsampling, unshuffle=fold)
        return
    shape = RRDBNetShape(blocks=blocks, upsampling=upsampling, unshuffle=fold)
    more = RRDBNetShape(blocks=blocks + 1, upsampling=upsampling, unshuffle=fold)
    assert more.radius - shape.radius == 15 * fold
    assert shape.scale * fold == math.prod(upsampling)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "SwinIR"}, "'SwinIR' is none of RRDBNet"),
        ({"features": 64}, "architecture is missing"),
        ({"architecture": "RRDBNet", "convs": 16}, "unknown convs"),
        ({"architecture": "RRDBNet", "blocks": "23"}, "blocks: wanted int, not '23'"),
        ({"architecture": "RRDBNet", "blocks": True}, "blocks: wanted int, not True"),
        ({"architecture": "RRDBNet", "blocks": 0}, "start at 1, not 0"),
        ({"architecture": "RRDBNet", "upsampling": ["2"]}, "upsampling: wanted tuple"),
        ({"architecture": "RRDBNet", "upsampling": [5]}, r"factors \[5\] between 2 and 4"),
        ({"architecture": "RRDBNet", "scale": 2}, "scale 2 is stated, the rest makes 4"),
        ({"architecture": "SRVGGNetCompact", "scale": 17}, "scale 17 is not between 1 and 16"),
        ({"architecture": "SRVGGNetCompact", "convs": -1}, "convs at 0, not -1"),
        ({"architecture": "SRVGGNetCompact", "in_channels": 4}, "4 channels cannot be added to 3"),
        ({"architecture": "SRVGGNetCompact", "activation": "tanh"}, "'tanh' is none of prelu"),
    ],
    ids=str,
)
def test_impossible_shapes_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        layouts.shape_from_dict(values)


def test_architectures_are_named_without_regard_to_case() -> None:
    assert layouts.shape_from_dict({"architecture": "rrdbnet", "blocks": 6}).radius == 94
