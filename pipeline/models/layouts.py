"""Which network a set of named tensors belongs to, and in whose spelling.

Released checkpoints spell the parameters of one RRDBNet in three ways. Names and sizes tell the
spelling and, with few exceptions, every hyper-parameter; file names tell nothing. What they leave
open (`relu` or `leakyrelu`, enlargement by 2 or by 3) may be stated by whoever knows it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import count, product
from math import isqrt, prod
from typing import Any

import torch

from pipeline.errors import ConfigError
from pipeline.models.rrdbnet import RRDBNet, RRDBNetShape
from pipeline.models.srvgg import SRVGGNetCompact, SRVGGShape

Shape = RRDBNetShape | SRVGGShape
Generator = RRDBNet | SRVGGNetCompact
Sizes = Mapping[str, tuple[int, ...]]

ARCHITECTURES: dict[str, type[Shape]] = {"RRDBNet": RRDBNetShape, "SRVGGNetCompact": SRVGGShape}
_COMPACT = "Real-ESRGAN compact"
_PICTURE_CHANNELS = (1, 3, 4)
_SHOWN = 3  # names that an error message lists


@dataclass(frozen=True, slots=True)
class _Spelling:
    """Names of RRDBNet's modules, as format strings.

    n: block, d: dense block in it, c: convolution in that; blocks: their number; i: enlargement,
    from 1 on, i3: thrice that; ups3_2, ups3_4: thrice the number of enlargements, plus 2 or 4.
    """

    first: str
    conv: str
    conv1x1: str
    trunk: str
    up: str
    hr: str
    last: str


_SPELLINGS = {
    "Real-ESRGAN": _Spelling(
        first="conv_first",
        conv="body.{n}.rdb{d}.conv{c}",
        conv1x1="body.{n}.rdb{d}.conv1x1",
        trunk="conv_body",
        up="conv_up{i}",
        hr="conv_hr",
        last="conv_last",
    ),
    "ESRGAN": _Spelling(
        first="conv_first",
        conv="RRDB_trunk.{n}.RDB{d}.conv{c}",
        conv1x1="RRDB_trunk.{n}.RDB{d}.conv1x1",
        trunk="trunk_conv",
        up="upconv{i}",
        hr="HRconv",
        last="conv_last",
    ),
    # Of ESRGAN's first code, a nest of nn.Sequential; most community models are spelled so.
    "old ESRGAN": _Spelling(
        first="model.0",
        conv="model.1.sub.{n}.RDB{d}.conv{c}.0",
        conv1x1="model.1.sub.{n}.RDB{d}.conv1x1",
        trunk="model.1.sub.{blocks}",
        up="model.{i3}",
        hr="model.{ups3_2}",
        last="model.{ups3_4}",
    ),
}
_OWN = _SPELLINGS["Real-ESRGAN"]

# The parameter by which each layout shows itself.
PROBES = {
    **{name: f"{s.conv.format(n=0, d=1, c=1)}.weight" for name, s in _SPELLINGS.items()},
    _COMPACT: "body.0.weight",
}


@dataclass(frozen=True, slots=True)
class Match:
    """What the tensors are. names: from the network's own parameter names to the file's."""

    layout: str
    shape: Shape
    names: Mapping[str, str]


# ------------------------------------------------------------------------------------- shapes


def build_empty(shape: Shape) -> Generator:
    """The network on the meta device: parameters without values."""
    with torch.device("meta"):
        return RRDBNet(shape) if isinstance(shape, RRDBNetShape) else SRVGGNetCompact(shape)


def shape_to_dict(shape: Shape) -> dict[str, Any]:
    """Architecture, hyper-parameters and scale, in types that YAML and JSON have."""
    name = next(name for name, kind in ARCHITECTURES.items() if isinstance(shape, kind))
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(shape).items()}
    return {"architecture": name, **plain, "scale": shape.scale}


def shape_from_dict(values: Mapping[str, Any]) -> Shape:
    """The shape that `shape_to_dict` gave; hyper-parameters that are left out have their default.

    Raises ConfigError for unknown names, wrong types, and a scale that does not follow.
    """
    stated = check_stated(values)
    if "architecture" not in stated:
        raise ConfigError(f"architecture is missing: {' or '.join(ARCHITECTURES)}")
    kind = ARCHITECTURES[stated["architecture"]]
    named = {f.name: stated[f.name] for f in fields(kind) if f.name in stated}
    for name, value in named.items():
        wanted = type(getattr(kind(), name))
        plain = tuple(value) if isinstance(value, list) else value
        if type(plain) is not wanted or (wanted is tuple and {*map(type, plain)} - {int}):
            raise ConfigError(f"{name}: wanted {wanted.__name__}, not {value!r}")
        named[name] = plain
    shape = kind(**named)
    if stated.get("scale", shape.scale) != shape.scale:
        raise ConfigError(f"scale {stated['scale']} is stated, the rest makes {shape.scale}")
    return shape


def to_metadata(shape: Shape) -> dict[str, str]:
    """`shape_to_dict` as texts, for a safetensors file."""
    return {name: json.dumps(value) for name, value in shape_to_dict(shape).items()}


def from_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What `to_metadata` wrote; nothing where the metadata are another program's."""
    names = {name for kind in ARCHITECTURES.values() for name in to_metadata(kind())}
    try:
        values = {name: json.loads(metadata[name]) for name in names & metadata.keys()}
        return shape_to_dict(shape_from_dict(values))
    except (ConfigError, ValueError, RecursionError):
        return {}


