"""The metadata that a file holds, block by block, as it stands there. Whether a block makes sense
is not asked here.

PNG's and JPEG's are in modules of their own.
"""

import math
import struct
from collections.abc import Callable, Iterator

from pipeline.errors import DecodeError
from pipeline.images import exif, jpeg_blocks, png_blocks, pnm, tiff_tags
from pipeline.images.found import Found, without
from pipeline.images.ifd import Data
from pipeline.images.walk import EXIF_IN_JPEG, gif_blocks, gif_joined, jp2_boxes, riff_chunks

_UUIDS = {
    bytes.fromhex("be7acfcb97a942e89c71999491e3afac"): "xmp",
    bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38"): "iptc",
    b"JpgTiffExif->JP2": "exif",
}
_JP2_SRGB = {16: False, 17: True, 18: False}  # RGB, gray, and YCbCr of which RGB is made
# What needs no word when it is left out: how a file stores its samples, frames and previews. Of all
# else is said that it is lost.
_WEBP_STRUCTURE = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"})
_JP2_STRUCTURE = frozenset({b"jP  ", b"ftyp", b"jp2c", b"rreq", b"free", b"skip"})
_JP2_HEADERS = frozenset({b"ihdr", b"bpcc", b"pclr", b"cmap", b"cdef", b"colr"})
_GIF_CONTROL, _GIF_APPLICATION, _GIF_TEXTS = 0xF9, 0xFF, (0xFE, 0x01)
_GIF_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")
_GIF_XMP_TAIL = 257  # bytes that lead a reader of parts to the end, wherever it comes from
_BMP_EMBEDDED_PROFILE, _BMP_SRGB = b"DEBM", b"BGRs"


def find(data: Data, format: str, *, page: int, at: int = 0, limit: int) -> Found:
    """The blocks of a file. Raises TooLargeError, and DecodeError as `walk` does."""
    found = Found(limit)
    finders: dict[str, Callable[[bytes, Found], None]] = {
        "png": png_blocks.find,
        "jpeg": jpeg_blocks.find,
        "webp": _in_webp,
        "jpeg2000": _in_jpeg2000,
        "gif": _in_gif,
        "bmp": _in_bmp,
        "pnm": _in_pnm,
    }
    if format == "tiff":
        _in_tiff(data, found, page, at)
    elif format in finders:
        assert isinstance(data, bytes), "only a TIFF is mapped"
        finders[format](data, found)
    return found


def _in_webp(data: bytes, found: Found) -> None:
    kinds = {b"ICCP": "icc", b"EXIF": "exif", b"XMP ": "xmp"}
    for kind, body, is_whole in riff_chunks(data):
        if not is_whole:
            break
        if kind in kinds:
            found.add(kinds[kind], without(EXIF_IN_JPEG, body))
        elif kind == b"C2PA":
            found.warn("c2pa_dropped")
        elif any(kind) and kind not in _WEBP_STRUCTURE:
            found.warn("blocks_dropped")


def _in_tiff(data: Data, found: Found, page: int, at: int) -> None:
    try:
        tags = tiff_tags.read(data, page, found.take, at=at)
    except exif.BrokenExifError:
        found.warn("exif_broken")
        return
    names = {tiff_tags.XMP: "xmp", tiff_tags.ICC: "icc", tiff_tags.IPTC: "iptc"}
    found.blocks |= {names[tag]: tags.blocks[tag] for tag in sorted(names & tags.blocks.keys())}
    if "iptc" in found.blocks:
        found.blocks["iptc"] = _unswapped(found.blocks["iptc"])
    found.add_resources(tags.blocks.get(tiff_tags.PHOTOSHOP, b""))
    if tags.exif:
        found.blocks["exif"] = tags.exif
    found.dpi, found.aspect = tags.resolution, tags.aspect
    said = {
        "exif_repaired": tags.incomplete,
        "maker_note_moved": tags.moved,
        "tiff_tags_dropped": tags.others,
        "c2pa_dropped": tags.signed,
    }
    for code in (code for code, holds in said.items() if holds):
        found.warn(code)


