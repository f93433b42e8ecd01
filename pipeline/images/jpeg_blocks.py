"""The metadata of a JPEG, which stand in segments of programs, APP0 to APP15.

Formats: ITU-T T.871 (JFIF); ICC.1:2022 annex B; Adobe, XMP Specification, Part 3, of January 2020.
"""

import struct

from pipeline.images import xmp, xmp_edit
from pipeline.images.found import Found
from pipeline.images.walk import (
    APP0,
    APP1,
    APP2,
    APP13,
    APP14,
    COM,
    EOI,
    EXIF_IN_JPEG,
    EXTENDED_XMP,
    ICC_IN_JPEG,
    JFIF,
    PHOTOSHOP,
    SOS,
    XMP_IN_JPEG,
    begins,
    jpeg_segments,
)

_APP11 = 0xEB
_JPEG_STRUCTURE = frozenset({*range(0xC0, 0xD0), *range(0xDB, 0xE0)})
_JPEG_BEGINNINGS = {APP0: (JFIF, b"JFXX\0"), APP2: (b"MPF\0",), APP14: (b"Adobe",)}


def find(data: bytes, found: Found) -> None:
    """Raises TooLargeError or DecodeError."""
    profile, resources, extended = list[memoryview](), list[bytes](), list[memoryview]()
    for marker, body, *_ in jpeg_segments(data):
        if marker in (SOS, EOI):
            break
        if marker == APP0 and begins(body, JFIF) and len(body) >= 12:
            _note_density(found, *struct.unpack_from(">BHH", body, 7))
        elif marker == APP1 and begins(body, EXIF_IN_JPEG):
            found.add("exif", body[6:])
        elif marker == APP1 and begins(body, XMP_IN_JPEG):
            found.add("xmp", body[len(XMP_IN_JPEG) :])
        elif marker == APP1 and begins(body, EXTENDED_XMP):
            found.take(len(body))
            extended.append(body[len(EXTENDED_XMP) :])
        elif marker == APP2 and begins(body, ICC_IN_JPEG):
            profile.append(body[len(ICC_IN_JPEG) :])
        elif marker == APP13 and begins(body, PHOTOSHOP):
            found.take(len(body))
            resources.append(bytes(body[len(PHOTOSHOP) :]))
        elif marker == _APP11 and b"c2pa" in bytes(body[:200]):
            found.warn("c2pa_dropped")
        elif marker == COM:
            found.warn("text_dropped")
        elif not _is_jpeg_structure(marker, body):
            found.warn("blocks_dropped")
    _join_profile(found, profile)
    _join_extended(found, extended)
    found.add_resources(b"".join(resources))


def _is_jpeg_structure(marker: int, body: memoryview) -> bool:
    beginnings = _JPEG_BEGINNINGS.get(marker, ())
    return marker in _JPEG_STRUCTURE or any(begins(body, one) for one in beginnings)


def _note_density(found: Found, unit: int, across: int, down: int) -> None:
    per_inch = {1: 1.0, 2: 2.54}.get(unit)
    if per_inch:
        found.dpi = across * per_inch, down * per_inch
    elif unit == 0:
        found.aspect = across, down


def _join_profile(found: Found, pieces: list[memoryview]) -> None:
    """A profile is cut in pieces, each with its number, from 1, and how many there are."""
    if not pieces:
        return
    found.take(sum(map(len, pieces)))
    ordered = sorted((bytes(piece) for piece in pieces), key=lambda piece: piece[:2])
    count = len(ordered)
    if [tuple(piece[:2]) for piece in ordered] == [(index + 1, count) for index in range(count)]:
        found.blocks["icc"] = b"".join(piece[2:] for piece in ordered)
    else:
        found.warn("icc_broken")


def _join_extended(found: Found, pieces: list[memoryview]) -> None:
    """The pieces that the packet itself names, each with the whole's length and its place in it."""
    if not pieces or "xmp" not in found.blocks:
        return
    try:
        packet = xmp.normalised(found.blocks["xmp"])
        named = xmp.parse(packet).text("xmpNote:HasExtendedXMP").encode()
        whole, at = bytearray(), 0
        ours = [piece for piece in pieces if named and bytes(piece[:32]) == named]
        for piece in sorted(ours, key=lambda piece: bytes(piece[36:40])):
            size, start = struct.unpack_from(">II", piece, 32)
            if start != len(whole):
                break
            whole += piece[40:]
            at = size
        if not whole or len(whole) != at:
            raise xmp.BrokenXmpError(f"{len(whole)} of {at} bytes of extended XMP")
        found.blocks["xmp"] = xmp_edit.joined(packet, xmp.normalised(bytes(whole)))
    except (xmp.BrokenXmpError, struct.error):
        found.warn("xmp_extension_dropped")
