"""Metadata put into PNG, JPEG and WebP files, whoever encoded them.

Formats: W3C, PNG (third edition), of 24 June 2025; ITU-T T.81 and T.871 (JPEG, JFIF); ICC.1:2022
annex B; Adobe, XMP Specification, Part 3, of January 2020; Google, WebP Container Specification.
"""

import hashlib
import struct
import zlib
from collections.abc import Callable

from pipeline.errors import EncodeError
from pipeline.images import exif, profiles, xmp, xmp_edit
from pipeline.images.image import Metadata
from pipeline.images.walk import (
    APP0,
    APP1,
    APP2,
    APP13,
    APP14,
    EOI,
    EXIF_IN_JPEG,
    EXTENDED_XMP,
    ICC_IN_JPEG,
    IPTC_RESOURCE,
    JFIF,
    METRES_PER_INCH,
    PHOTOSHOP,
    PNG_SIGNATURE,
    RAW_PROFILE,
    SOS,
    XMP_IN_JPEG,
    XMP_IN_PNG,
    begins,
    jpeg_segments,
    png_chunks,
    riff_chunks,
)

_PNG_MAX = 2**31 - 1
_WRITTEN_IN_PNG = {b"iCCP", b"eXIf", b"pHYs"}
_SEGMENT_BYTES = 65_533
_STANDARD_XMP_BYTES = 65_502
_EXTENDED_XMP_PIECE = 65_400
_ICC_PIECE = _SEGMENT_BYTES - len(ICC_IN_JPEG) - 2
_VP8X_ICC, _VP8X_ALPHA, _VP8X_EXIF, _VP8X_XMP = 0x20, 0x10, 0x08, 0x04


def embed(file: bytes, format: str, said: Metadata) -> tuple[bytes, tuple[str, ...]]:
    """The file with its metadata, and the codes of what it cannot say.

    file: as an encoder wrote it; format: png, jpeg or webp; said: with a profile of such samples,
    or none, as `metadata.derive` sees to. What it said of these is replaced, so embedding twice is
    embedding once. TIFF has no blocks to put in: its encoder writes tags.
    Raises EncodeError if the file is no such file.
    """
    embedders: dict[str, Callable[[bytes, Metadata], tuple[bytes, tuple[str, ...]]]] = {
        "png": _embed_in_png,
        "jpeg": _embed_in_jpeg,
        "webp": _embed_in_webp,
    }
    try:
        return embedders[format](file, said)
    except (struct.error, IndexError, ValueError) as error:
        raise EncodeError("encode_failed", f"{format}: no metadata fits in: {error}") from error


def _embed_in_png(file: bytes, said: Metadata) -> tuple[bytes, tuple[str, ...]]:
    header, rest = _opened_png(file)
    blocks, dropped = [_png_chunk(b"IHDR", header)], list[str]()
    if said.icc_profile:
        body = b"ICC Profile\0\0" + zlib.compress(said.icc_profile)
        blocks.append(_png_chunk(b"iCCP", body))
    if said.dpi:
        across, down = (round(side / METRES_PER_INCH) for side in said.dpi)
        if min(across, down) > 0 and max(across, down) <= _PNG_MAX:
            blocks.append(_png_chunk(b"pHYs", struct.pack(">IIB", across, down, 1)))
        else:
            dropped.append("dpi_dropped")
    elif said.aspect:
        blocks.append(_png_chunk(b"pHYs", struct.pack(">IIB", *exif.ratio(said.aspect), 0)))
    if said.exif:
        blocks.append(_png_chunk(b"eXIf", said.exif))
    if said.xmp:
        # Not compressed, as XMP's specification wants it: scanners find it without reading PNG.
        blocks.append(_png_chunk(b"iTXt", XMP_IN_PNG + bytes(5) + said.xmp))
    if said.iptc:
        blocks.append(_png_chunk(b"zTXt", _raw_profile(said.iptc)))
    return b"".join([PNG_SIGNATURE, *blocks, *rest]), tuple(dropped)


def _opened_png(file: bytes) -> tuple[bytes, list[memoryview]]:
    """The header's contents, and the parts that follow, less what is written anew."""
    if file[:8] != PNG_SIGNATURE or file[12:16] != b"IHDR":
        raise ValueError("no PNG file")
    kept, at = list[memoryview](), len(PNG_SIGNATURE)
    for kind, body, _ in png_chunks(file):
        if kind == b"IDAT":
            break
        end = at + 12 + len(body)
        if kind != b"IHDR" and kind not in _WRITTEN_IN_PNG and not _is_written(kind, body):
            kept.append(memoryview(file)[at:end])
        at = end
    return file[16:29], [*kept, memoryview(file)[at:]]


