"""What is in a checkpoint file, read without trust.

The two formats of `torch.save` are pickles, and a pickle is a program. Here it gets two gates: what
it would import is looked through first, then it goes to the restricted reader of torch
(`weights_only`), which runs nothing. Sizes that a file claims are looked at before anyone allocates
them. Whatever is wrong comes out as ConfigError.
"""

import io
import json
import lzma
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.errors import ConfigError

# The largest generator in circulation has 0.3 GB; with optimizer and discriminator, 2 GB.
MAX_BYTES = 4 * 2**30
_SHOWN = 3  # names that an error message lists

# What tensors and plain containers are made of; torch's restricted reader looks again.
_HARMLESS = re.compile(
    r"collections\.(OrderedDict|Counter)|_codecs\.encode|__builtin__\.set"
    r"|torch\.(\w+|_utils\.\w+|_tensor\.\w+|storage\.\w+|serialization\.\w+|nn\.parameter\.\w+)"
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

# What the readers raise on broken files: found with half a million mutated ones.
_BROKEN_PICKLE = (
    pickle.UnpicklingError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
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


@dataclass(frozen=True, slots=True)
class Contents:
    """file_format: its name. tree: what was saved, nested dicts as a rule, tensors on the CPU.
    held_bytes: unpacked size of the file, which no tensor can honestly exceed. metadata: texts that
    a safetensors file says of itself.
    """

    file_format: str
    tree: Any
    held_bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)


def parse(data: bytes) -> Contents:
    """Read a file of a format that its first bytes tell.

    Raises ConfigError for anything else, for what is broken, and for a pickle that wants more than
    to hand out tensors.
    """
    if data.startswith(_ZIP):
        return _load_zip(data)
    if data.startswith(_PICKLE):
        return Contents("pickle", _unpickle(data, pickles=data), len(data))
    if data[8:9] == b"{":
        return Contents("safetensors", _load_safetensors(data), len(data), _metadata(data))
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


def _metadata(data: bytes) -> dict[str, str]:
    """Of a safetensors file that could be read: its library only tells it of files on a disk."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header.get("__metadata__", {})


def _load_zip(data: bytes) -> Contents:
    """Looks through the archive's directory before torch allocates what that claims."""
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
    return Contents("zipped pickle", _unpickle(data, pickles=script), claimed)


def _unpickle(data: bytes, *, pickles: bytes) -> Any:
    """Let torch's restricted reader have the file. pickles: what of it starts with its pickles."""
    foreign = [name for name in _imports(pickles) if not _HARMLESS.fullmatch(name)]
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


def _reason(error: Exception) -> str:
    """The line of a reader's that says what is wrong, without torch's advice to trust the file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if isinstance(error, pickle.UnpicklingError):
        lines = [line for line in reversed(lines) if not line.startswith("Check the documentation")]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(": ")
