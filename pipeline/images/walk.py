"""The blocks that PNG, JPEG, WebP, JPEG 2000 and GIF files are made of, one after another.

One walker for each format, for its header, its metadata and its samples alike. A block that the
file's end cuts short is the last one, and known as cut; a JPEG's is left out. There is an end to
how many blocks are walked.

Formats: W3C, PNG (third edition), of 24 June 2025; ITU-T T.81 and T.871 (JPEG, JFIF); ISO/IEC
15444-1 annex I (JP2); Google, WebP Container Specification; Adobe, Photoshop File Formats;
CompuServe, GIF89a.
"""

import re
from collections.abc import Container, Iterator
from struct import Struct
from typing import NamedTuple

from isal.isal_zlib import crc32

from pipeline.errors import DecodeError

JFIF = b"JFIF\0"
EXIF_IN_JPEG = b"Exif\0\0"
XMP_IN_JPEG = b"http://ns.adobe.com/xap/1.0/\0"
EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
ICC_IN_JPEG = b"ICC_PROFILE\0"
PHOTOSHOP = b"Photoshop 3.0\0"
IPTC_RESOURCE = 0x0404
XMP_IN_PNG = b"XML:com.adobe.xmp"
RAW_PROFILE = b"Raw profile type "

METRES_PER_INCH = 0.0254
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

APP0, APP1, APP2, APP13, APP14, COM = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE
SOS, EOI = 0xDA, 0xD9
_STANDALONE = (0x01, 0xD8)  # TEM and SOI, without a length
# In coded samples FF 00 is a sample's byte, FF D0 to FF D7 are restarts, FF FF is padding.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")

_GIF_EXTENSION, _GIF_FRAME = 0x21, 0x2C

# No file that means well has more: a gigabyte of PNG in the usual 8 KiB pieces has an eighth.
_MOST_BLOCKS = 2**20
_MOST_BOXES = 10_000  # of JPEG 2000

_PNG_HEAD, _RIFF_HEAD, _JP2_HEAD = Struct(">I4s"), Struct("<4sI"), Struct(">I4s")
_JPEG_LENGTH = Struct(">H")


Block = tuple[bytes, memoryview, bool]
"""Of a WebP or JPEG 2000 file: its kind, what there is of its contents, and whether that is all.

Plain tuples, as those of the other walkers: a header is read in microseconds.
"""


class GifBlock(NamedTuple):
    """A frame or an extension."""

    label: int | None
    """The extension's; None for a frame."""
    start: int
    parts: int
    """Where the parts begin that hold its contents, each after its length."""
    end: int
    """May lie beyond the file's."""


def png_chunks(
    data: bytes, checked: Container[bytes] = ()
) -> Iterator[tuple[bytes, memoryview, bool | None]]:
    """Kind, contents and whether they are intact of the chunks up to IEND; None where one is cut.

    checked: the kinds whose checksums are compared; the others are taken for intact. Raises
    DecodeError.
    """
    view, at = memoryview(data), len(PNG_SIGNATURE)
    for _ in range(_MOST_BLOCKS):
        if at + 8 > len(data):
            return
        size, kind = _PNG_HEAD.unpack_from(data, at)
        end = at + 8 + size
        if end + 4 > len(data):
            yield kind, view[at + 8 : end], None
            return
        intact = kind not in checked or (
            crc32(view[at + 4 : end]) == int.from_bytes(data[end : end + 4])
        )
        yield kind, view[at + 8 : end], intact
        if kind == b"IEND":
            return
        at = end + 4
    raise _too_many("chunks", _MOST_BLOCKS)


def jpeg_segments(data: bytes) -> Iterator[tuple[int, memoryview, int, int]]:
    """Marker, contents, beginning and end of the whole segments up to EOI, which is one of them.

    What lies between them is passed over, as decoders do: coded samples most of all. Raises
    DecodeError.
    """
    view, at = memoryview(data), 2
    for _ in range(_MOST_BLOCKS):
        found = _MARKER.search(data, at)
        if not found:
            return
        at = found.end()
        marker = data[at - 1]
        if marker in _STANDALONE:
            continue
        if marker == EOI:
            yield marker, view[at:at], at - 2, at
            return
        if at + 2 > len(data):
            return
        (size,) = _JPEG_LENGTH.unpack_from(data, at)
        end = at + (size if size > 2 else 2)
        if end > len(data):
            return
        yield marker, view[at + 2 : end], at - 2, end
        at = end
    raise _too_many("segments", _MOST_BLOCKS)


