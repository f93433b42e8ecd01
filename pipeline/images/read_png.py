"""PNG, read at the depth it was written in.

The chunks are walked and inflated here, libpng only undoes the filters: told of nothing but the
samples it has nothing to warn of on stderr, and checksums, missing ends and interlacing are judged
in one place, for 8 bits as for 16. A band of lines goes through all of it before the next one is
inflated, so that there is next to nothing in memory beside the result.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import imagecodecs
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from pipeline.errors import DecodeError
from pipeline.images import png_text
from pipeline.images.image import Samples
from pipeline.images.levels import palette_channels
from pipeline.images.walk import PNG_SIGNATURE, png_chunks

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
_PIECE_BYTES = 2**16  # of a chunk, given to inflate: what it does not take yet is copied
_BAND_BYTES = 2**20


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

    @property
    def resolved_channels(self) -> int:
        """Of the picture: palettes are resolved, and what is transparent has an alpha."""
        colours = self.channels if self.palette is None else palette_channels(self.palette)
        return colours + (self.transparent is not None)

    def passes(self) -> Iterator[tuple[int, int, int, int, int, int, int]]:
        """Width, height and a line's bytes of each pass with pixels, then column, row and steps."""
        for left, top, across, down in _ADAM7 if self.interlaced else _PLAIN:
            width = (self.width - left + across - 1) // across
            height = (self.height - top + down - 1) // down
            if width > 0 and height > 0:
                line = 1 + (width * self.channels * self.depth + 7) // 8
                yield width, height, line, left, top, across, down


def header(data: bytes) -> Header:
    """Raises DecodeError where a chunk that matters to the pixels is missing or broken."""
    parts: dict[bytes, bytes] = {}
    for kind, body, intact in png_chunks(data, _CHECKED):
        if not intact:
            _refuse_wrong(kind, intact)
        elif kind in (b"IHDR", b"PLTE", b"tRNS", b"acTL", b"eXIf"):
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
    said, lines = header(data), _Lines(data, accept_truncated=accept_truncated)
    shape = (said.height, said.width, said.resolved_channels)
    made: NDArray[Any] = np.zeros(shape, np.uint16 if said.depth == 16 else np.uint8)
    for width, height, line, left, top, across, down in said.passes():
        rows = made[top::down, left::across]
        for start, band in _bands(lines, width, height, line, said):
            rows[start : start + len(band)] = _resolved(band, said)
    return made, not lines.end()


def _refuse_wrong(kind: bytes, intact: bool | None) -> None:
    """Raises DecodeError where a checksum is there, but wrong."""
    if intact is False:
        raise DecodeError("decode_failed", f"the checksum of {kind.decode()} is wrong")


class _Lines:
    """The filtered lines of all passes, inflated as they are asked for."""

    def __init__(self, data: bytes, *, accept_truncated: bool) -> None:
        self._accept, self._file_bytes = accept_truncated, len(data)
        self._pieces = self._walk(data)
        self._inflate = isal_zlib.decompressobj()
        self._input: bytes | memoryview = b""
        self._found = self._ended = self._short = False

    def read(self, size: int) -> bytes:
        """So many bytes, zeros where the file has none. Raises DecodeError if it may not end."""
        parts, missing = list[bytes](), size
        while missing:
            parts.append(self._inflated(missing))
            missing -= len(parts[-1])
            if not parts[-1] and not self._refilled():
                self._short = True
                self._check()
                parts.append(bytes(missing))
                missing = 0
        return b"".join(parts)

    def end(self) -> bool:
        """Whether nothing was missing, nor the end of the file. Compares the checksum."""
        # What is left is the checksum, or else more than there should be.
        while not self._inflated(1) and self._refilled():
            pass
        for _ in self._pieces:
            pass
        self._check()
        return self._ended and not self._short

    def _inflated(self, most: int) -> bytes:
        made = self._inflate.decompress(self._input, most)
        self._input = self._inflate.unconsumed_tail
        return made

    def _refilled(self) -> bool:
        """Whether there is something left to inflate."""
        if self._inflate.eof:
            return False
        self._input = self._input or next(self._pieces, b"")
        return bool(self._input)

    def _check(self) -> None:
        if not self._found:
            raise DecodeError("decode_failed", "no samples (IDAT)")
        if (self._short or not self._ended) and not self._accept:
            message = f"the file ends too soon ({self._file_bytes:,} bytes)"
            raise DecodeError("decode_failed", message)

    def _walk(self, data: bytes) -> Iterator[memoryview]:
        for kind, body, intact in png_chunks(data, _CHECKED):
            if not intact:
                _refuse_wrong(kind, intact)
            self._ended = kind == b"IEND" and bool(intact)
            if kind == b"IDAT":
                self._found = True
                for start in range(0, len(body), _PIECE_BYTES):
                    yield body[start : start + _PIECE_BYTES]


