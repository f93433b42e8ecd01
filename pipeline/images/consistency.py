"""How a result agrees with its source: what a network must not change, in a few numbers.

The larger of the two is reduced to the size of the other by area averaging, the same as averaging
over the source's pixels, and the two are compared there, in levels of 255. Real-ESRGAN takes noise
and compression away, so the figures say something among pictures of one kind: a tint, black tiles
or a network that does nothing stand out from the others.

With transparency the colours are those on black: under what is fully transparent a result has
others than its source. Of alpha itself only the bias is told.

Cost and memory: strips of rows, and no figure that takes more than a few passes over all samples.
Colour difference and clipping are those of 2^14 pixels or a few more on a grid, interpolation is
that of at most 16 windows; all the rest is that of every sample.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.images.delta_e import delta_e2000, lab
from pipeline.images.image import Samples

_Floats = NDArray[np.float32]
_Doubles = NDArray[np.float64]

_BLOCK = 8  # pixels a side, of the smaller picture
_STRIP_SAMPLES = 2**20
_GRID_PIXELS = 2**14
_WINDOWS, _WINDOW = 4, 96  # windows a side of the picture; pixels a side of a window


@dataclass(frozen=True, slots=True)
class Consistency:
    """All in levels of 255 where nothing else is said."""

    psnr: float
    """dB, of the reduced result against the source; infinite where they are equal."""
    delta_e: float
    """Mean colour difference CIEDE2000, as if both were sRGB; of gray that of the lightness."""
    local_difference: float
    """Mean absolute difference of the block of 8 x 8 pixels where it is largest."""
    bias_red: float
    """Mean of the result less that of the source. Of gray the same three times."""
    bias_green: float
    bias_blue: float
    bias_alpha: float | None
    """None without alpha."""
    clipped_share: float
    """Samples of colour at either end of the range that were not so in the source, 0 to 1."""
    constant_share: float
    """Blocks of 8 x 8 pixels with a single colour that have several in the source, 0 to 1."""
    plain_psnr: float | None
    """dB, of the result against a bicubic enlargement of the source: high where the network did
    little else. None where the result is smaller than the source."""
    detail: float | None
    """Energy of the finest detail (after a Laplacian) over that of the bicubic enlargement; 1 where
    the network did nothing. None where the result is smaller, or the enlargement without detail."""

    def columns(self) -> dict[str, float | None]:
        """As in the report."""
        return {f"quality_{field.name}": getattr(self, field.name) for field in fields(self)}


def measure(source: Samples, result: Samples) -> Consistency:
    """How the result agrees with the source.

    source, result: (H, W, 1 to 4), straight alpha, both the right way up, of any sizes, and of 8
    bits or 16 each. Raises ValueError for different channels.
    """
    if source.shape[2] != result.shape[2]:
        raise ValueError(f"{source.shape[2]} channels, and {result.shape[2]} in the result")
    has_alpha = source.shape[2] in (2, 4)
    transparent = has_alpha and source[:, :, -1].min() < np.iinfo(source.dtype).max
    pair = _Pair(_Picture(source, transparent), _Picture(result, transparent))
    sums = _Sums()
    for rows in pair.strips():
        sums.add(pair, rows)
    return sums.consistency(pair)


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    samples: Samples
    transparent: bool
    """Whether there is anything that alpha changes."""

    @property
    def full(self) -> int:
        """The highest level."""
        return np.iinfo(self.samples.dtype).max

    @property
    def colours(self) -> int:
        """Channels without alpha."""
        return 1 if self.samples.shape[2] < 3 else 3

    def stored(self, start: int, stop: int) -> NDArray[Any]:
        """(rows, W, C), as they are."""
        return self.samples[start:stop]

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """(rows, W, C), colours as they are on black."""
        rows = self.stored(start, stop)
        if not self.transparent:
            return rows
        shown = rows.transpose(2, 0, 1).astype(np.float32)  # planes: one alpha for long rows
        shown[:-1] *= shown[-1] / np.float32(self.full)
        return shown.transpose(1, 2, 0)


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    source: _Picture
    result: _Picture

    @property
    def height(self) -> int:
        """Pixels of the smaller one, as all below."""
        return min(len(self.source.samples), len(self.result.samples))

    @property
    def width(self) -> int:
        return min(self.source.samples.shape[1], self.result.samples.shape[1])

    def strips(self) -> Iterator[range]:
        """Whole rows of blocks; as many as make few calls of many samples."""
        largest = max(self.source.samples.size, self.result.samples.size)
        rows = _STRIP_SAMPLES * self.height // largest // _BLOCK * _BLOCK
        step = max(_BLOCK, rows)
        for top in range(0, self.height, step):
            yield range(top, min(top + step, self.height))

    def averages(self, picture: _Picture, rows: range) -> _Floats:
        """Some rows of a picture reduced to the common size: (rows, W, C) in levels of 255."""
        height, width = picture.samples.shape[:2]
        if height == self.height:
            tall = picture.rows(rows.start, rows.stop).astype(np.float32)
        else:
            tall = np.empty((len(rows), *picture.samples.shape[1:]), np.float32)
            for index, row in enumerate(rows):
                start, weights = _covered(row, height, self.height)
                part = picture.rows(start, start + len(weights))
                tall[index] = np.einsum("r,rwc->wc", weights, part)
        wide = tall if width == self.width else _summed(tall, self.width)
        wide *= np.float32(255 / picture.full * self.width * self.height / (width * height))
        return wide

    def made_constant(self, rows: range) -> NDArray[np.bool_]:
        """Of each block whether it has a single colour only in the result: (rows of blocks, blocks
        in a row)."""
        # On black only in the source: what is hidden there is constant, whatever the result has.
        source = self._constant(self.source, self.source.rows, rows)
        return ~source & self._constant(self.result, self.result.stored, rows)

    def _constant(
        self, picture: _Picture, read: Callable[[int, int], NDArray[Any]], rows: range
    ) -> NDArray[np.bool_]:
        height, width = picture.samples.shape[:2]
        lefts = np.arange(0, self.width, _BLOCK) * width // self.width
        tops = [top * height // self.height for top in (*rows[::_BLOCK], rows.stop)]
        return np.stack([_of_one_colour(read(*ends), lefts) for ends in pairwise(tops)])

    def grid(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns of the pixels that stand for all."""
        step = math.ceil(math.sqrt(self.height * self.width / _GRID_PIXELS))
        sides = (self.height, self.width)
        rows, columns = (np.arange(min(step, side) // 2, side, step) for side in sides)
        return rows, columns

    def clipped(self, picture: _Picture) -> NDArray[np.bool_]:
        """Of the pixels nearest to the centres of the grid's: (rows, columns, colours)."""
        sizes = picture.samples.shape[:2]
        common = (self.height, self.width)
        row, column = (
            (2 * index + 1) * size // (2 * small)
            for index, size, small in zip(self.grid(), sizes, common, strict=True)
        )
        levels = picture.samples[row[:, None], column, : picture.colours]
        return (levels == 0) | (levels == picture.full)


class _Sums:
    """What is known of a pair so far."""

    def __init__(self) -> None:
        self._differences: _Doubles = np.zeros(1)
        self._squares = 0.0
        self._colour = list[_Doubles]()
        self._worst = 0.0
        self._constant = self._blocks = 0

    def add(self, pair: _Pair, rows: range) -> None:
        """Some rows of blocks."""
        wanted, got = (pair.averages(each, rows) for each in (pair.source, pair.result))
        off = got - wanted
        self._differences = self._differences + np.einsum("hwc->c", off)
        colours = pair.source.colours
        off = off[:, :, :colours]
        self._squares += float(np.einsum("hwc,hwc->", off, off))
        self._worst = max(self._worst, _worst_block(off))
        grid_rows, columns = pair.grid()
        here = grid_rows[(grid_rows >= rows.start) & (grid_rows < rows.stop)] - rows.start
        pair_lab = [lab(each[here[:, None], columns, :colours]) for each in (wanted, got)]
        self._colour.append(delta_e2000(*pair_lab).ravel())
        flat = pair.made_constant(rows)
        self._constant += int(np.count_nonzero(flat))
        self._blocks += flat.size

    def consistency(self, pair: _Pair) -> Consistency:
        """The figures, when all strips are in."""
        pixels, colours = pair.height * pair.width, pair.source.colours
        bias = [float(value) / pixels for value in self._differences]
        plain_psnr, detail = _against_plain(pair)
        return Consistency(
            psnr=_decibels(self._squares / (pixels * colours)),
            delta_e=float(np.concatenate(self._colour).mean()),
            local_difference=self._worst,
            bias_red=bias[0],
            bias_green=bias[colours // 2],
            bias_blue=bias[colours - 1],
            bias_alpha=bias[-1] if len(bias) > colours else None,
            clipped_share=float(np.mean(pair.clipped(pair.result) & ~pair.clipped(pair.source))),
            constant_share=self._constant / self._blocks,
            plain_psnr=plain_psnr,
            detail=detail,
        )


def _covered(row: int, size: int, target: int) -> tuple[int, _Floats]:
    """The rows that one of the target's lies over: the first of them, and how much of each."""
    start, first = divmod(row * size, target)
    stop, last = divmod((row + 1) * size, target)
    weights = np.ones(stop - start + (last > 0), np.float32)
    if last:
        weights[-1] = last / target
    weights[0] -= first / target
    return start, weights


def _summed(x_hwc: _Floats, target: int) -> _Floats:
    """The same across, as sums: (H, target, C)."""
    edges = np.arange(target) * x_hwc.shape[1]
    whole, parts = edges // target, (edges % target / target).astype(np.float32)
    sums = np.add.reduceat(x_hwc, whole, axis=1)
    if parts.any():  # of the pixel on an edge, so much belongs to what is left of it
        cut = x_hwc[:, whole] * parts[:, None]
        sums -= cut
        sums[:, :-1] += cut[:, 1:]
    return sums


def _of_one_colour(x_hwc: NDArray[Any], lefts: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Of each block of columns, which begin there."""
    least, most = x_hwc.min(axis=0), x_hwc.max(axis=0)
    found = np.logical_and.reduceat((least == most).all(axis=1), lefts)
    if found.any():  # rarely: each of its columns has one, but do all have the same?
        least, most = np.minimum.reduceat(least, lefts), np.maximum.reduceat(most, lefts)
        found &= (least == most).all(axis=1)
    return found


def _worst_block(off_hwc: _Floats) -> float:
    """The largest mean absolute difference of a block; its first row starts one."""
    height, width, channels = off_hwc.shape
    tops, lefts = np.arange(0, height, _BLOCK), np.arange(0, width, _BLOCK)
    sums = np.einsum("hwc->hw", np.abs(off_hwc))
    sums = np.add.reduceat(np.add.reduceat(sums, tops, axis=0), lefts, axis=1)
    high, wide = np.diff(tops, append=height), np.diff(lefts, append=width)
    return float((sums / (high[:, None] * wide * channels)).max())


def _decibels(square: float) -> float:
    return 10 * math.log10(255**2 / square) if square else math.inf


# ------------------------------------------------------------------------------- interpolation


def _against_plain(pair: _Pair) -> tuple[float | None, float | None]:
    """`plain_psnr` and `detail`, in windows of the result that lie evenly."""
    (height, width), (high, wide) = pair.source.samples.shape[:2], pair.result.samples.shape[:2]
    if high < height or wide < width:
        return None, None
    squares = made = plain = 0.0
    count = 0
    for top in _starts(high):
        down, first, last = _bicubic(top, min(_WINDOW, high), height, high)
        source_rows = pair.source.rows(first, last)
        result_rows = pair.result.rows(top, top + len(down))
        for left in _starts(wide):
            across, start, stop = _bicubic(left, min(_WINDOW, wide), width, wide)
            got = result_rows[:, left : left + len(across), : pair.source.colours]
            got = got.astype(np.float32).transpose(2, 0, 1) * np.float32(255 / pair.result.full)
            x = source_rows[:, start:stop, : pair.source.colours].astype(np.float32)
            wanted = down @ x.transpose(2, 0, 1) @ across.T
            wanted = wanted.clip(0, pair.source.full) * np.float32(255 / pair.source.full)
            if pair.result.full == 255:
                wanted = np.rint(wanted)
            squares += float(np.square(got - wanted).sum())
            made += _laplacian_energy(got)
            plain += _laplacian_energy(wanted)
            count += got.size
    return _decibels(squares / count), made / plain if plain else None


def _starts(size: int) -> list[int]:
    """Where windows begin: evenly, none over another."""
    count = min(_WINDOWS, max(1, size // _WINDOW))
    free = max(0, size - count * _WINDOW)
    return [free * (2 * index + 1) // (2 * count) + index * _WINDOW for index in range(count)]


def _bicubic(start: int, count: int, size: int, target: int) -> tuple[_Floats, int, int]:
    """Keys' cubic convolution with a = -0.5, for some of the target's rows: their weights
    (count, rows of the source), and which rows those are; the border goes on."""
    centres = (np.arange(start, start + count) + 0.5) * size / target - 0.5
    index = np.floor(centres).astype(np.intp)[:, None] + np.arange(-1, 3)
    distance = np.abs(index - centres[:, None])
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, far)
    index = index.clip(0, size - 1)
    first, last = int(index.min()), int(index.max()) + 1
    matrix = np.zeros((count, last - first), np.float32)
    np.add.at(matrix, (np.arange(count)[:, None], index - first), weights)
    return matrix, first, last


def _laplacian_energy(x_chw: _Floats) -> float:
    middle = 4 * x_chw[:, 1:-1, 1:-1]
    beside = x_chw[:, 1:-1, :-2] + x_chw[:, 1:-1, 2:] + x_chw[:, :-2, 1:-1] + x_chw[:, 2:, 1:-1]
    return float(np.square(middle - beside).sum())