def riff_chunks(data: bytes | memoryview) -> Iterator[Block]:
    """The chunks of a WebP file. Raises DecodeError."""
    view, at = memoryview(data), 12
    for _ in range(_MOST_BLOCKS):
        if at + 8 > len(data):
            return
        kind, size = _RIFF_HEAD.unpack_from(data, at)
        end = at + 8 + size
        yield kind, view[at + 8 : end], end <= len(data)
        at = end + size % 2
    raise _too_many("chunks", _MOST_BLOCKS)


def jp2_boxes(data: bytes | memoryview) -> Iterator[Block]:
    """The boxes of a JPEG 2000 file, or of a box that holds boxes. Raises DecodeError."""
    view, at = memoryview(data), 0
    for _ in range(_MOST_BOXES):
        if at + 8 > len(data):
            return
        size, kind = _JP2_HEAD.unpack_from(data, at)
        header = 8
        if size == 1:
            if at + 16 > len(data):
                return
            size, header = int.from_bytes(data[at + 8 : at + 16]), 16
        size = size or len(data) - at  # 0: to the end
        if size < header:
            raise DecodeError("decode_failed", f"a box of {size} bytes")
        yield kind, view[at + header : at + size], at + size <= len(data)
        at += size
    raise _too_many("boxes", _MOST_BOXES)


def gif_blocks(data: bytes) -> Iterator[GifBlock]:
    """The extensions and frames of a GIF. Raises DecodeError."""
    at = 13 + gif_palette_bytes(data, 10)
    for _ in range(_MOST_BLOCKS):
        if at >= len(data) or data[at] not in (_GIF_EXTENSION, _GIF_FRAME):
            return
        if at + 2 > len(data):
            raise DecodeError("decode_failed", f"the file ends too soon ({len(data):,} bytes)")
        is_frame = data[at] == _GIF_FRAME
        # A frame has its own palette, and the least width of the codes.
        parts = at + (10 + gif_palette_bytes(data, at + 9) + 1 if is_frame else 2)
        end = parts
        while end < len(data) and data[end]:  # each part after its length
            end += 1 + data[end]
        yield GifBlock(None if is_frame else data[at + 1], at, parts, end + 1)
        at = end + 1
    raise _too_many("blocks", _MOST_BLOCKS)


def gif_joined(parts: bytes) -> bytes:
    """The contents of parts that stand after their lengths."""
    found, at = bytearray(), 0
    while at < len(parts):
        found += parts[at + 1 : at + 1 + parts[at]]
        at += 1 + parts[at]
    return bytes(found)


def gif_palette_bytes(data: bytes, at: int) -> int:
    """Bytes of the palette that the flags there tell of."""
    flags = data[at] if at < len(data) else 0
    return 6 << (flags & 7) if flags & 0x80 else 0


def image_resources(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and contents of each of Photoshop's image resources (`8BIM`)."""
    at = 0
    for _ in range(_MOST_BLOCKS):
        if data[at : at + 4] != b"8BIM" or at + 7 > len(data):
            return
        number = int.from_bytes(data[at + 4 : at + 6], "big")
        name = 1 + data[at + 6]  # a Pascal string, padded to an even length
        at += 6 + name + name % 2
        size = int.from_bytes(data[at : at + 4], "big")
        if at + 4 + size > len(data):
            return
        yield number, data[at + 4 : at + 4 + size]
        at += 4 + size + size % 2


def begins(block: memoryview, prefix: bytes) -> bool:
    """Whether a block begins so."""
    return bytes(block[: len(prefix)]) == prefix


def _too_many(what: str, most: int) -> DecodeError:
    return DecodeError("decode_failed", f"more than {most:,} {what}")
