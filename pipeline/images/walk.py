"""The blocks that PNG, JPEG, WebP, JPEG 2000 and GIF files are made of, one after another.

A file that is cut short ends where its last whole block ends.

Formats: W3C, PNG (third edition), of 24 June 2025; ITU-T T.81 and T.871 (JPEG, JFIF); ISO/IEC
15444-1 annex I (JP2); Google, WebP Container Specification; Adobe, Photoshop File Formats;
CompuServe, GIF89a.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

JFIF = b"JFIF\0"
EXIF_IN_JPEG = b"Exif\0\0"
XMP_IN_JPEG = b"http://ns.adobe.com/xap/1.0/\0"
EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
ICC_IN_JPEG = b"ICC_PROFILE\0"
PHOTOSHOP = b"Photoshop 3.0\0"
IPTC_RESOURCE = 0x0404
XMP_IN_PNG = b"XML:com.adobe.xmp"
RAW_PROFILE = b"Raw profile type "

APP0, APP1, APP2, APP13, APP14, COM = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE
_GIF_EXTENSION, _GIF_FRAME = 0x21, 0x2C
_SOS, _EOI = 0xDA, 0xD9
_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
METRES_PER_INCH = 0.0254
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# No file that means well has more blocks: a gigabyte of PNG in pieces of 8 KiB has half of them.
_MOST_BLOCKS = 2**18
_NOT_FILL = re.compile(rb"[^\xff]")


class Segment(NamedTuple):
    """A JPEG marker segment before the first scan."""

    marker: int
    body: memoryview
    start: int
    end: int


def png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
    """Kind, contents and whether the checksum is right, of each whole chunk in order."""
    view, at = memoryview(data), len(PNG_SIGNATURE)
    for _ in range(_MOST_BLOCKS):
        if at + 12 > len(data):
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + size > len(data):
            return
        body = view[at + 8 : at + 8 + size]
        # The samples' checksums are the decoder's business.
        (stated,) = struct.unpack_from(">I", data, at + 8 + size)
        yield kind, body, kind == b"IDAT" or zlib.crc32(body, zlib.crc32(kind)) == stated
        at += 12 + size


def jpeg_segments(data: bytes) -> Iterator[Segment]:
    """The whole segments before the first scan, in order."""
    view, at = memoryview(data), 2
    for _ in range(_MOST_BLOCKS):
        if data[at : at + 1] != b"\xff" or not (marker := _NOT_FILL.search(data, at)):
            return
        at, kind = marker.start() - 1, data[marker.start()]
        if kind in (_SOS, _EOI, 0) or kind in _STANDALONE or at + 4 > len(data):
            return
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + size
        if size < 2 or end > len(data):
            return
        yield Segment(kind, view[at + 4 : end], at, end)
        at = end


def riff_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and contents of each whole chunk of a WebP file."""
    view, at = memoryview(data), 12
    for _ in range(_MOST_BLOCKS):
        if at + 8 > len(data):
            return
        kind, size = struct.unpack_from("<4sI", data, at)
        if at + 8 + size > len(data):
            return
        yield kind, view[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def jp2_boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and contents of each box of a JPEG 2000 file, or of a box that holds boxes."""
    at = 0
    for _ in range(_MOST_BLOCKS):
        if at + 8 > len(data):
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        header = 8
        if size == 1 and at + 16 <= len(data):
            (size,), header = struct.unpack_from(">Q", data, at + 8), 16
        size = size or len(data) - at  # 0: to the end
        if size < header or at + size > len(data):
            return
        yield kind, data[at + header : at + size]
        at += size


def gif_extensions(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Label, first part and all that follows as it stands, lengths included, of each extension."""
    at = 13 + _gif_palette(data, 10)
    for _ in range(_MOST_BLOCKS):
        if at + 2 > len(data) or data[at] not in (_GIF_EXTENSION, _GIF_FRAME):
            return
        is_frame = data[at] == _GIF_FRAME
        start = at + (11 + _gif_palette(data, at + 9) if is_frame else 2)
        end = start
        while end < len(data) and data[end]:  # each part after its length
            end += 1 + data[end]
        if end >= len(data):
            return
        if not is_frame:
            behind = min(start + 1 + data[start], end)
            yield data[at + 1], data[start + 1 : behind], data[behind:end]
        at = end + 1


def gif_joined(parts: bytes) -> bytes:
    """The contents of parts that stand after their lengths."""
    found, at = bytearray(), 0
    while at < len(parts):
        found += parts[at + 1 : at + 1 + parts[at]]
        at += 1 + parts[at]
    return bytes(found)


def _gif_palette(data: bytes, at: int) -> int:
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
