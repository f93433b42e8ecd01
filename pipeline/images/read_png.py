"""PNG, read at the depth it was written in.

The chunks are walked and inflated here, libpng only undoes the filters: told of nothing but the
samples it has nothing to warn of on stderr, and checksums, missing ends and interlacing are judged
in one place, for 8 bits as for 16.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from pipeline.errors import DecodeError
from pipeline.images import png_text
from pipeline.images.image import Samples
from pipeline.images.levels import palette_channels

SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Column, row and their steps of the passes of an interlaced picture, and of any other.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_PLAIN = ((0, 0, 1, 1),)
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_CHECKED = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_STORED_BYTES = 65_535  # of a deflate block
_MOST_CHUNKS = 2**20  # a gigabyte in the usual 8 KiB pieces has an eighth


@dataclass(frozen=True, slots=True)
class Header:
    """What the chunks beside the samples say."""

    width: int
    height: int
    depth: int
    kind: int
    """PNG's colour type."""
    interlaced: bool
    palette: bytes | None
    """Red, green and blue in turn."""
    transparent: bytes | None
    """tRNS: alpha of the first palette entries, or the one transparent colour."""
    frames: int
    exif: bytes

    @property
    def has_alpha(self) -> bool:
        return bool(self.kind & 4)

    @property
    def colours(self) -> bool:
        return bool(self.kind & 2)

    @property
    def channels(self) -> int:
        """As stored."""
        return _CHANNELS[self.kind]

    def passes(self) -> Iterator[tuple[int, int, int, int, int, int, int]]:
        """Width, height and bytes of each pass that has pixels, then column, row and steps."""
        for left, top, across, down in _ADAM7 if self.interlaced else _PLAIN:
            width = (self.width - left + across - 1) // across
            height = (self.height - top + down - 1) // down
            if width > 0 and height > 0:
                line = 1 + (width * self.channels * self.depth + 7) // 8
                yield width, height, line * height, left, top, across, down


def header(data: bytes) -> Header:
    """Raises DecodeError where a chunk that matters to the pixels is missing or broken."""
    parts: dict[bytes, bytes] = {}
    for kind, body in _chunks(data):
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"acTL", b"eXIf"):
            parts.setdefault(kind, bytes(body))
        elif kind in png_text.KINDS:
            name = png_text.keyword(body).lower()
            if name in png_text.EXIF_KEYWORDS and name not in parts:
                parts[name] = png_text.exif(kind, body)
    width, height, depth, kind, method, _, interlace = struct.unpack(
        ">IIBBBBB", parts.get(b"IHDR", b"")
    )
    if depth not in _DEPTHS.get(kind, ()) or method or interlace > 1 or not width or not height:
        message = f"a header of {width} x {height} pixels, {depth} bits, colour type {kind}"
        raise DecodeError("decode_failed", f"{message}, interlacing {interlace}")
    palette = parts.get(b"PLTE") if kind == 3 else None
    if kind == 3 and not palette:
        raise DecodeError("decode_failed", "a palette picture without a palette")
    transparent = parts.get(b"tRNS")
    if kind & 4 or (kind in (0, 2) and len(transparent or b"") < 2 * _CHANNELS[kind]):
        transparent = None
    frames = int.from_bytes(parts.get(b"acTL", b"")[:4])
    places = (b"eXIf", *png_text.EXIF_KEYWORDS)  # the old ones count where there is no new one
    exif = next((parts[place] for place in places if parts.get(place)), b"")
    return Header(
        width, height, depth, kind, interlace == 1, palette, transparent, max(1, frames), exif
    )


