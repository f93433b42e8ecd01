"""Checkpoints: from the bytes of a file that nobody vouches for to a network that is ready to run.

Somewhere in a checkpoint, under whatever dicts and prefixes, are the tensors of a generator. It is
found by its names, averaged weights are preferred, and nothing is believed that the tensors do not
bear out. Whatever is wrong with a file comes out as one ConfigError.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models import formats, layouts
from pipeline.models.formats import MAX_BYTES, Contents
from pipeline.models.layouts import Generator, Shape

_MAX_ENTRIES = 100_000
_MAX_DEPTH = 8
_SHOWN = 3  # names that an error message lists
_LONGEST_MESSAGE = 600  # characters
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

# Dicts and prefixes that a generator is found under, the preferred first: averaged weights.
_AVERAGED = ("params_ema", "params-ema", "generator_ema", "model_ema", "state_dict_ema", "ema")
_WRAPPERS = (
    *_AVERAGED,
    *("params", "state_dict", "model_state_dict", "model", "net", "generator", "netG", "module"),
)
# What training leaves beside a generator that has no wrapper of its own.
_BESIDE = frozenset(
    ("discriminator", "netD", "optimizer", "optimizers", "optimizer_state_dict", "scheduler")
)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A generator's weights, checked against its network.

    state_dict: float32 tensors on the CPU, by the network's own parameter names. container: dicts
    and prefixes that they were found under, such as `params_ema`, or "". layout: whose spelling the
    file has. dtype: as stored. dropped: what else was in the file.
    """

    shape: Shape
    state_dict: Mapping[str, Tensor]
    file_format: str
    container: str
    layout: str
    dtype: str
    dropped: tuple[str, ...]


def load(source: str | Path | bytes, *, stated: Mapping[str, Any] | None = None) -> Checkpoint:
    """Read a checkpoint, recognised by its contents alone.

    source: path of a file, or its bytes. stated: architecture and hyper-parameters that are known
    of it (the names of `layouts.shape_to_dict`), any part of them; they decide what the tensors
    leave open, as does what our own exports say of themselves.
    Raises ConfigError, which says what was found, for whatever is no usable checkpoint of an
    RRDBNet or SRVGGNetCompact, or contradicts what is stated.
    """
    name = "the checkpoint" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else _read(Path(source))
        return _recognise(formats.parse(data), stated)
    except ConfigError as error:
        raise ConfigError(f"{name}: {_printable(str(error))}") from error


def build(checkpoint: Checkpoint) -> Generator:
    """The network with these weights: float32, in evaluation mode, without gradients.

    It shares the checkpoint's tensors: who trains it changes them.
    """
    network = layouts.build_empty(checkpoint.shape)
    network.load_state_dict(checkpoint.state_dict, strict=True, assign=True)
    return network.eval().requires_grad_(requires_grad=False)


def blend(checkpoints: Sequence[Checkpoint], weights: Sequence[float]) -> Checkpoint:
    """The weighted sum of checkpoints of one shape ("deep network interpolation").

    X. Wang et al., "Deep Network Interpolation for Continuous Imagery Effect Transition" (2019).
    Raises ConfigError when their shapes differ.
    """
    first = checkpoints[0]
    for other in checkpoints[1:]:
        if other.shape != first.shape:
            raise ConfigError(f"cannot blend different networks: {first.shape} and {other.shape}")
    pairs = list(zip(checkpoints, weights, strict=True))
    mixed = {
        name: torch.stack([part.state_dict[name] * weight for part, weight in pairs]).sum(0)
        for name in first.state_dict
    }
    return replace(first, state_dict=mixed)


def describe(checkpoint: Checkpoint) -> dict[str, str | int]:
    """Facts for a person, in the order of their interest."""
    facts = layouts.shape_to_dict(checkpoint.shape)
    scale, architecture = facts.pop("scale"), facts.pop("architecture")
    return {
        "architecture": architecture,
        "scale": scale,
        "shape": ", ".join(f"{name} {value}" for name, value in facts.items()),
        "parameters": sum(tensor.numel() for tensor in checkpoint.state_dict.values()),
        "radius": checkpoint.shape.radius,
        "file_format": checkpoint.file_format,
        "container": checkpoint.container or "none",
        "layout": checkpoint.layout,
        "dtype": checkpoint.dtype,
        "dropped": ", ".join(checkpoint.dropped) or "nothing",
    }


# -------------------------------------------------------------------------------------- bytes


def _read(path: Path) -> bytes:
    """The file, read once: what is parsed cannot differ from what was looked at."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{size:,} bytes are no checkpoint, the largest have {MAX_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(error.strerror or type(error).__name__) from error


def _printable(text: str) -> str:
    """On one line and of bounded length: names in a file may be anything."""
    plain = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return plain if len(plain) <= _LONGEST_MESSAGE else f"{plain[:_LONGEST_MESSAGE]} …"


# ------------------------------------------------------------------------------------ content


def _flatten(tree: Any) -> dict[str, Any]:
    """What is in nested dicts, by dotted paths: a dict's name and a prefix become the same."""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"holds no dict of tensors but {type(tree).__name__}")
    leaves = dict(islice(_leaves(tree, "", _MAX_DEPTH), _MAX_ENTRIES + 1))
    if len(leaves) > _MAX_ENTRIES:
        raise ConfigError(f"more than {_MAX_ENTRIES:,} entries")
    return leaves