def _is_written(kind: bytes, body: memoryview) -> bool:
    ours = {b"iTXt": XMP_IN_PNG, b"zTXt": RAW_PROFILE + b"iptc"}.get(kind)
    return ours is not None and begins(body, ours + b"\0")


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    if len(body) > _PNG_MAX:
        raise ValueError(f"{len(body):,} bytes, a chunk holds {_PNG_MAX:,}")
    checksum = zlib.crc32(body, zlib.crc32(kind))
    return b"".join([struct.pack(">I4s", len(body), kind), body, struct.pack(">I", checksum)])


def _raw_profile(iptc: bytes) -> bytes:
    """IPTC as ImageMagick puts it into a PNG, which has no place of its own for it."""
    resource = _iptc_resource(iptc)
    lines = (resource[at : at + 36].hex() for at in range(0, len(resource), 36))
    text = "\n".join(["", "iptc", f"{len(resource):8d}", *lines, ""])
    return RAW_PROFILE + b"iptc\0\0" + zlib.compress(text.encode())


def _iptc_resource(iptc: bytes) -> bytes:
    head = struct.pack(">4sHHI", b"8BIM", IPTC_RESOURCE, 0, len(iptc))
    return head + iptc + bytes(len(iptc) % 2)


def _embed_in_jpeg(file: bytes, said: Metadata) -> tuple[bytes, tuple[str, ...]]:
    if file[:2] != b"\xff\xd8":
        raise ValueError("no JPEG file")
    jfif, kept, end = b"", list[memoryview](), 2
    adobe = False
    for marker, body, start, after in jpeg_segments(file):
        if marker in (SOS, EOI):
            break
        end = after
        if marker == APP0 and begins(body, JFIF):
            jfif = file[start:end]
        elif marker not in (APP0, APP1, APP2, APP13):
            adobe |= marker == APP14
            kept.append(memoryview(file)[start:end])
    blocks, dropped = list[bytes](), list[str]()
    if said.dpi or said.aspect:
        sides = (round(side) for side in said.dpi) if said.dpi else exif.ratio(said.aspect or 1)
        across, down = sides
        # A JFIF segment would overrule what Adobe's says of the colours.
        if (jfif or not adobe) and min(across, down) > 0 and max(across, down) <= 0xFFFF:
            unit = 1 if said.dpi else 0
            jfif = _segment(APP0, struct.pack(">5sHBHHBB", JFIF, 0x101, unit, across, down, 0, 0))
        else:
            dropped.append("dpi_dropped" if said.dpi else "aspect_dropped")
    if said.exif:
        stream, lost = _exif_for_jpeg(said.exif)
        dropped += lost
        _add(blocks, dropped, "exif_dropped", APP1, [EXIF_IN_JPEG + stream])
    if said.xmp:
        whole = _xmp_bodies(said.xmp)
        if not whole and said.mark:
            # What it says of the source goes, but not that this is no source.
            dropped.append("xmp_dropped")
            whole = _xmp_bodies(said.mark)
        _add(blocks, dropped, "xmp_dropped", APP1, whole)
    if said.icc_profile:
        _add(blocks, dropped, "icc_dropped", APP2, _icc_bodies(said.icc_profile))
    if said.iptc:
        _add(blocks, dropped, "iptc_dropped", APP13, [PHOTOSHOP + _iptc_resource(said.iptc)])
    parts = [file[:2], jfif, *blocks, *kept, memoryview(file)[end:]]
    return b"".join(parts), tuple(dropped)


def _add(
    blocks: list[bytes], dropped: list[str], code: str, marker: int, bodies: list[bytes]
) -> None:
    """One kind of metadata, whole or not at all."""
    if bodies and max(map(len, bodies)) <= _SEGMENT_BYTES:
        blocks.extend(_segment(marker, body) for body in bodies)
    else:
        dropped.append(code)


