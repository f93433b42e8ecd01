"""PNG's texts, and the profiles that old programs wrote into them."""

import zlib
from collections.abc import Callable

from pipeline.images.walk import (
    EXIF_IN_JPEG,
    RAW_PROFILE,
    XMP_IN_JPEG,
)

KINDS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
"""The chunks that hold texts."""
EXIF_KEYWORDS = tuple(RAW_PROFILE.lower() + kind for kind in (b"exif", b"app1"))
"""Where EXIF stood before it had a chunk of its own, in small letters."""

_KEYWORD_BYTES = 79
# The language and the translated keyword of an international text; no program writes the latter.
_PREAMBLE_BYTES = 1000
_MOST_EXIF_TEXT = 2**20
_RAW_PROFILES = {b"exif": "exif", b"xmp": "xmp", b"iptc": "iptc", b"icc": "icc", b"icm": "icc"}

Inflate = Callable[[memoryview], bytes | None]


def keyword(body: memoryview) -> bytes:
    """What a chunk's text is about; empty if it does not say."""
    return bytes(body[: _KEYWORD_BYTES + 1]).rpartition(b"\0")[0].partition(b"\0")[0]


def content(kind: bytes, rest: memoryview, inflate: Inflate) -> bytes | memoryview | None:
    """The text of a chunk of that kind, without its keyword; None if it is broken."""
    if kind == b"tEXt":
        return rest
    if kind == b"zTXt":
        return inflate(rest[1:])
    head = bytes(rest[2 : 2 + _PREAMBLE_BYTES])
    language = head.find(b"\0")
    translated = head.find(b"\0", language + 1)
    if language < 0 or translated < 0:
        return None
    text = rest[2 + translated + 1 :]
    return inflate(text) if rest[0] else text


def exif(kind: bytes, body: memoryview) -> bytes:
    """EXIF in a chunk with one of EXIF_KEYWORDS; empty if there is none, or more than a camera
    writes."""
    text = content(kind, body[len(keyword(body)) + 1 :], _inflated)
    found = raw_profiles(bytes(text)) if text and len(text) <= _MOST_EXIF_TEXT else None
    return next((block for kind, block in found or () if kind == "exif"), b"")


def _inflated(stream: memoryview) -> bytes | None:
    try:
        return zlib.decompressobj().decompress(stream, _MOST_EXIF_TEXT + 1)
    except zlib.error:
        return None


def raw_profiles(text: bytes) -> list[tuple[str, bytes]] | None:
    """ImageMagick's way: a line with the kind, one with the length, the rest in hexadecimals.

    The blocks, each icc, exif, xmp, iptc or photoshop (image resources); none of another kind; None
    if the text is broken.
    """
    lines = text.strip().split(b"\n", 2)
    try:
        block = bytes.fromhex(lines[2].decode("ascii"))
        if len(block) != int(lines[1]):
            return None
    except (IndexError, ValueError):
        return None
    if block.startswith(EXIF_IN_JPEG):
        return [("exif", block[len(EXIF_IN_JPEG) :])]
    if block.startswith(XMP_IN_JPEG):
        return [("xmp", block[len(XMP_IN_JPEG) :])]
    if block.startswith(b"8BIM"):
        return [("photoshop", block)]
    kind = _RAW_PROFILES.get(lines[0].strip().lower())
    return [(kind, block)] if kind else []
