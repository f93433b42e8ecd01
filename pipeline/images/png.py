"""PNG, written many times faster than by the usual libraries: filtered by numpy, deflated by ISA-L.

The picture goes through in bands of rows. Each is filtered and deflated on its own, by whatever
did best on a sample of its rows, so memory beside the picture and the file is a few bands. What
comes out depends on the samples, the effort, the libraries' versions and the kind of processor.

Format: W3C, Portable Network Graphics (third edition), of 24 June 2025.
"""

import io
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

Samples = NDArray[np.uint8] | NDArray[np.uint16]
Bytes = NDArray[np.uint8]
Deflate = Callable[[Bytes], bytes]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels

_NONE, _SUB, _UP, _AVERAGE, _PAETH = range(5)

# A band and its predictions fit the second-level cache; a share of its rows can stand for it.
_BAND_BYTES, _BAND_ROWS = 2**19, 32
_IDAT_BYTES = 2**20

_ZLIB_HEADER = b"\x78\x01"  # deflate, a window of 32 KiB
_LAST_BLOCK = b"\x03\x00"  # an empty one: no band knows that it is the last
_RAW = -zlib.MAX_WBITS  # deflate without zlib's header and checksum


def _deflate_isal(filtered: Bytes) -> bytes:
    stream = isal_zlib.compressobj(1, wbits=_RAW)
    return stream.compress(filtered.data) + stream.flush(isal_zlib.Z_SYNC_FLUSH)


def _deflate_zlib(filtered: Bytes, *, level: int, strategy: int) -> bytes:
    stream = zlib.compressobj(level, wbits=_RAW, memLevel=9, strategy=strategy)
    return stream.compress(filtered.data) + stream.flush(zlib.Z_SYNC_FLUSH)


@dataclass(frozen=True, slots=True)
class Effort:
    """The ways in which a band may be written, and on how much of it they are tried."""

    filters: tuple[int, ...]
    deflates: tuple[Deflate, ...]
    sample_step: int
    """One row of so many; at most _BAND_ROWS."""


# Photographs want no matches but runs, which is also quick; drawings want all matches, text no
# filter. ISA-L's level 3 saves 3 % at most and finds other matches on other processors.
_runs = partial(_deflate_zlib, level=1, strategy=zlib.Z_RLE)
EFFORTS: dict[str, Effort] = {
    "fast": Effort((_AVERAGE, _UP, _NONE), (_deflate_isal,), sample_step=32),
    "balanced": Effort(
        (_NONE, _UP, _AVERAGE, _PAETH),
        (
            _runs,
            partial(_deflate_zlib, level=3, strategy=zlib.Z_DEFAULT_STRATEGY),
            partial(_deflate_zlib, level=4, strategy=zlib.Z_FILTERED),
        ),
        sample_step=32,
    ),
    "max": Effort(
        (_NONE, _SUB, _UP, _AVERAGE, _PAETH),
        (
            _runs,
            partial(_deflate_zlib, level=9, strategy=zlib.Z_DEFAULT_STRATEGY),
            partial(_deflate_zlib, level=9, strategy=zlib.Z_FILTERED),
        ),
        sample_step=8,
    ),
}


def encode(pixels: Samples, effort: Effort) -> bytes:
    """The file, which says nothing beside its samples: `containers.embed` puts that in.

    pixels: (height, width, 1 to 4), 8 or 16 bits a sample, gray or RGB without or with straight
    alpha; in any memory layout. effort: one of EFFORTS.
    """
    height, width, channels = pixels.shape
    depth = 8 * pixels.itemsize
    # BytesIO grows in place and hands its buffer over: nowhere is there a second copy of the file.
    file = io.BytesIO()
    file.write(_SIGNATURE)
    header = struct.pack(">IIBBBBB", width, height, depth, _COLOUR_TYPES[channels], 0, 0, 0)
    _write_chunk(file, b"IHDR", header)
    for part in _zlib_stream(pixels, effort):
        for start in range(0, len(part), _IDAT_BYTES):
            _write_chunk(file, b"IDAT", memoryview(part)[start : start + _IDAT_BYTES])
    _write_chunk(file, b"IEND", b"")
    return file.getvalue()


def _write_chunk(file: io.BytesIO, kind: bytes, data: bytes | memoryview) -> None:
    file.write(struct.pack(">I", len(data)) + kind)
    file.write(data)
    file.write(struct.pack(">I", isal_zlib.crc32(data, isal_zlib.crc32(kind))))


