"""What the sandbox and its children say to each other: heads in JSON, bodies of bytes.

A child may be taken over by what it decodes. So nothing that it says can run code here, as a pickle
could, and it is held to what an answer may be.
"""

import fcntl
import json
import math
import os
import socket
import struct
import weakref
from base64 import b64decode, b64encode
from dataclasses import fields, is_dataclass
from typing import Any, cast, get_args

import numpy as np

from pipeline.errors import CODES, ItemError
from pipeline.images.ifd import Place
from pipeline.images.image import Alpha, Colour, Facts, Image, Metadata, Samples, check

Head = dict[str, Any]

FRAME = struct.Struct("!IQ")
"""Before each message: the bytes of its head and of its body."""

_KINDS = {"uint8": np.uint8, "uint16": np.uint16}
_ERRORS = {kind.__name__: kind for kind in ItemError.__subclasses__()}


class Shared:
    """A file that each child maps: nothing of it goes through a pipe, however often it is asked of.

    It is sealed: a child that is taken over cannot change it for the next.
    """

    def __init__(self, data: bytes) -> None:
        """Linux only. Raises OSError where there is no memory."""
        self.descriptor = os.memfd_create("picture", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.descriptor)
        self._bytes = len(data)
        with open(self.descriptor, "wb", closefd=False) as file:
            file.write(data)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)

    def __len__(self) -> int:
        return self._bytes


def send(pipe: socket.socket, head: Head, body: bytes | memoryview | Shared = b"") -> None:
    """Writes one message; behind one with a shared file comes a byte that has its descriptor."""
    if isinstance(body, Shared):
        _send_said(pipe, head | {"shared": True}, 0)
        socket.send_fds(pipe, [b"\0"], [body.descriptor])
        return
    _send_said(pipe, head, len(body))
    if body:
        pipe.sendall(body)


def _send_said(pipe: socket.socket, head: Head, body_bytes: int) -> None:
    said = json.dumps(head, default=_as_json).encode()
    pipe.sendall(FRAME.pack(len(said), body_bytes) + said)


def read(said: bytes | bytearray) -> Head:
    """A message's head. Raises ValueError or TypeError, as all below."""
    return cast(Head, json.loads(said, object_hook=_from_json))


def head_of_image(image: Image) -> tuple[Head, memoryview]:
    """An image, and its samples."""
    head = {name: value for name, value in _fields(image).items() if name != "pixels"}
    samples = np.ascontiguousarray(image.pixels)
    head["samples"] = {"shape": samples.shape, "dtype": samples.dtype.name}
    return head, samples.data.cast("B")


def head_of_error(error: ItemError) -> Head:
    """An error instead of an answer."""
    said = {"type": type(error).__name__, "code": error.code, "message": str(error)}
    return {"error": said}


def samples_of(head: Head, size: int) -> Samples:
    """Room for an image's samples, of which so many bytes follow."""
    said = head.pop("samples")
    shape, kind = said["shape"], _KINDS[said["dtype"]]
    if math.prod(shape) * kind().itemsize != size:
        raise ValueError(f"{size:,} bytes of {said['dtype']} for {shape}")
    return cast(Samples, np.empty(shape, kind))


def facts_of(head: Head, samples: Samples | None) -> Facts:
    """The answer to `probe`."""
    return _facts(head["facts"])


def pages_of(
    head: Head, samples: Samples | None
) -> tuple[tuple[Facts, ...], tuple[Place | None, ...]]:
    """The answer to `probe_pages`: the pages, and where they are found."""
    if not head["pages"]:
        raise ValueError("no pages")
    pages = tuple(_facts(each) for each in head["pages"])
    starts = head["places"]
    if starts and (len(starts) != len(pages) or {*map(type, starts)} != {int}):
        raise ValueError(f"{starts} of {len(pages)} pages")
    places = tuple(Place(at, len(pages)) for at in starts) or (None,) * len(pages)
    return pages, places


def image_of(head: Head, samples: Samples | None) -> Image:
    """The answer to `decode`."""
    if samples is None:
        raise ValueError("no samples")
    facts, said, warnings = _facts(head["facts"]), _metadata(head["metadata"]), head["warnings"]
    check(samples, facts)
    if type(warnings) is not tuple or not all(type(code) is str for code in warnings):
        raise TypeError("warnings that are no codes")
    return Image(samples, facts, said, warnings)


def error_of(head: Head) -> ItemError | None:
    """The error that was answered, if one was."""
    if "error" not in head:
        return None
    said = head["error"]
    if said["code"] not in CODES:
        raise ValueError(f"no such code: {said['code']}")
    return _ERRORS[said["type"]](said["code"], said["message"])


def _facts(said: Head) -> Facts:
    """What is computed with has to be numbers that there can be."""
    found = Facts(**said)
    counted = (found.width, found.height, found.frames, found.channels, found.bit_depth)
    numbers = (*counted, found.orientation, found.stored_channels, found.metadata_bytes)
    if {*map(type, numbers)} != {int} or {type(found.format), type(found.mode)} != {str}:
        raise TypeError(f"no picture is {said}")
    if found.colour not in get_args(Colour) or found.alpha not in get_args(Alpha):
        raise ValueError(f"no picture is {found.colour}, {found.alpha}")
    broken = min(counted) < 1 or found.channels > 4 or min(numbers) < 0
    if broken or found.orientation not in range(1, 9):
        raise ValueError(f"no picture has {counted}, {found.orientation}")
    return found


def _metadata(said: Head) -> Metadata:
    found = Metadata(**said)
    blocks = (found.icc_profile, found.exif, found.xmp, found.mark, found.iptc)
    if {*map(type, blocks)} - {bytes, type(None)}:
        raise TypeError("metadata that are no bytes")
    if found.dpi is not None:
        across, down = found.dpi
        if not (math.isfinite(across) and math.isfinite(down) and min(across, down) > 0):
            raise ValueError(f"{found.dpi} pixels an inch")
    if found.aspect is not None and not 0 < found.aspect < math.inf:
        raise ValueError(f"pixels of {found.aspect}")
    return found


def _as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": b64encode(value).decode()}
    if is_dataclass(value):
        return _fields(value)
    raise TypeError(f"no answer holds a {type(value).__name__}")


def _from_json(said: Head) -> Any:
    if said.keys() == {"base64"}:
        return b64decode(said["base64"])
    return {name: tuple(v) if isinstance(v, list) else v for name, v in said.items()}


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}