def _unswapped(iptc: bytes) -> bytes:
    """Some write it as 32-bit numbers, and others turned those round with the byte order."""
    if iptc[:1] == b"\x1c" or iptc[3:4] != b"\x1c":
        return iptc
    return b"".join(iptc[at : at + 4][::-1] for at in range(0, len(iptc), 4))


def _in_jpeg2000(data: bytes, found: Found) -> None:
    named: bool | None = None
    for kind, body in _whole_boxes(data):
        if kind == b"uuid" and (known := _UUIDS.get(bytes(body[:16]))):
            found.add(known, without(EXIF_IN_JPEG, body[16:]))
        elif kind == b"jp2h":
            for inner, content in _whole_boxes(body):
                if inner == b"colr" and len(content) > 3 and content[0] in (2, 3):
                    found.add("icc", content[3:])
                elif inner == b"colr" and len(content) >= 7 and content[0] == 1:
                    named = _JP2_SRGB.get(int.from_bytes(content[3:7], "big"), named)
                elif inner == b"res ":
                    _note_jp2_resolution(found, content)
                elif inner not in _JP2_HEADERS:
                    found.warn("blocks_dropped")
        elif kind not in _JP2_STRUCTURE:
            found.warn("blocks_dropped")
    if named is not None:
        found.name_srgb(gray=named)


def _whole_boxes(data: bytes | memoryview) -> Iterator[tuple[bytes, memoryview]]:
    return ((kind, body) for kind, body, is_whole in jp2_boxes(data) if is_whole)


def _note_jp2_resolution(found: Found, body: memoryview) -> None:
    """As captured, or else as to be shown: pixels a metre as fractions with a power of ten."""
    try:
        boxes = {kind: content for kind, content in _whole_boxes(body) if len(content) == 10}
    except DecodeError:
        return
    stated = boxes.get(b"resc", boxes.get(b"resd"))
    if not stated:
        return
    down, by_down, across, by_across, ten_down, ten_across = struct.unpack(">HHHHbb", stated)
    if by_down and by_across:
        sides = across / by_across * 10.0**ten_across, down / by_down * 10.0**ten_down
        if all(map(math.isfinite, sides)):
            found.per_metre(*sides)


def _in_gif(data: bytes, found: Found) -> None:
    for label, _, parts, end in gif_blocks(data):
        if label is None:
            continue
        if end > len(data):
            break
        behind = min(parts + 1 + data[parts], end - 1)
        first, rest = data[parts + 1 : behind], data[behind : end - 1]
        if label in _GIF_TEXTS:
            found.warn("text_dropped")
        elif label == _GIF_APPLICATION and first == b"ICCRGBG1012":
            found.add("icc", gif_joined(rest))
        elif label == _GIF_APPLICATION and first == b"XMP DataXMP":
            found.add("xmp", rest[:-_GIF_XMP_TAIL])  # it has no lengths
        elif label != _GIF_CONTROL and first not in _GIF_LOOPS:
            found.warn("blocks_dropped")


def _in_pnm(data: bytes, found: Found) -> None:
    if pnm.rest(data).strip():
        found.warn("blocks_dropped")


def _in_bmp(data: bytes, found: Found) -> None:
    """Of Windows' headers; sRGB is named in those of version 4, a profile is in those of 5."""
    if len(data) < 54 or int.from_bytes(data[14:18], "little") < 40:
        return
    across, down = struct.unpack_from("<ii", data, 38)
    if across > 0 and down > 0:
        found.per_metre(across, down)
    if len(data) >= 138 and data[14] == 124 and data[70:74] == _BMP_EMBEDDED_PROFILE:
        start, size = struct.unpack_from("<II", data, 126)
        found.add("icc", memoryview(data)[14 + start :][:size])
    # A palette may hold only grays, for which this is no profile.
    is_palette = int.from_bytes(data[28:30], "little") <= 8
    if data[14] in (108, 124) and data[70:74] == _BMP_SRGB and not is_palette:
        found.name_srgb(gray=False)
