"""Colour profiles: of which pictures one is, and sRGB's for files that only name it.

Formats: ICC.1:2022 (profiles); IEC 61966-2-1 (sRGB).
"""

import struct

from pipeline.images.colour import srgb_profile

GRAY, RGB = b"GRAY", b"RGB "
"""The colour spaces of `space`."""

_WHITE = (0xF6D6, 0x10000, 0xD32D)  # D50 in 1/65,536, as every profile has it
# Of sRGB's curve: (a x + b) ^ g from d on, below that c x.
_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_HEADER_BYTES, _ROW_BYTES = 128, 12


def space(profile: bytes) -> bytes:
    """The four letters of the colour space that a profile is for."""
    return profile[16:20]


def srgb(*, gray: bool) -> bytes:
    """sRGB as a profile, for gray pictures one with its curve and white; always the same bytes."""
    return _gray_srgb() if gray else srgb_profile()


def _gray_srgb() -> bytes:
    fixed = [round(value * 65_536) for value in _CURVE]
    tags = {
        b"cprt": _text("No copyright, use freely"),
        b"desc": _text("Gray with the curve of sRGB"),
        b"kTRC": struct.pack(">4s4xHH5i", b"para", 3, 0, *fixed),
        b"wtpt": struct.pack(">4s4x3i", b"XYZ ", *_WHITE),
    }
    rows, values = bytearray(struct.pack(">I", len(tags))), bytearray()
    start = _HEADER_BYTES + len(rows) + len(tags) * _ROW_BYTES
    for name, value in tags.items():
        rows += struct.pack(">4sII", name, start + len(values), len(value))
        values += value + bytes(-len(value) % 4)
    size = start + len(values)
    made = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    head = struct.pack(">I4xI4s4s4s12s4s", size, 0x04400000, b"mntr", GRAY, b"XYZ ", made, b"acsp")
    head = head.ljust(68, b"\0") + struct.pack(">3i", *_WHITE)
    return head.ljust(_HEADER_BYTES, b"\0") + bytes(rows) + bytes(values)


def _text(text: str) -> bytes:
    """In one language, `mluc`."""
    body = text.encode("utf-16-be")
    return struct.pack(">4s4xII2s2sII", b"mluc", 1, 12, b"en", b"US", len(body), 28) + body
