"""The metadata that a file holds, block by block, as it stands there. Whether a block makes sense
is not asked here.
"""

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.errors import TooLargeError
from pipeline.images import exif, png_text, pnm, profiles, tiff_tags, xmp, xmp_edit
from pipeline.images.ifd import Data
from pipeline.images.levels import palette_channels
from pipeline.images.walk import (
    APP0,
    APP1,
    APP2,
    APP13,
    APP14,
    COM,
    EXIF_IN_JPEG,
    EXTENDED_XMP,
    ICC_IN_JPEG,
    IPTC_RESOURCE,
    JFIF,
    METRES_PER_INCH,
    PHOTOSHOP,
    RAW_PROFILE,
    XMP_IN_JPEG,
    XMP_IN_PNG,
    begins,
    gif_extensions,
    gif_joined,
    image_resources,
    jp2_boxes,
    jpeg_segments,
    png_chunks,
    riff_chunks,
)

_APP11 = 0xEB
_UUIDS = {
    bytes.fromhex("be7acfcb97a942e89c71999491e3afac"): "xmp",
    bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38"): "iptc",
    b"JpgTiffExif->JP2": "exif",
}
# In PNG's hundred thousandths: 1 / 2.2; x and y of white, red, green and blue.
_SRGB_GAMMA = (45_455,)
_SRGB_COLOURS = (31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000)
_NEAR = 100
# PNG's code points for it: primaries, curve, no matrix, full range.
_SRGB_POINTS = b"\1\x0d\0\1"
_JP2_SRGB = {16: False, 17: True, 18: False}  # RGB, gray, and YCbCr of which RGB is made
# What needs no word when it is left out: how a file stores its samples, frames and previews, and
# copies of what is kept elsewhere. Of all else is said that it is lost.
_PNG_STRUCTURE = frozenset(
    {b"IDAT", b"IEND", b"tRNS", b"hIST", b"acTL", b"fcTL", b"fdAT", b"gAMA", b"cHRM", b"pHYs"}
)
_JPEG_STRUCTURE = frozenset({*range(0xC0, 0xD0), *range(0xDB, 0xE0)})
_JPEG_BEGINNINGS = {APP0: (JFIF, b"JFXX\0"), APP2: (b"MPF\0",), APP14: (b"Adobe",)}
_WEBP_STRUCTURE = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"})
_JP2_STRUCTURE = frozenset({b"jP  ", b"ftyp", b"jp2c", b"rreq", b"free", b"skip"})
_JP2_HEADERS = frozenset({b"ihdr", b"bpcc", b"pclr", b"cmap", b"cdef", b"colr"})
# Resolution, thumbnails, and IPTC with its checksum.
_RESOURCE_COPIES = frozenset({0x03ED, 0x0409, 0x040C, IPTC_RESOURCE, 0x0425})
_GIF_CONTROL, _GIF_APPLICATION, _GIF_TEXTS = 0xF9, 0xFF, (0xFE, 0x01)
_GIF_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")
_GIF_XMP_TAIL = 257  # bytes that lead a reader of parts to the end, wherever it comes from
_BMP_EMBEDDED_PROFILE, _BMP_SRGB = b"DEBM", b"BGRs"


@dataclass(slots=True)
class Blocks:
    """What was found. The first block of a kind counts."""

    limit: int
    """limits.max_metadata_bytes."""
    found: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """icc, exif, xmp and iptc."""
    dpi: tuple[float, float] | None = None
    """Pixels an inch, across and down as stored."""
    warnings: dict[str, None] = field(default_factory=dict[str, None])
    """Codes of what is left out or broken, each once, in order."""
    taken: int = 0

    def take(self, size: int) -> None:
        """Counts bytes before they are copied. Raises TooLargeError."""
        self.taken += size
        if self.taken > self.limit:
            raise TooLargeError(
                "metadata_too_large",
                f"{self.taken:,} bytes of metadata and maybe more, limit {self.limit:,} "
                "(limits.max_metadata_bytes)",
            )

    def add(self, kind: str, block: bytes | memoryview) -> None:
        """Keeps a block, unless there is one of its kind. Raises TooLargeError."""
        if kind not in self.found and len(block):
            self.take(len(block))
            self.found[kind] = bytes(block)

    def warn(self, code: str) -> None:
        """Notes a code."""
        self.warnings[code] = None

    def name_srgb(self, *, gray: bool) -> None:
        """Notes that the samples are in sRGB; a profile counts for more."""
        self.found.setdefault("icc", profiles.srgb(gray=gray))

    def per_metre(self, across: float, down: float) -> None:
        """Notes the resolution."""
        self.dpi = across * METRES_PER_INCH, down * METRES_PER_INCH

    def inflated(self, stream: bytes | memoryview) -> bytes | None:
        """What a zlib stream holds; None if it is broken. Raises TooLargeError."""
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(stream, self.limit - self.taken + 1)
        except zlib.error:
            return None
        if len(data) > self.limit - self.taken:
            self.take(len(data))
        return data if inflater.eof else None


