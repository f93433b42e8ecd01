"""JPEG 2000: the boxes of JP2 and the codestream's header, and samples as stored."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import imagecodecs
import numpy as np
import PIL.Jpeg2KImagePlugin

from pipeline.errors import DecodeError, UnsupportedError
from pipeline.images import exif, jp2_channels
from pipeline.images.image import Facts, Samples
from pipeline.images.jp2_channels import Channels
from pipeline.images.walk import Block, jp2_boxes

BOXES = b"\0\0\0\x0cjP  \r\n\x87\n"
CODESTREAM = b"\xff\x4f\xff\x51"

_SOT, _EOC = 0xFF90, 0xFFD9
_LEAST_PART = 14  # bytes of a tile-part: its header and the mark of its data

_SUPERBOXES = {b"jp2h"}
_EXIF = b"JpgTiffExif->JP2"


@dataclass(frozen=True, slots=True)
class _Size:
    """The codestream's SIZ."""

    width: int
    height: int
    depths: tuple[int, ...]
    """Bits of each component, negative where it is signed."""
    subsampled: bool


def facts(data: bytes) -> Facts:
    """Raises DecodeError or UnsupportedError."""
    boxes, size, channels = _read(data)
    turned = exif.turned(boxes.get(_EXIF, b""))
    made = len(channels.wanted)
    if channels.palette:
        names = {"none": "P", "straight": "PA", "premultiplied": "Pa"}
        made -= 2 * channels.palette_is_gray
        return Facts(
            "jpeg2000",
            names[channels.alpha],
            channels.depth,
            1,
            size.width,
            size.height,
            made,
            "palette",
            channels.alpha,
            turned,
        )
    mode = channels.space + {"none": "", "straight": "A"}.get(channels.alpha, "a")
    # Inks become red, green and blue.
    made -= channels.colour == "cmyk"
    return Facts(
        "jpeg2000",
        mode,
        channels.depth,
        1,
        size.width,
        size.height,
        made,
        channels.colour,
        channels.alpha,
        turned,
    )


def samples(data: bytes, said: Facts) -> tuple[Samples, tuple[str, ...]]:
    """(height, width, channels) in full range, warnings; palettes and YCbCr as RGB."""
    _, size, channels = _read(data)
    dropped = ("extra_samples_dropped",) * bool(channels.spare)
    if channels.is_sycc or size.subsampled:
        if said.bit_depth > 8:
            message = f"{said.bit_depth} bits in sYCC or with less chroma"
            raise UnsupportedError("unsupported_depth", f"{message}, up to 8 are read")
        # Only Pillow resolves these.
        with PIL.Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(data)) as opened:
            names = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
            found = np.asarray(opened.convert(names[said.channels]), np.uint8)
            return found.reshape(said.height, said.width, -1), dropped
    # Of the codestream alone: given the boxes too, the codec converts to sRGB by their profile,
    # and resolves no palette; Pillow makes one entry of those that are equal.
    found = imagecodecs.jpeg2k_decode(_codestream(data), numthreads=1)
    found = found.reshape(said.height, said.width, len(size.depths))
    return channels.resolved(found), dropped


def _read(data: bytes) -> tuple[dict[bytes, bytes], _Size, Channels]:
    """Raises DecodeError or UnsupportedError."""
    boxes = _boxes(data)
    size = _size(boxes[b"jp2c"])
    if min(size.depths) < 0 or len({*size.depths}) > 1:
        signs = ", ".join(f"{'signed ' * (d < 0)}{abs(d)}" for d in size.depths)
        raise UnsupportedError("unsupported_depth", f"components of {signs} bits")
    return boxes, size, jp2_channels.read(boxes, len(size.depths), size.depths[0])


def is_whole(data: bytes) -> bool:
    """Whether the codestream's end mark stands where its last tile ends.

    OpenJPEG decodes without a word what was blank from some byte on.
    """
    try:
        return _has_its_end(memoryview(_codestream(data)))
    except (DecodeError, struct.error):
        return False


def _has_its_end(stream: memoryview) -> bool:
    """Raises struct.error where it is cut short."""
    at = 2  # after SOC, which stands alone
    while (marker := _short(stream, at)) not in (_SOT, _EOC):
        at += 2 + _short(stream, at + 2)
    while marker == _SOT:
        (part,) = struct.unpack_from(">I", stream, at + 6)
        if 0 < part < _LEAST_PART:
            return False
        at = at + part if part else len(stream) - 2  # 0: the last one, up to the end
        marker = _short(stream, at)
    return marker == _EOC


def _short(stream: memoryview, at: int) -> int:
    return int(struct.unpack_from(">H", stream, at)[0])


def _size(codestream: bytes) -> _Size:
    if codestream[:4] != CODESTREAM:
        raise DecodeError("decode_failed", f"no codestream: {codestream[:4]!r}")
    right, below, left, top = struct.unpack_from(">4I", codestream, 8)
    (components,) = struct.unpack_from(">H", codestream, 40)
    parts = struct.unpack_from(f">{3 * components}B", codestream, 42)
    depths = tuple(((part & 127) + 1) * (-1 if part & 128 else 1) for part in parts[::3])
    if right <= left or below <= top or not depths:
        message = f"an area from {left}, {top} to {right}, {below} with {components} components"
        raise DecodeError("decode_failed", message)
    steps = {*parts[1::3], *parts[2::3]}
    return _Size(right - left, below - top, depths, steps != {1})


def _boxes(data: bytes) -> dict[bytes, bytes]:
    """What is in each kind of box, the first of each; of large ones their beginning.

    Those of users are of as many kinds as there are identifiers.
    """
    if data.startswith(CODESTREAM):
        return {b"jp2c": data[: 42 + 3 * 16_384]}
    found: dict[bytes, bytes] = {}
    for kind, part, _ in _parts(data):
        body = bytes(part[:65_536])
        name, content = (body[:16], body[16:]) if kind == b"uuid" else (kind, body)
        found.setdefault(name, content)
    return found


def _parts(data: bytes) -> Iterator[Block]:
    """The boxes, and those in a header; a header whose size is wrong may have all that follows."""
    for kind, body, is_whole in jp2_boxes(data):
        if kind in _SUPERBOXES:
            yield from jp2_boxes(body)
        yield kind, body, is_whole


def _codestream(data: bytes) -> bytes:
    """The samples as they are coded. Raises DecodeError."""
    if data.startswith(CODESTREAM):
        return data
    for kind, body, _ in _parts(data):
        if kind == b"jp2c":
            return bytes(body)
    raise DecodeError("decode_failed", "no codestream")
