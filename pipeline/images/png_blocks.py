"""The metadata of a PNG: profile, EXIF, resolution and texts, which hold XMP and IPTC.

Format: W3C, PNG (third edition), of 24 June 2025.
"""

import struct

from pipeline.images import png_text
from pipeline.images.found import Found, without
from pipeline.images.levels import palette_channels
from pipeline.images.walk import EXIF_IN_JPEG, RAW_PROFILE, XMP_IN_PNG, begins, png_chunks

# In PNG's hundred thousandths: 1 / 2.2; x and y of white, red, green and blue.
_SRGB_GAMMA = (45_455,)
_SRGB_COLOURS = (31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000)
_NEAR = 100
# PNG's code points for it: primaries, curve, no matrix, full range.
_SRGB_POINTS = b"\1\x0d\0\1"
# What needs no word when it is left out: how a file stores its samples, frames and previews, and
# copies of what is kept elsewhere. Of all else is said that it is lost.
_PNG_STRUCTURE = frozenset(
    {b"IDAT", b"IEND", b"tRNS", b"hIST", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"cHRM", b"pHYs"}
)


def find(data: bytes, found: Found) -> None:
    """Raises TooLargeError or DecodeError."""
    broken = {b"iCCP": "icc_broken", b"sRGB": "icc_broken", b"eXIf": "exif_broken"}
    broken |= dict.fromkeys(png_text.KINDS, "text_broken")
    later, gray, is_srgb = list[tuple[str, bytes]](), False, False
    for kind, body, intact in png_chunks(data, broken):
        if intact is None:
            break
        if not intact:
            found.warn(broken[kind])
        elif kind == b"iCCP":
            _add_inflated(found, "icc", bytes(body[:82]).find(b"\0") + 2, body)
        elif kind == b"eXIf":
            found.add("exif", without(EXIF_IN_JPEG, body))
        elif kind == b"pHYs" and len(body) == 9 and body[8] < 2:
            sides = struct.unpack(">II", body[:8])
            if body[8]:
                found.per_metre(*sides)
            else:
                found.aspect = sides
        elif kind == b"caBX":
            found.warn("c2pa_dropped")
        elif kind == b"IHDR":
            gray = bytes(body[9:10]) in (b"\0", b"\4")
        elif kind == b"PLTE":
            gray = gray or palette_channels(bytes(body)) == 1
        elif kind == b"sRGB" or (kind == b"cICP" and bytes(body) == _SRGB_POINTS):
            is_srgb = True
        elif kind == b"cICP" or _is_other(kind, body):
            found.warn("gamma_dropped")
        elif kind in png_text.KINDS:
            _add_text(found, kind, body, later)
        elif kind not in _PNG_STRUCTURE:
            found.warn("blocks_dropped")
    # The old ways count where there is no new one.
    for kind, block in later:
        if kind == "photoshop":
            found.add_resources(block)
        else:
            found.add(kind, block)
    if is_srgb:
        found.name_srgb(gray=gray)
    if "icc" in found.blocks:
        found.warnings.pop("gamma_dropped", None)  # a profile overrules them


def _is_other(kind: bytes, body: memoryview) -> bool:
    """Whether a chunk gives a curve or primaries that are not sRGB's."""
    usual = {b"gAMA": _SRGB_GAMMA, b"cHRM": _SRGB_COLOURS}.get(kind, ())
    if not usual or len(body) != 4 * len(usual):
        return False
    stated = struct.unpack(f">{len(usual)}I", body)
    return any(abs(one - other) > _NEAR for one, other in zip(stated, usual, strict=True))


def _add_inflated(found: Found, kind: str, start: int, body: memoryview) -> None:
    """A block after a keyword, a zero and the method of compression."""
    data = found.inflated(body[start:]) if start > 1 and begins(body[start - 1 :], b"\0") else None
    if data:
        found.add(kind, data)
    else:
        found.warn(f"{kind}_broken")


def _add_text(found: Found, kind: bytes, body: memoryview, later: list[tuple[str, bytes]]) -> None:
    """XMP, or what old programs wrote into texts; other texts have no place in a result."""
    keyword = png_text.keyword(body)
    if keyword != XMP_IN_PNG and not keyword.lower().startswith(RAW_PROFILE.lower()):
        found.warn("text_dropped")
        return
    content = png_text.content(kind, body[len(keyword) + 1 :], found.inflated)
    if content is None:
        found.warn("xmp_broken" if keyword == XMP_IN_PNG else "text_broken")
    elif keyword == XMP_IN_PNG:
        found.add("xmp", content)
    else:
        found.take(len(content))
        profiles = png_text.raw_profiles(bytes(content))
        later += profiles or []
        if not profiles:
            found.warn("text_broken" if profiles is None else "blocks_dropped")