def find(data: Data, format: str, *, page: int, at: int = 0, limit: int) -> Blocks:
    """The blocks of a file. Raises TooLargeError."""
    blocks = Blocks(limit)
    finders: dict[str, Callable[[bytes, Blocks], None]] = {
        "png": _in_png,
        "jpeg": _in_jpeg,
        "webp": _in_webp,
        "jpeg2000": _in_jpeg2000,
        "gif": _in_gif,
        "bmp": _in_bmp,
        "pnm": _in_pnm,
    }
    if format == "tiff":
        _in_tiff(data, blocks, page, at)
    elif format in finders:
        assert isinstance(data, bytes), "only a TIFF is mapped"
        finders[format](data, blocks)
    return blocks


def _in_png(data: bytes, blocks: Blocks) -> None:
    broken = {b"iCCP": "icc_broken", b"sRGB": "icc_broken", b"eXIf": "exif_broken"}
    broken |= dict.fromkeys(png_text.KINDS, "text_broken")
    later, gray, is_srgb = list[tuple[str, bytes]](), False, False
    for kind, body, intact in png_chunks(data):
        if kind in broken and not intact:
            blocks.warn(broken[kind])
        elif kind == b"iCCP":
            _add_inflated(blocks, "icc", bytes(body[:82]).find(b"\0") + 2, body)
        elif kind == b"eXIf":
            blocks.add("exif", _without(EXIF_IN_JPEG, body))
        elif kind == b"pHYs" and len(body) == 9 and body[8] == 1:
            blocks.per_metre(*struct.unpack(">II", body[:8]))
        elif kind == b"caBX":
            blocks.warn("c2pa_dropped")
        elif kind == b"IHDR":
            gray = bytes(body[9:10]) in (b"\0", b"\4")
        elif kind == b"PLTE":
            gray = gray or palette_channels(bytes(body)) == 1
        elif kind == b"sRGB" or (kind == b"cICP" and bytes(body) == _SRGB_POINTS):
            is_srgb = True
        elif kind == b"cICP" or _is_other(kind, body):
            blocks.warn("gamma_dropped")
        elif kind in png_text.KINDS:
            _add_text(blocks, kind, body, later)
        elif kind not in _PNG_STRUCTURE:
            blocks.warn("blocks_dropped")
    # The old ways count where there is no new one.
    for kind, block in later:
        if kind == "photoshop":
            _add_iptc(blocks, block)
        else:
            blocks.add(kind, block)
    if is_srgb:
        blocks.name_srgb(gray=gray)
    if "icc" in blocks.found:
        blocks.warnings.pop("gamma_dropped", None)  # a profile overrules them


def _is_other(kind: bytes, body: memoryview) -> bool:
    """Whether a chunk gives a curve or primaries that are not sRGB's."""
    usual = {b"gAMA": _SRGB_GAMMA, b"cHRM": _SRGB_COLOURS}.get(kind, ())
    if not usual or len(body) != 4 * len(usual):
        return False
    stated = struct.unpack(f">{len(usual)}I", body)
    return any(abs(one - other) > _NEAR for one, other in zip(stated, usual, strict=True))


def _add_inflated(blocks: Blocks, kind: str, start: int, body: memoryview) -> None:
    """A block after a keyword, a zero and the method of compression."""
    data = blocks.inflated(body[start:]) if start > 1 and begins(body[start - 1 :], b"\0") else None
    if data:
        blocks.add(kind, data)
    else:
        blocks.warn(f"{kind}_broken")


def _add_text(
    blocks: Blocks, kind: bytes, body: memoryview, later: list[tuple[str, bytes]]
) -> None:
    """XMP, or what old programs wrote into texts; other texts have no place in a result."""
    keyword = png_text.keyword(body)
    if keyword != XMP_IN_PNG and not keyword.lower().startswith(RAW_PROFILE.lower()):
        blocks.warn("text_dropped")
        return
    content = png_text.content(kind, body[len(keyword) + 1 :], blocks.inflated)
    if content is None:
        blocks.warn("xmp_broken" if keyword == XMP_IN_PNG else "text_broken")
    elif keyword == XMP_IN_PNG:
        blocks.add("xmp", content)
    else:
        blocks.take(len(content))
        found = png_text.raw_profiles(bytes(content))
        later += found or []
        if not found:
            blocks.warn("text_broken" if found is None else "blocks_dropped")


