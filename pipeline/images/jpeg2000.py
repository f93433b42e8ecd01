"""JPEG 2000: the boxes of JP2 and the codestream's header, and samples as stored."""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import imagecodecs
import numpy as np
import PIL.Jpeg2KImagePlugin

from pipeline.errors import DecodeError, UnsupportedError
from pipeline.images import exif
from pipeline.images.image import Alpha, Colour, Facts, Samples
from pipeline.images.levels import full_range

BOXES = b"\0\0\0\x0cjP  \r\n\x87\n"
CODESTREAM = b"\xff\x4f\xff\x51"

_SOT, _EOC = 0xFF90, 0xFFD9
_LEAST_PART = 14  # bytes of a tile-part: its header and the mark of its data

_SUPERBOXES = {b"jp2h"}
# The enumerated colour spaces that are not gray or RGB.
_ENUMERATED: dict[int, Colour] = {12: "cmyk", 14: "lab"}
_SYCC = 18
_OPACITY, _PREMULTIPLIED = 1, 2
_MOST_BOXES = 10_000
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
    boxes = _boxes(data)
    size = _size(boxes[b"jp2c"])
    if min(size.depths) < 0 or len({*size.depths}) > 1:
        signs = ", ".join(f"{'signed ' * (d < 0)}{abs(d)}" for d in size.depths)
        raise UnsupportedError("unsupported_depth", f"components of {signs} bits")
    depth, components = size.depths[0], len(size.depths)
    turned = exif.turned(boxes.get(_EXIF, b""))
    colour: Colour = "gray" if components < 3 else "rgb"
    method, _, _, enumerated = struct.unpack_from(">BBBI", boxes.get(b"colr", b"").ljust(7, b"\0"))
    if method == 1:
        colour = _ENUMERATED.get(enumerated, colour)
    alpha = _alpha(boxes, components, colour)
    if b"pclr" in boxes:
        colour = "palette"
    channels = {"gray": 1, "palette": _columns(boxes.get(b"pclr", b"\0\0\3"))}.get(colour, 3)
    if not 1 <= channels <= 4:
        raise DecodeError("decode_failed", f"a palette of {channels} columns, 1 to 4 are read")
    if colour == "palette":
        return Facts(
            "jpeg2000", "P", depth, 1, size.width, size.height, channels, colour, orientation=turned
        )
    names = {"gray": "L", "rgb": "RGB", "cmyk": "CMYK", "lab": "LAB"}
    mode = names[colour] + {"none": "", "straight": "A"}.get(alpha, "a")
    spare = components - {"gray": 1, "cmyk": 4}.get(colour, 3) - (alpha != "none")
    if spare:
        raise UnsupportedError(
            "unsupported_colour", f"{components} components, {spare} more than {mode} has"
        )
    channels += alpha != "none"
    return Facts(
        "jpeg2000", mode, depth, 1, size.width, size.height, channels, colour, alpha, turned
    )


def _columns(palette: bytes) -> int:
    """How many a palette has; 1 where its three hold only grays, of 8 bits."""
    columns = palette[2]
    entries = palette[3 + columns :]
    grays = entries and entries[::3] == entries[1::3] == entries[2::3]
    return 1 if columns == 3 and palette[3:6] == b"\7\7\7" and grays else columns


def samples(data: bytes, said: Facts) -> Samples:
    """(height, width, components) in full range; palettes and YCbCr as RGB, of 8 bits."""
    boxes = _boxes(data)
    size = _size(boxes[b"jp2c"])
    is_sycc = boxes.get(b"colr", b"")[:1] == b"\1" and boxes[b"colr"][3:7] == _SYCC.to_bytes(4)
    if said.colour == "palette" or is_sycc or size.subsampled:
        if said.bit_depth > 8:
            message = f"{said.bit_depth} bits in a palette, in sYCC or with less chroma"
            raise UnsupportedError("unsupported_depth", f"{message}, up to 8 are read")
        # Only Pillow resolves these.
        with PIL.Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(data)) as opened:
            names = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
            found = np.asarray(opened.convert(names[said.channels]), np.uint8)
            return found.reshape(said.height, said.width, -1)
    # Of the codestream alone: given the boxes too, the codec converts to sRGB by their profile.
    found = imagecodecs.jpeg2k_decode(_codestream(data), numthreads=1)
    found = found.reshape(said.height, said.width, len(size.depths))
    order = _order(boxes, len(size.depths))
    if order != sorted(order):
        found = found[:, :, order]
    return full_range(found, 2**said.bit_depth - 1)


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


def _alpha(boxes: dict[bytes, bytes], components: int, colour: Colour) -> Alpha:
    """As the channel definitions say; without them a second or fourth component is one."""
    definitions = boxes.get(b"cdef", b"")
    kinds = [kind for _, kind, _ in struct.iter_unpack(">HHH", definitions[2:])]
    if _OPACITY in kinds or _PREMULTIPLIED in kinds:
        return "straight" if _OPACITY in kinds else "premultiplied"
    return "straight" if components in (2, 4) and colour in ("gray", "rgb") else "none"


def _order(boxes: dict[bytes, bytes], components: int) -> list[int]:
    """The components as colours, then opacity. Raises DecodeError.

    A channel definition says which colour, from 1, a component belongs to; 0 is all of them.
    """
    defined = {
        component: (kind, colour)
        for component, kind, colour in struct.iter_unpack(">HHH", boxes.get(b"cdef", b"")[2:])
    }
    if not defined:
        return list(range(components))
    if defined.keys() != set(range(components)):
        raise DecodeError("decode_failed", f"{len(defined)} of {components} components defined")
    return sorted(range(components), key=lambda component: defined[component])


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
    for kind, start, end in _walk(data, 0, len(data)):
        body = data[start : min(end, start + 65_536)]
        name, content = (body[:16], body[16:]) if kind == b"uuid" else (kind, body)
        found.setdefault(name, content)
    return found


def _codestream(data: bytes) -> bytes:
    """The samples as they are coded. Raises DecodeError."""
    if data.startswith(CODESTREAM):
        return data
    for kind, start, end in _walk(data, 0, len(data)):
        if kind == b"jp2c":
            return data[start:end]
    raise DecodeError("decode_failed", "no codestream")


def _walk(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Each box's kind, and where what is in it begins and ends."""
    for _ in range(_MOST_BOXES):
        if at + 8 > end:
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        body = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, body)
            body += 8
        after = at + length if length else end
        if after < body:
            raise DecodeError("decode_failed", f"a box of {length} bytes")
        if kind in _SUPERBOXES:
            yield from _walk(data, body, min(after, end))
        yield kind, body, min(after, len(data))
        at = after
    raise DecodeError("decode_failed", f"more than {_MOST_BOXES:,} boxes")