def _exif_for_jpeg(stream: bytes) -> tuple[bytes, list[str]]:
    """EXIF that fits in a segment if it can be made to, and the codes of what that took.

    A thumbnail and what nobody points at go first, as a result has none: the maker note stays where
    it is, where its own offsets count on it. Then that goes, before dates and places do.
    """
    most = _SEGMENT_BYTES - len(EXIF_IN_JPEG)
    if len(stream) <= most:
        return stream, []
    try:
        order = exif.parse(stream).stream.order
        said, note = exif.entries(stream, order), exif.maker_note(stream)
    except exif.BrokenExifError:
        return stream, []
    if note and 8 <= note[0] <= most:
        packed = exif.build(said, order, note_at=note[0])
        if len(packed) <= most:
            return packed, []
    lost = ["maker_note_dropped"] * (said.get("exif", {}).pop(exif.MAKER_NOTE, None) is not None)
    packed = exif.build(said, order)
    return (packed, lost) if len(packed) <= most else (stream, [])


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def _xmp_bodies(packet: bytes) -> list[bytes]:
    """The packet in one segment, or else what is largest in it in segments of their own."""
    try:
        standard, extended = xmp_edit.split(packet, _STANDARD_XMP_BYTES)
    except xmp.BrokenXmpError:
        return []
    bodies = [XMP_IN_JPEG + standard]
    guid = hashlib.md5(extended, usedforsecurity=False).hexdigest().upper().encode()
    for at in range(0, len(extended), _EXTENDED_XMP_PIECE):
        head = EXTENDED_XMP + guid + struct.pack(">II", len(extended), at)
        bodies.append(head + extended[at : at + _EXTENDED_XMP_PIECE])
    return bodies


def _icc_bodies(profile: bytes) -> list[bytes]:
    count = -(-len(profile) // _ICC_PIECE)
    if count > 255:
        return []
    return [
        ICC_IN_JPEG + bytes((index + 1, count)) + profile[index * _ICC_PIECE :][:_ICC_PIECE]
        for index in range(count)
    ]


def _embed_in_webp(file: bytes, said: Metadata) -> tuple[bytes, tuple[str, ...]]:
    if file[:4] != b"RIFF" or file[8:12] != b"WEBP":
        raise ValueError("no WebP file")
    chunks = [(kind, body) for kind, body, is_whole in riff_chunks(file) if is_whole]
    dropped = ["iptc_dropped"] if said.iptc else []
    dropped += ["aspect_dropped"] if said.aspect and not said.dpi else []
    profile = said.icc_profile
    if profile and profiles.space(profile) != profiles.RGB:  # WebP makes RGB of gray
        profile, dropped = None, ["icc_dropped", *dropped]
    stream = exif.with_resolution(said.exif, said.dpi) if said.dpi else said.exif
    flags, size = _canvas(chunks)
    flags &= ~(_VP8X_ICC | _VP8X_EXIF | _VP8X_XMP)
    flags |= _VP8X_ICC * bool(profile) | _VP8X_EXIF * bool(stream) | _VP8X_XMP * bool(said.xmp)
    extended = bool(profile or stream or said.xmp) or chunks[0][0] == b"VP8X"
    own = {b"VP8X", b"ICCP", b"EXIF", b"XMP "}
    written: list[tuple[bytes, bytes | memoryview | None]] = [
        (b"VP8X", struct.pack("<I", flags) + size if extended else None),
        (b"ICCP", profile),
        *((kind, body) for kind, body in chunks if kind not in own),
        (b"EXIF", stream),
        (b"XMP ", said.xmp),
    ]
    parts = [part for kind, body in written if body for part in _riff_chunk(kind, body)]
    length = 4 + sum(map(len, parts))
    if length > 2**32 - 2:
        raise ValueError(f"{length:,} bytes, a WebP file holds {2**32 - 2:,}")
    return b"".join([struct.pack("<4sI4s", b"RIFF", length, b"WEBP"), *parts]), tuple(dropped)


def _riff_chunk(kind: bytes, body: bytes | memoryview) -> tuple[bytes, bytes | memoryview, bytes]:
    return struct.pack("<4sI", kind, len(body)), body, bytes(len(body) % 2)


def _canvas(chunks: list[tuple[bytes, memoryview]]) -> tuple[int, bytes]:
    """The flags of the extended header, and the picture's size as it has it: each side less 1."""
    for kind, body in chunks:
        if kind == b"VP8X":
            return body[0], bytes(body[4:10])
        if kind == b"VP8 ":
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", body, 6))
            return 0, _sides(width, height)
        if kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", body, 1)
            alpha = _VP8X_ALPHA * (bits >> 28 & 1)
            return alpha, _sides((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    raise ValueError("a WebP file without a picture")


def _sides(width: int, height: int) -> bytes:
    return (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
