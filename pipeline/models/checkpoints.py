"""Checkpoints: from the bytes of a file that nobody vouches for to a network that is ready to run.

A checkpoint is a pickle in the two formats of `torch.save`, or a safetensors file. Somewhere in it,
under whatever dicts and prefixes, are the tensors of a generator; it is found by its names, and
averaged weights are preferred. Nothing in a file is ever run: pickles go through the restricted
reader of torch (`weights_only`), and whatever is wrong with a file comes out as one ConfigError.
"""

import io
import lzma
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models import layouts
from pipeline.models.layouts import Generator, Shape

# The largest generator in circulation has 0.3 GB; with optimizer and discriminator, 2 GB.
MAX_BYTES = 4 * 2**30
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

# Imports that torch's restricted reader knows how to do safely, besides its own.
_HARMLESS = frozenset(
    ("collections.OrderedDict", "collections.Counter", "_codecs.encode", "__builtin__.set")
)

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_FOREIGN = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a Git LFS pointer: `git lfs pull` fetches the file itself",
    b"<": "an HTML or XML page",
}

# What the readers raise on broken files: found by half a million mutated ones, and by crafted
# pickles that ask for terabytes (OverflowError, MemoryError).
_BROKEN_PICKLE = (
    pickle.UnpicklingError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    zlib.error,
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
    leave open.
    Raises ConfigError, which says what was found, for whatever is no usable checkpoint of an
    RRDBNet or SRVGGNetCompact, or contradicts what is stated.
    """
    name = "the checkpoint" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else _read(Path(source))
        file_format, content, held = _parse(data)
        return _recognise(_flatten(content), file_format, held, stated)
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


def _parse(data: bytes) -> tuple[str, Any, int]:
    """The format, by the first bytes; what is in the file; the bytes that its values can have."""
    if data.startswith(_ZIP):
        return "zipped pickle", *_load_zip(data)
    if data.startswith(_PICKLE):
        return "pickle", _unpickle(data, pickles=data), len(data)
    if data[8:9] == b"{":
        return "safetensors", _load_safetensors(data), len(data)
    raise ConfigError(f"not a checkpoint but {_foreign(data)}")


def _foreign(data: bytes) -> str:
    if not data:
        return "an empty file"
    known = (what for magic, what in _FOREIGN.items() if data.startswith(magic))
    return next(known, f"an unknown file, its first bytes are {data[:8].hex(' ')}")


def _load_safetensors(data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError) as error:
        raise ConfigError(f"a broken safetensors file: {_reason(error)}") from error


def _load_zip(data: bytes) -> tuple[Any, int]:
    """Content and unpacked size; that is looked at before torch allocates it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
            names = [member.filename for member in archive.infolist()]
            if claimed > MAX_BYTES:
                raise ConfigError(f"its {len(names)} members claim {claimed:,} bytes")
            if any(name.endswith("/constants.pkl") for name in names):
                raise ConfigError("a TorchScript program; wanted is a state dict")
            pickles = next((name for name in names if name.endswith("/data.pkl")), None)
            if pickles is None:
                raise ConfigError(f"a zip archive of {', '.join(names[:_SHOWN]) or 'nothing'}")
            script = archive.read(pickles)
    except _BROKEN_ZIP as error:
        raise ConfigError(f"a broken or truncated zip archive: {_reason(error)}") from error
    return _unpickle(data, pickles=script), claimed


def _unpickle(data: bytes, *, pickles: bytes) -> Any:
    """Let torch's restricted reader have the file. pickles: what of it starts with its pickles."""
    foreign = [n for n in _imports(pickles) if n not in _HARMLESS and not n.startswith("torch.")]
    if foreign:
        raise ConfigError(
            f"refused: loading it would run or import {', '.join(foreign[:_SHOWN])}; "
            "get it as safetensors, or save its state dict alone"
        )
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _BROKEN_PICKLE as error:
        raise ConfigError(f"a broken or refused pickle: {_reason(error)}") from error


def _imports(pickles: bytes) -> list[str]:
    """What the pickles ask to import; nothing is run."""
    stream, names, strings = io.BytesIO(pickles), dict[str, None](), list[str]()
    try:
        for _ in range(5):  # a file of the old format holds five pickles, then raw storages
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "STACK_GLOBAL":
                    names[".".join(strings[-2:])] = None
                elif opcode.name in ("GLOBAL", "INST"):
                    names[str(argument).replace(" ", ".")] = None
                elif isinstance(argument, str):
                    strings.append(argument)
    except ValueError:  # it ends or breaks off here
        pass
    return list(names)


def _reason(error: BaseException) -> str:
    """The sentence of torch's that says what is wrong, without its advice to trust the file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [
        line for line in lines if not line.startswith(("Weights only", "Check the doc", "Please"))
    ]
    return f"{type(error).__name__}: {(told or lines or [''])[0][:200]}".rstrip(": ")


def _printable(text: str) -> str:
    """On one line and of bounded length: names in a file may be anything."""
    plain = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return plain if len(plain) <= _LONGEST_MESSAGE else f"{plain[:_LONGEST_MESSAGE]} …"


# ------------------------------------------------------------------------------------ content


def _flatten(content: Any) -> dict[str, Any]:
    """What is in nested dicts, by dotted paths: a dict's name and a prefix become the same."""
    if not isinstance(content, Mapping):
        raise ConfigError(f"holds no dict of tensors but {type(content).__name__}")
    leaves = dict(islice(_leaves(content, "", _MAX_DEPTH), _MAX_ENTRIES + 1))
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


def _recognise(
    leaves: Mapping[str, Any], file_format: str, held: int, stated: Mapping[str, Any] | None
) -> Checkpoint:
    prefix = _locate(leaves)
    own = {
        path: value
        for path, value in leaves.items()
        if path.startswith(prefix) and not _is_beside(path[len(prefix) :], value)
    }
    tensors = {path[len(prefix) :]: _weights(path, value) for path, value in own.items()}
    _check_claims(tensors, held)
    found = layouts.match({name: tuple(t.shape) for name, t in tensors.items()}, stated)
    return Checkpoint(
        shape=found.shape,
        state_dict={name: _full(theirs, tensors[theirs]) for name, theirs in found.names.items()},
        file_format=file_format,
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


def _check_claims(tensors: Mapping[str, Tensor], held: int) -> None:
    """Refuse views that repeat values, and storages beyond the file: before they are copied."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors.values()
    }
    claimed = sum(tensor.numel() * 4 for tensor in tensors.values())
    if sum(storages.values()) > held or claimed > MAX_BYTES:
        raise ConfigError(f"its tensors claim {claimed:,} bytes, the file has {held:,}")


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