def _zlib_stream(pixels: Samples, effort: Effort) -> Iterator[bytes]:
    """What all IDAT chunks hold together, in parts."""
    checksum = isal_zlib.adler32(b"")
    yield _ZLIB_HEADER
    for band in _bands(pixels):
        chosen, deflate = _best_way(band.sample(effort.sample_step), effort)
        filtered = band.filtered(chosen)
        checksum = isal_zlib.adler32(filtered, checksum)
        yield deflate(filtered)
    yield _LAST_BLOCK + struct.pack(">I", checksum)


def _best_way(sample: "_Band", effort: Effort) -> tuple[int, Deflate]:
    """The filter and the deflate that make least of the sample; of equal ones the first.

    Entropy or the sum of differences, which others choose by, tell little of what the matches are
    worth: on a bicubically enlarged chart they cost 5 and 14 %.
    """
    ways = itertools.product(effort.filters, effort.deflates)
    return min(ways, key=lambda way: len(way[1](sample.filtered(way[0]))))


@dataclass(frozen=True, slots=True)
class _Band:
    """Rows of a picture as the file's bytes, big-endian; with a border of zeros off the picture."""

    lines: Bytes
    """The rows, each from the pixel left of it on."""
    above: Bytes
    """The line above each."""
    step: int
    """Bytes of a pixel."""
    room: Bytes
    """For what `filtered` returns and once more of it: memory allocated anew for each band would
    cost a quarter of the speed, in page faults."""

    def sample(self, step: int) -> "_Band":
        """One row of so many, and the middle one of a band with fewer."""
        chosen = slice(min(step, len(self.lines)) // 2, None, step)
        return replace(self, lines=self.lines[chosen], above=self.above[chosen])

    def filtered(self, filter: int) -> Bytes:
        """The rows less their prediction, each after the byte that names the filter.

        Good until the next call.
        """
        filtered, spare = self.room[:, : len(self.lines)]
        filtered[:, 0] = filter
        result = filtered[:, 1:]
        rows, left = self.lines[:, self.step :], self.lines[:, : -self.step]
        above, corner = self.above[:, self.step :], self.above[:, : -self.step]
        if filter == _NONE:
            result[:] = rows
        elif filter == _SUB:
            np.subtract(rows, left, out=result)
        elif filter == _UP:
            np.subtract(rows, above, out=result)
        elif filter == _AVERAGE:
            np.subtract(rows, _average(left, above, result, spare[:, 1:]), out=result)
        else:
            np.subtract(rows, _paeth(left, above, corner), out=result)
        return filtered


def _bands(pixels: Samples) -> Iterator[_Band]:
    """The picture from top to bottom. A band is good until the next one is asked for."""
    height, width, channels = pixels.shape
    step = channels * pixels.itemsize
    most = min(height, max(_BAND_ROWS, _BAND_BYTES // (width * step)))
    samples = np.zeros((1 + most, 1 + width, channels), pixels.dtype.newbyteorder(">"))
    lines = samples.view(np.uint8).reshape(1 + most, (1 + width) * step)
    room = np.empty((2, most, 1 + width * step), np.uint8)
    for top in range(0, height, most):
        count = min(most, height - top)
        samples[1 : 1 + count, 1:] = pixels[top : top + count]
        yield _Band(lines[1 : 1 + count], lines[:count], step, room)
        lines[0] = lines[count]


def _average(left: Bytes, above: Bytes, mean: Bytes, half: Bytes) -> Bytes:
    """Half the sum of two neighbours, rounded down, without overflow: into `mean`, over `half`."""
    np.bitwise_and(left, above, out=mean)
    np.bitwise_xor(left, above, out=half)
    np.right_shift(half, 1, out=half)
    return np.add(mean, half, out=mean)


def _paeth(left: Bytes, above: Bytes, corner: Bytes) -> Bytes:
    """Of the three neighbours the one closest to left + above - corner, in this order if equal."""
    a, b, c = (neighbour.astype(np.int16) for neighbour in (left, above, corner))
    off_a, off_b, off_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    nearer = np.where(off_b <= off_c, above, corner)
    return cast(Bytes, np.where((off_a <= off_b) & (off_a <= off_c), left, nearer))