def _without(prefix: bytes, block: memoryview) -> memoryview:
    return block[len(prefix) :] if begins(block, prefix) else block


def _in_jpeg(data: bytes, blocks: Blocks) -> None:
    profile, resources, extended = list[memoryview](), list[bytes](), list[memoryview]()
    for marker, body, *_ in jpeg_segments(data):
        if marker == APP0 and begins(body, JFIF) and len(body) >= 12:
            _note_density(blocks, *struct.unpack_from(">BHH", body, 7))
        elif marker == APP1 and begins(body, EXIF_IN_JPEG):
            blocks.add("exif", body[6:])
        elif marker == APP1 and begins(body, XMP_IN_JPEG):
            blocks.add("xmp", body[len(XMP_IN_JPEG) :])
        elif marker == APP1 and begins(body, EXTENDED_XMP):
            blocks.take(len(body))
            extended.append(body[len(EXTENDED_XMP) :])
        elif marker == APP2 and begins(body, ICC_IN_JPEG):
            profile.append(body[len(ICC_IN_JPEG) :])
        elif marker == APP13 and begins(body, PHOTOSHOP):
            blocks.take(len(body))
            resources.append(bytes(body[len(PHOTOSHOP) :]))
        elif marker == _APP11 and b"c2pa" in bytes(body[:200]):
            blocks.warn("c2pa_dropped")
        elif marker == COM:
            blocks.warn("text_dropped")
        elif not _is_jpeg_structure(marker, body):
            blocks.warn("blocks_dropped")
    _join_profile(blocks, profile)
    _join_extended(blocks, extended)
    _add_iptc(blocks, b"".join(resources))


def _is_jpeg_structure(marker: int, body: memoryview) -> bool:
    beginnings = _JPEG_BEGINNINGS.get(marker, ())
    return marker in _JPEG_STRUCTURE or any(begins(body, one) for one in beginnings)


def _note_density(blocks: Blocks, unit: int, across: int, down: int) -> None:
    per_inch = {1: 1.0, 2: 2.54}.get(unit)
    if per_inch:
        blocks.dpi = across * per_inch, down * per_inch


def _join_profile(blocks: Blocks, pieces: list[memoryview]) -> None:
    """A profile is cut in pieces, each with its number, from 1, and how many there are."""
    if not pieces:
        return
    blocks.take(sum(map(len, pieces)))
    ordered = sorted((bytes(piece) for piece in pieces), key=lambda piece: piece[:2])
    count = len(ordered)
    if [tuple(piece[:2]) for piece in ordered] == [(index + 1, count) for index in range(count)]:
        blocks.found["icc"] = b"".join(piece[2:] for piece in ordered)
    else:
        blocks.warn("icc_broken")


def _join_extended(blocks: Blocks, pieces: list[memoryview]) -> None:
    """The pieces that the packet itself names, each with the whole's length and its place in it."""
    if not pieces or "xmp" not in blocks.found:
        return
    try:
        packet = xmp.normalised(blocks.found["xmp"])
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
        blocks.found["xmp"] = xmp_edit.joined(packet, xmp.normalised(bytes(whole)))
    except (xmp.BrokenXmpError, struct.error):
        blocks.warn("xmp_extension_dropped")


def _add_iptc(blocks: Blocks, resources: bytes) -> None:
    for number, content in image_resources(resources):
        if number == IPTC_RESOURCE:
            blocks.add("iptc", content)
        if number not in _RESOURCE_COPIES:
            blocks.warn("blocks_dropped")


def _in_webp(data: bytes, blocks: Blocks) -> None:
    kinds = {b"ICCP": "icc", b"EXIF": "exif", b"XMP ": "xmp"}
    for kind, body in riff_chunks(data):
        if kind in kinds:
            blocks.add(kinds[kind], _without(EXIF_IN_JPEG, body))
        elif kind == b"C2PA":
            blocks.warn("c2pa_dropped")
        elif any(kind) and kind not in _WEBP_STRUCTURE:
            blocks.warn("blocks_dropped")