def check_stated(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Stated hyper-parameters, with the architecture's name as we write it.

    Raises ConfigError for an unknown architecture, and for hyper-parameters that it has not.
    """
    plain = dict(stated)
    kinds = list(ARCHITECTURES.values())
    if "architecture" in plain:
        known = {name.lower(): name for name in ARCHITECTURES}
        name = known.get(str(plain["architecture"]).lower())
        if name is None:
            raise ConfigError(
                f"architecture {plain['architecture']!r} is none of {', '.join(ARCHITECTURES)}"
            )
        plain["architecture"], kinds = name, [ARCHITECTURES[name]]
    allowed = {"architecture", "scale"}.union(f.name for kind in kinds for f in fields(kind))
    unknown = sorted(map(str, plain.keys() - allowed))
    if unknown:
        raise ConfigError(f"unknown {', '.join(unknown)}; there are {', '.join(sorted(allowed))}")
    return plain


# -------------------------------------------------------------------------------- recognition


def match(sizes: Sizes, stated: Mapping[str, Any] | None = None) -> Match:
    """Recognise a network by the names and sizes of its tensors.

    sizes: of all its parameters, and of nothing else. stated: architecture and hyper-parameters
    that are known of it, any part of them.
    Raises ConfigError when it is no network that we have, when what is stated contradicts the
    tensors, when something must be stated, and for missing, superfluous and wrongly sized tensors.
    """
    layout = next((name for name, probe in PROBES.items() if probe in sizes), None)
    if layout is None:
        raise ConfigError(f"no {' or '.join(ARCHITECTURES)} in it, but {summary(sizes)}")
    shapes = _compact_shapes(sizes) if layout == _COMPACT else _rrdb_shapes(sizes, layout)
    shape = _choose(shapes, check_stated(stated or {}))
    expected = {n: tuple(p.shape) for n, p in build_empty(shape).named_parameters()}
    names = dict(zip(expected, _spelled(expected, shape, layout), strict=True))
    _compare({names[name]: size for name, size in expected.items()}, sizes)
    plus = isinstance(shape, RRDBNetShape) and shape.plus
    return Match("ESRGAN+" if plus and layout == "old ESRGAN" else layout, shape, names)


def summary(sizes: Sizes) -> str:
    """The number of tensors and the first of them, for messages."""
    first = ", ".join(f"{name} {list(size)}" for name, size in list(sizes.items())[:_SHOWN])
    return f"{len(sizes)} tensors: {first}{', …' if len(sizes) > _SHOWN else ''}"


def _rrdb_shapes(sizes: Sizes, layout: str) -> Iterator[RRDBNetShape]:
    """The shapes that fit the decisive tensors, the likeliest first."""
    spelling = _SPELLINGS[layout]
    ups = _length(f"{spelling.up.format(i=i, i3=3 * i)}.weight" in sizes for i in count(1))
    blocks = _length(f"{spelling.conv.format(n=n, d=1, c=1)}.weight" in sizes for n in count())
    features, fed = _conv_size(sizes, spelling.first)
    growth, _ = _conv_size(sizes, spelling.conv.format(n=0, d=1, c=1))
    made, _ = _conv_size(sizes, spelling.last.format(ups3_4=3 * ups + 4))
    _check_channels(made, f"makes {made}")
    foldings = [(fed // u**2, u) for u in (1, 2, 4) if fed in {c * u**2 for c in _PICTURE_CHANNELS}]
    # 4 channels before the first convolution may be one picture channel folded by 2.
    foldings.sort(key=lambda folding: folding[0] != made)
    upsamplings = [(2,) * ups] + [(3,)] * (ups == 1)
    options = [o for o in product(upsamplings, foldings) if prod(o[0]) % o[1][1] == 0]
    if not options:
        raise ConfigError(
            f"it takes {fed} channels before {ups} enlargements: no picture has them, folded or not"
        )
    for upsampling, (channels, unshuffle) in options:
        yield RRDBNetShape(
            in_channels=channels,
            out_channels=made,
            features=features,
            blocks=blocks,
            growth=growth,
            upsampling=upsampling,
            unshuffle=unshuffle,
            plus=f"{spelling.conv1x1.format(n=0, d=1)}.weight" in sizes,
        )


def _compact_shapes(sizes: Sizes) -> Iterator[SRVGGShape]:
    """The shapes that fit the decisive tensors, the likeliest first."""
    convs = _length(f"body.{2 * n}.weight" in sizes for n in count())
    features, channels = _conv_size(sizes, "body.0")
    made, _ = _conv_size(sizes, f"body.{2 * convs - 2}")
    _check_channels(channels, f"takes {channels}")
    outputs = [out for out in dict.fromkeys((channels, 3, 4, 1)) if channels in (1, out)]
    results = [
        (out, isqrt(made // out)) for out in outputs if made == out * isqrt(made // out) ** 2
    ]
    if not results:
        raise ConfigError(f"it makes {made} channels: not {outputs} times a square")
    activations = ("prelu",) if "body.1.weight" in sizes else ("relu", "leakyrelu")
    for (out, scale), activation in product(results, activations):
        yield SRVGGShape(
            in_channels=channels,
            out_channels=out,
            features=features,
            convs=convs - 2,
            scale=scale,
            activation=activation,
        )


def _check_channels(channels: int, what: str) -> None:
    if channels not in _PICTURE_CHANNELS:
        raise ConfigError(f"it {what} channels, a picture has one of {list(_PICTURE_CHANNELS)}")


def _choose(shapes: Iterable[Shape], stated: Mapping[str, Any]) -> Shape:
    """The likeliest of the shapes that agree with what is stated."""
    described = [(shape, shape_to_dict(shape)) for shape in shapes]
    contradicted = [
        [name for name in stated if facts.get(name) != _plain(stated[name])]
        for _, facts in described
    ]
    agreeing = [
        shape for (shape, _), wrong in zip(described, contradicted, strict=True) if not wrong
    ]
    if not agreeing:
        nearest = min(range(len(described)), key=lambda i: len(contradicted[i]))
        facts = described[nearest][1]
        raise ConfigError(
            ", ".join(
                f"{name}: {stated[name]!r} is stated, {facts.get(name, 'nothing')!r} is in the file"
                for name in contradicted[nearest]
            )
        )
    _refuse_to_guess(agreeing)
    return agreeing[0]


def _refuse_to_guess(shapes: list[Shape]) -> None:
    activations = sorted({s.activation for s in shapes if isinstance(s, SRVGGShape)})
    if len(activations) > 1:
        raise ConfigError(
            f"its tensors do not tell whether it was trained with {' or '.join(activations)}: "
            "state `activation` in a model YAML"
        )


def _spelled(names: Iterable[str], shape: Shape, layout: str) -> list[str]:
    """The file's names for the network's own parameter names."""
    if isinstance(shape, SRVGGShape):
        return list(names)
    own, theirs = _modules(shape, _OWN), _modules(shape, _SPELLINGS[layout])
    modules = dict(zip(own, theirs, strict=True))
    split = (name.rpartition(".") for name in names)
    return [f"{modules[module]}.{parameter}" for module, _, parameter in split]


def _modules(shape: RRDBNetShape, spelling: _Spelling) -> Iterator[str]:
    """The names of all modules with parameters, in one order for all spellings."""
    ups3 = 3 * len(shape.upsampling)
    yield spelling.first
    for n, d in product(range(shape.blocks), (1, 2, 3)):
        yield from (spelling.conv.format(n=n, d=d, c=c) for c in range(1, 6))
        yield spelling.conv1x1.format(n=n, d=d)
    yield spelling.trunk.format(blocks=shape.blocks)
    for i in range(1, len(shape.upsampling) + 1):
        yield spelling.up.format(i=i, i3=3 * i)
    yield spelling.hr.format(ups3_2=ups3 + 2)
    yield spelling.last.format(ups3_4=ups3 + 4)


def _conv_size(sizes: Sizes, module: str) -> tuple[int, int]:
    """Output and input channels of a convolution."""
    size = sizes.get(f"{module}.weight")
    if size is None:
        raise ConfigError(f"{module}.weight is missing among {summary(sizes)}")
    if len(size) != 4 or 0 in size:
        raise ConfigError(f"{module}.weight is {list(size)}, not the weight of a convolution")
    return size[0], size[1]


def _compare(expected: Sizes, found: Sizes) -> None:
    problems = {
        "missing": [name for name in expected if name not in found],
        "not part of the network": [name for name in found if name not in expected],
        "of another size": [
            f"{name} {list(found[name])} instead of {list(size)}"
            for name, size in expected.items()
            if name in found and found[name] != size
        ],
    }
    texts = [
        f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''})"
        for what, names in problems.items()
        if names
    ]
    if texts:
        raise ConfigError(f"of its {len(expected)} tensors: {'; '.join(texts)}")


def _length(holds: Iterable[bool]) -> int:
    """How many are true before the first that is not."""
    return next(index for index, true in enumerate(holds) if not true)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
