"""JPEG's segments: what its header says, and whether all its samples are there."""

import re
import struct
from collections.abc import Iterator

import simplejpeg

from pipeline.errors import DecodeError
from pipeline.images import exif, ifd
from pipeline.images.image import Colour, Facts
from pipeline.images.walk import EXIF_IN_JPEG

END = b"\xff\xd9"

_MPF_IMAGES = 0xB001
# Frames of JPEG that hold samples; the other markers of that range are tables.
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SOS, _EOI, _APP1, _APP2, _APP14 = 0xDA, 0xD9, 0xE1, 0xE2, 0xEE
# In coded samples FF 00 is a sample's byte, FF D0 to FF D7 are restarts, FF FF is padding.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
# What libjpeg says where it makes samples up. Bytes left over it mentions too: cameras write them.
_GAP = re.compile(r"premature end|bad Huffman code|bad arithmetic code|found marker")


def segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers with what belongs to each, up to the end of the picture or of the file."""
    at = 2
    while found := _MARKER.search(data, at):
        marker, at = data[found.start() + 1], found.end()
        if marker == _EOI:
            yield marker, b""
            return
        if marker in (0x01, 0xD8):  # these stand alone
            continue
        (length,) = struct.unpack_from(">H", data, at)
        yield marker, data[at + 2 : at + length]
        at += length


def is_whole(data: bytes, tables: bytes | None = None) -> bool:
    """Whether the picture's end is marked, and no data are missing before: decoders go on in gray.

    tables: a TIFF's, which stand before its strips and tiles, as a JPEG of their own.
    """
    try:
        ended = any(marker == _EOI for marker, _ in segments(data))
    except struct.error:
        return False
    return ended and not _has_gap(tables[: -len(END)] + data[2:] if tables else data)


def _has_gap(data: bytes) -> bool:
    """Decodes all data, to an eighth of the size, as Pillow and imagecodecs hold warnings back.

    Nothing is known of what this binding does not read, as are 12 bits.
    """
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        return bool(_GAP.search(str(error)))
    return False


def facts(data: bytes) -> Facts:
    frame, adobe, stream, frames = b"", -1, b"", 1
    for marker, body in segments(data):
        if marker in _SOF:
            frame = body
        elif marker == _APP1 and body.startswith(EXIF_IN_JPEG):
            stream = stream or body[len(EXIF_IN_JPEG) :]
        elif marker == _APP14 and body.startswith(b"Adobe"):
            adobe = body[11]
        elif marker == _APP2 and body.startswith(b"MPF\0"):
            frames = _mpf_images(body[4:])
        elif marker == _SOS:
            break
    depth, height, width, components = struct.unpack_from(">BHHB", frame)
    four: Colour = "ycck" if adobe == 2 else "cmyk"
    kinds: dict[int, tuple[Colour, str]] = {1: ("gray", "L"), 3: ("rgb", "RGB"), 4: (four, "CMYK")}
    colour, mode = kinds.get(components, ("other", f"{components}"))
    channels = 1 if components == 1 else 3
    turned = exif.turned(stream)
    return Facts("jpeg", mode, depth, frames, width, height, channels, colour, orientation=turned)


def _mpf_images(block: bytes) -> int:
    """How many pictures a camera put into one file: previews, gain maps, views."""
    try:
        stream = ifd.stream(block)
        return max(1, stream.directory(stream.first).number(_MPF_IMAGES, 1))
    except (DecodeError, struct.error):
        return 1