def _leaves(tree: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        path = f"{prefix}{key if isinstance(key, str | int) else type(key).__name__}"
        if isinstance(value, Mapping) and value and depth:
            yield from _leaves(value, f"{path}.", depth - 1)
        else:
            yield path, value


def _recognise(contents: Contents, stated: Mapping[str, Any] | None) -> Checkpoint:
    leaves = _flatten(contents.tree)
    prefix = _locate(leaves)
    own = {
        path: value
        for path, value in leaves.items()
        if path.startswith(prefix) and not _is_beside(path[len(prefix) :], value)
    }
    tensors = {path[len(prefix) :]: _weights(path, value) for path, value in own.items()}
    _check_claims(tensors, contents.held_bytes)
    known = {**layouts.from_metadata(contents.metadata), **(stated or {})}
    found = layouts.match({name: tuple(t.shape) for name, t in tensors.items()}, known)
    return Checkpoint(
        shape=found.shape,
        state_dict={name: _full(theirs, tensors[theirs]) for name, theirs in found.names.items()},
        file_format=contents.file_format,
        container=prefix.rstrip("."),
        layout=found.layout,
        dtype=" and ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()})),
        dropped=_labels([path for path in leaves if path not in own], prefix),
    )


def _locate(leaves: Mapping[str, Any]) -> str:
    """The prefix of the preferred generator. Raises ConfigError when there is none.

    Other tensors may be left out only beside a well-known wrapper: elsewhere what looks like a
    generator may be a part of a larger network.
    """
    sizes = {path: tuple(v.shape) for path, v in leaves.items() if isinstance(v, Tensor)}
    found = {
        path.removesuffix(probe)
        for path in sizes
        for probe in layouts.PROBES.values()
        if path == probe or path.endswith(f".{probe}")
    }
    sound = [
        prefix
        for prefix in found
        if set(prefix.split(".")[:-1]).issubset(_WRAPPERS)
        or all(path.startswith(prefix) for path in sizes)
    ]
    if not sound:
        others = ", ".join(list(leaves)[:_SHOWN]) or "nothing"
        inside = layouts.summary(sizes) if sizes else f"no tensors: {others}"
        raise ConfigError(f"no {' or '.join(layouts.ARCHITECTURES)} in it, but {inside}")
    return min(sound, key=_preference)


def _preference(prefix: str) -> tuple[bool, list[int]]:
    names = prefix.split(".")[:-1]
    order = [_WRAPPERS.index(name) if name in _WRAPPERS else len(_WRAPPERS) for name in names]
    return not set(names).intersection(_AVERAGED), order


def _is_beside(name: str, value: Any) -> bool:
    """Whether an entry is clearly no weight: an epoch, an optimizer's state."""
    named_weight = name.endswith((".weight", ".bias"))
    return name.split(".")[0] in _BESIDE or not (isinstance(value, Tensor) or named_weight)


def _weights(path: str, value: Any) -> Tensor:
    if type(value) not in (Tensor, torch.nn.Parameter):
        raise ConfigError(f"{path} is no tensor but {type(value).__name__}")
    tensor = cast(Tensor, value)
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.device.type != "cpu":
        raise ConfigError(f"{path} is no plain tensor: {tensor.layout} on {tensor.device}")
    if tensor.dtype not in _FLOATS:
        raise ConfigError(f"{path} is {tensor.dtype}, not one of {', '.join(map(str, _FLOATS))}")
    return tensor.detach()


def _check_claims(tensors: Mapping[str, Tensor], held_bytes: int) -> None:
    """Refuse views that repeat values, and storages beyond the file: before they are copied."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors.values()
    }
    claimed = sum(tensor.numel() * 4 for tensor in tensors.values())
    if sum(storages.values()) > held_bytes or claimed > MAX_BYTES:
        raise ConfigError(f"its tensors claim {claimed:,} bytes, the file has {held_bytes:,}")


def _full(name: str, tensor: Tensor) -> Tensor:
    """In float32 and contiguous. Raises ConfigError for NaN and infinity."""
    full = tensor.to(torch.float32).contiguous()
    finite = int(torch.isfinite(full).sum())
    if finite < full.numel():
        raise ConfigError(
            f"{full.numel() - finite:,} of the {full.numel():,} values of {name} are NaN or "
            "infinity: its training diverged, or it is broken"
        )
    return full


def _labels(paths: Sequence[str], prefix: str) -> tuple[str, ...]:
    """What was left out, down to where its path leaves the generator's."""
    own = prefix.split(".")
    labels = Counter[str]()
    for path in paths:
        names = path.split(".")
        both = enumerate(zip(names, own, strict=False))
        shared = next((i for i, (theirs, ours) in both if theirs != ours), len(names))
        labels[".".join(names[: shared + 1])] += 1
    return tuple(f"{label} ({entries})" for label, entries in labels.items())