def samples(data: bytes, *, accept_truncated: bool) -> tuple[Samples, bool]:
    """(height, width, 1 to 4) with alpha and palettes resolved, and whether the end was missing.

    uint8 or uint16. Gray of 1, 2 and 4 bits has the full range of 8. Palettes of grays are gray.
    Raises DecodeError.
    """
    said = header(data)
    raw, whole = _inflated(data, sum(part[2] for part in said.passes()))
    if not whole and not accept_truncated:
        raise DecodeError("decode_failed", f"the file ends too soon ({len(data):,} bytes)")
    dtype = np.uint16 if said.depth == 16 else np.uint8
    stored: NDArray[Any] = np.zeros((said.height, said.width, said.channels), dtype)
    start = 0
    for width, height, size, left, top, across, down in said.passes():
        stored[top::down, left::across] = _unfiltered(
            raw[start : start + size], width, height, said
        )
        start += size
    if said.palette is not None:
        return _looked_up(stored[:, :, 0], said), not whole
    return (_keyed(stored, said) if said.transparent else stored), not whole


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and body of each chunk that is there whole, up to IEND; those of IDAT also in part."""
    at, view = len(SIGNATURE), memoryview(data)
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        body = view[at + 8 : at + 8 + length]
        end = at + 8 + length
        if end + 4 > len(data):
            if kind == b"IDAT":
                yield kind, body
            return
        if kind in _CHECKED and isal_zlib.crc32(view[at + 4 : end]) != int.from_bytes(
            data[end : end + 4]
        ):
            raise DecodeError("decode_failed", f"the checksum of {kind.decode()} is wrong")
        yield kind, body
        if kind == b"IEND":
            return
        at = end + 4
    raise DecodeError("decode_failed", f"more than {_MOST_CHUNKS:,} chunks")


def _inflated(data: bytes, size: int) -> tuple[bytes, bool]:
    """So many bytes of filtered lines, zeros where they are missing, and whether none were."""
    inflate, parts, missing, ended = isal_zlib.decompressobj(), list[bytes](), size, False
    found = False
    for kind, body in _chunks(data):
        ended = kind == b"IEND"
        if kind == b"IDAT":
            found = True
            if missing:
                parts.append(inflate.decompress(body, missing))
                missing -= len(parts[-1])
    if not found:
        raise DecodeError("decode_failed", "no samples (IDAT)")
    if not missing:  # what is left is the checksum, and its comparison
        inflate.decompress(inflate.unconsumed_tail, 1)
    return b"".join([*parts, bytes(missing)]), ended and not missing


def _unfiltered(lines: bytes, width: int, height: int, said: Header) -> NDArray[Any]:
    """One pass as (height, width, stored channels): by libpng, out of a file with that alone."""
    kind = 0 if said.kind == 3 else said.kind  # as gray, so that the index stays one
    ihdr = struct.pack(">IIBBBBB", width, height, said.depth, kind, 0, 0, 0)
    chunks = ((b"IHDR", ihdr), (b"IDAT", _stored(lines)), (b"IEND", b""))
    file = SIGNATURE + b"".join(
        part
        for kind, body in chunks
        for part in (
            struct.pack(">I", len(body)),
            kind,
            body,
            struct.pack(">I", isal_zlib.crc32(body, isal_zlib.crc32(kind))),
        )
    )
    return imagecodecs.png_decode(file).reshape(height, width, said.channels)


def _stored(lines: bytes) -> bytes:
    """As a zlib stream that is not compressed."""
    starts = range(0, len(lines), _STORED_BYTES)
    blocks = [memoryview(lines)[start : start + _STORED_BYTES] for start in starts]
    last = len(blocks) - 1
    parts = (
        part
        for index, block in enumerate(blocks)
        for part in (
            struct.pack("<BHH", index == last, len(block), len(block) ^ 0xFFFF),
            block,
        )
    )
    checksum = struct.pack(">I", isal_zlib.adler32(lines))
    return b"".join((b"\x78\x01", *parts, checksum))


def _looked_up(scaled: NDArray[Any], said: Header) -> Samples:
    """Indices, in the range that gray of their depth has, as (height, width, 1 to 4)."""
    entries = np.frombuffer(said.palette or b"", np.uint8)[: 3 * 256]
    colours = np.zeros((256, 4), np.uint8)  # an index beyond the palette is black
    colours[:, 3] = 255
    colours[: len(entries) // 3, :3] = entries[: len(entries) // 3 * 3].reshape(-1, 3)
    alpha = np.frombuffer(said.transparent or b"", np.uint8)[:256]
    colours[: len(alpha), 3] = alpha
    step = 255 // (2**said.depth - 1)
    wanted = colours[:, 3 - palette_channels(said.palette or b"") : 3]
    if said.transparent is not None:
        wanted = np.concatenate([wanted, colours[:, 3:]], axis=1)
    return wanted[scaled // step] if step > 1 else wanted[scaled]


def _keyed(stored: NDArray[Any], said: Header) -> Samples:
    """With an alpha that is 0 where the colour is the transparent one, at the stored depth."""
    count, highest = said.channels, 2**said.depth - 1
    key = np.array(struct.unpack_from(f">{count}H", said.transparent or b""), np.uint32) & highest
    if said.depth < 8:
        key = key * (255 // highest)
    full = np.iinfo(stored.dtype).max
    opaque = (stored != key.astype(stored.dtype)).any(axis=2, keepdims=True)
    return np.concatenate([stored, opaque * stored.dtype.type(full)], axis=2)