def _in_tiff(data: Data, blocks: Blocks, page: int, at: int) -> None:
    try:
        tags = tiff_tags.read(data, page, blocks.take, at=at)
    except exif.BrokenExifError:
        blocks.warn("exif_broken")
        return
    names = {tiff_tags.XMP: "xmp", tiff_tags.ICC: "icc", tiff_tags.IPTC: "iptc"}
    blocks.found |= {names[tag]: tags.blocks[tag] for tag in sorted(names & tags.blocks.keys())}
    if "iptc" in blocks.found:
        blocks.found["iptc"] = _unswapped(blocks.found["iptc"])
    _add_iptc(blocks, tags.blocks.get(tiff_tags.PHOTOSHOP, b""))
    if tags.exif:
        blocks.found["exif"] = tags.exif
    blocks.dpi = tags.resolution
    said = {
        "exif_repaired": tags.incomplete,
        "maker_note_moved": tags.moved,
        "tiff_tags_dropped": tags.others,
        "c2pa_dropped": tags.signed,
    }
    for code in (code for code, holds in said.items() if holds):
        blocks.warn(code)


def _unswapped(iptc: bytes) -> bytes:
    """Some write it as 32-bit numbers, and others turned those round with the byte order."""
    if iptc[:1] == b"\x1c" or iptc[3:4] != b"\x1c":
        return iptc
    return b"".join(iptc[at : at + 4][::-1] for at in range(0, len(iptc), 4))


def _in_jpeg2000(data: bytes, blocks: Blocks) -> None:
    named: bool | None = None
    for kind, body in jp2_boxes(memoryview(data)):
        if kind == b"uuid" and (known := _UUIDS.get(bytes(body[:16]))):
            blocks.add(known, _without(EXIF_IN_JPEG, body[16:]))
        elif kind == b"jp2h":
            for inner, content in jp2_boxes(body):
                if inner == b"colr" and len(content) > 3 and content[0] in (2, 3):
                    blocks.add("icc", content[3:])
                elif inner == b"colr" and len(content) >= 7 and content[0] == 1:
                    named = _JP2_SRGB.get(int.from_bytes(content[3:7], "big"), named)
                elif inner == b"res ":
                    _note_jp2_resolution(blocks, content)
                elif inner not in _JP2_HEADERS:
                    blocks.warn("blocks_dropped")
        elif kind not in _JP2_STRUCTURE:
            blocks.warn("blocks_dropped")
    if named is not None:
        blocks.name_srgb(gray=named)


def _note_jp2_resolution(blocks: Blocks, body: memoryview) -> None:
    """As captured, or else as to be shown: pixels a metre as fractions with a power of ten."""
    boxes = {kind: content for kind, content in jp2_boxes(body) if len(content) == 10}
    stated = boxes.get(b"resc", boxes.get(b"resd"))
    if not stated:
        return
    down, by_down, across, by_across, ten_down, ten_across = struct.unpack(">HHHHbb", stated)
    if by_down and by_across:
        sides = across / by_across * 10.0**ten_across, down / by_down * 10.0**ten_down
        if all(map(math.isfinite, sides)):
            blocks.per_metre(*sides)


def _in_gif(data: bytes, blocks: Blocks) -> None:
    for label, first, rest in gif_extensions(data):
        if label in _GIF_TEXTS:
            blocks.warn("text_dropped")
        elif label == _GIF_APPLICATION and first == b"ICCRGBG1012":
            blocks.add("icc", gif_joined(rest))
        elif label == _GIF_APPLICATION and first == b"XMP DataXMP":
            blocks.add("xmp", rest[:-_GIF_XMP_TAIL])  # it has no lengths
        elif label != _GIF_CONTROL and first not in _GIF_LOOPS:
            blocks.warn("blocks_dropped")


def _in_pnm(data: bytes, blocks: Blocks) -> None:
    if pnm.rest(data).strip():
        blocks.warn("blocks_dropped")


def _in_bmp(data: bytes, blocks: Blocks) -> None:
    """Of Windows' headers; sRGB is named in those of version 4, a profile is in those of 5."""
    if len(data) < 54 or int.from_bytes(data[14:18], "little") < 40:
        return
    across, down = struct.unpack_from("<ii", data, 38)
    if across > 0 and down > 0:
        blocks.per_metre(across, down)
    if len(data) >= 138 and data[14] == 124 and data[70:74] == _BMP_EMBEDDED_PROFILE:
        start, size = struct.unpack_from("<II", data, 126)
        blocks.add("icc", memoryview(data)[14 + start :][:size])
    # A palette may hold only grays, for which this is no profile.
    is_palette = int.from_bytes(data[28:30], "little") <= 8
    if data[14] in (108, 124) and data[70:74] == _BMP_SRGB and not is_palette:
        blocks.name_srgb(gray=False)