def _bands(
    lines: _Lines, width: int, height: int, line: int, said: Header
) -> Iterator[tuple[int, NDArray[Any]]]:
    """One pass: the first row, and so many as (rows, width, stored channels).

    Gray of less than 8 bits has the full range of 8; an index is as it is.
    """
    shallow = said.depth < 8
    told = replace(said, kind=0, depth=8) if shallow else said  # filters know only whole bytes
    rows, above = max(1, _BAND_BYTES // max(line, width)), b""
    for start in range(0, height, rows):
        filtered = lines.read(line * min(rows, height - start))
        band = _unfiltered(above + filtered, line - 1 if shallow else width, line, told)
        band = band[bool(above) :]
        # The next band's filters refer to this line, which needs none itself.
        above = b"\0" + band[-1].astype(band.dtype.newbyteorder(">")).tobytes()
        yield start, _unpacked(band, width, said) if shallow else band


def _unpacked(band: NDArray[Any], width: int, said: Header) -> NDArray[Any]:
    """Samples of 1, 2 or 4 bits, as (rows, width, 1) of (rows, bytes, 1)."""
    highest = 2**said.depth - 1
    step = 1 if said.palette is not None else 255 // highest
    shifts = np.arange(8 - said.depth, -1, -said.depth, dtype=np.uint8)
    levels = (np.arange(256, dtype=np.uint8)[:, None] >> shifts & highest) * np.uint8(step)
    return levels[band].reshape(len(band), -1)[:, :width, None]


def _unfiltered(lines: bytes, width: int, line: int, said: Header) -> NDArray[Any]:
    """Lines as (rows, width, stored channels): by libpng, out of a file with them alone."""
    height = len(lines) // line
    kind = 0 if said.kind == 3 else said.kind  # as gray, so that the index stays one
    ihdr = struct.pack(">IIBBBBB", width, height, said.depth, kind, 0, 0, 0)
    chunks = ((b"IHDR", ihdr), (b"IDAT", _stored(lines)), (b"IEND", b""))
    file = PNG_SIGNATURE + b"".join(
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


def _resolved(band: NDArray[Any], said: Header) -> Samples:
    """Stored samples as `samples` gives them."""
    if said.palette is not None:
        return _looked_up(band[:, :, 0], said)
    return _keyed(band, said) if said.transparent else band


def _looked_up(indices: NDArray[Any], said: Header) -> Samples:
    """(height, width) as (height, width, 1 to 4)."""
    entries = np.frombuffer(said.palette or b"", np.uint8)[: 3 * 256]
    colours = np.zeros((256, 4), np.uint8)  # an index beyond the palette is black
    colours[:, 3] = 255
    colours[: len(entries) // 3, :3] = entries[: len(entries) // 3 * 3].reshape(-1, 3)
    alpha = np.frombuffer(said.transparent or b"", np.uint8)[:256]
    colours[: len(alpha), 3] = alpha
    wanted = colours[:, 3 - palette_channels(said.palette or b"") : 3]
    if said.transparent is not None:
        wanted = np.concatenate([wanted, colours[:, 3:]], axis=1)
    return wanted[indices]


def _keyed(stored: NDArray[Any], said: Header) -> Samples:
    """With an alpha that is 0 where the colour is the transparent one, at the stored depth."""
    count, highest = said.channels, 2**said.depth - 1
    key = np.array(struct.unpack_from(f">{count}H", said.transparent or b""), np.uint32) & highest
    if said.depth < 8:
        key = key * (255 // highest)
    full = np.iinfo(stored.dtype).max
    opaque = (stored != key.astype(stored.dtype)).any(axis=2, keepdims=True)
    return np.concatenate([stored, opaque * stored.dtype.type(full)], axis=2)
