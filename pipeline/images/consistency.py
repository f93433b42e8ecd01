"""How a result agrees with its source: what a network must not change, in a few numbers.

The larger of the two is reduced to the size of the other by area averaging, the same as averaging
over the source's pixels, and the two are compared there, in levels of 255. Real-ESRGAN takes noise
and compression away, so the figures say something among pictures of one kind: a tint, black tiles
or a network that does nothing stand out from the others.

With transparency the colours are those on black: under what is fully transparent a result has
others than its source. Of alpha itself only the bias is told.

Cost and memory: strips of rows, and no figure that takes more than a few passes over all samples.
Colour difference and clipping are those of pixels on a grid, interpolation is that of green, or of
gray, in at most 16 windows; all the rest is that of every sample.
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
_STRIP_SAMPLES = 2**21
_COLOUR_PIXELS, _CLIPPED_PIXELS = 2**10, 2**14  # a few more, to be exact
_WINDOWS, _WINDOW = 4, 48  # windows a side of the picture; pixels a side of a window


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
    """dB, of the result's green or gray against a bicubic enlargement of the source: high where the
    network did little else. None where the result is smaller than the source."""
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

    def green(self, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> _Floats:
        """Levels of 255 in green, or in gray, where these cross, on black: (rows, columns)."""
        green, alpha = self.samples[:, :, self.colours // 2], self.samples[:, :, -1]
        levels = green[rows[:, None], columns].astype(np.float32)
        if self.transparent:
            levels *= alpha[rows[:, None], columns] / np.float32(self.full)
        levels *= np.float32(255 / self.full)
        return levels

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
        if height % self.height:
            tall = np.empty((len(rows), *picture.samples.shape[1:]), np.float32)
            for index, row in enumerate(rows):
                start, weights = _covered(row, height, self.height)
                part = picture.rows(start, start + len(weights))
                tall[index] = np.einsum("r,rwc->wc", weights, part)
        else:
            times = height // self.height
            tall = _summed_rows(picture.rows(rows.start * times, rows.stop * times), times)
        wide = tall if width == self.width else _summed(tall, self.width)
        wide *= np.float32(255 / picture.full * self.width * self.height / (width * height))
        return wide

    def made_constant(self, rows: range) -> NDArray[np.bool_]:
        """Of each block whether it has a single colour only in the result: (rows of blocks, blocks
        in a row)."""
        found = self._constant(self.result, self.result.stored, rows)
        if found.any():
            # On black only here: what is hidden in the source is constant, whatever the result has.
            found &= ~self._constant(self.source, self.source.rows, rows)
        return found

    def _constant(
        self, picture: _Picture, read: Callable[[int, int], NDArray[Any]], rows: range
    ) -> NDArray[np.bool_]:
        height, width = picture.samples.shape[:2]
        lefts = np.arange(0, self.width, _BLOCK) * width // self.width
        tops = [top * height // self.height for top in (*rows[::_BLOCK], rows.stop)]
        return np.stack([_of_one_colour(read(*ends), lefts) for ends in pairwise(tops)])

    def grid(self, pixels: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns of about so many pixels that stand for all."""
        step = math.ceil(math.sqrt(self.height * self.width / pixels))
        sides = (self.height, self.width)
        rows, columns = (np.arange(min(step, side) // 2, side, step) for side in sides)
        return rows, columns

    def clipped(self, picture: _Picture) -> NDArray[np.bool_]:
        """Of the pixels nearest to the centres of the grid's: (rows, columns, colours)."""
        sizes = picture.samples.shape[:2]
        common = (self.height, self.width)
        row, column = (
            (2 * index + 1) * size // (2 * small)
            for index, size, small in zip(self.grid(_CLIPPED_PIXELS), sizes, common, strict=True)
        )
        levels = picture.samples.take(row, 0).take(column, 1)[:, :, : picture.colours]
        return (levels == 0) | (levels == picture.full)


class _Sums:
    """What is known of a pair so far."""

    def __init__(self) -> None:
        self._differences: _Doubles = np.zeros(1)
        self._squares = 0.0
        self._colours = list[_Floats]()
        self._worst = 0.0
        self._constant = self._blocks = 0

    def add(self, pair: _Pair, rows: range) -> None:
        """Some rows of blocks."""
        wanted, got = (pair.averages(each, rows) for each in (pair.source, pair.result))
        off = got - wanted
        pixels, colours = off.shape[0] * off.shape[1], pair.source.colours
        each_once = np.ones(pixels, np.float32)
        self._differences = self._differences + each_once @ off.reshape(pixels, -1)
        off = off[:, :, :colours]
        self._squares += float(np.einsum("hwc,hwc->", off, off))
        self._worst = max(self._worst, _worst_block(off))
        grid_rows, columns = pair.grid(_COLOUR_PIXELS)
        here = grid_rows[(grid_rows >= rows.start) & (grid_rows < rows.stop)] - rows.start
        chosen = (here[:, None], columns, slice(colours))
        self._colours.append(np.stack([wanted[chosen], got[chosen]]))
        flat = pair.made_constant(rows)
        self._constant += int(np.count_nonzero(flat))
        self._blocks += flat.size

    def consistency(self, pair: _Pair) -> Consistency:
        """The figures, when all strips are in."""
        pixels, colours = pair.height * pair.width, pair.source.colours
        bias = [float(value) / pixels for value in self._differences]
        plain_psnr, detail = _against_plain(pair)
        labs = lab(np.concatenate(self._colours, axis=1))
        return Consistency(
            psnr=_decibels(self._squares / (pixels * colours)),
            delta_e=float(delta_e2000(*labs).mean()),
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


def _summed_rows(x_hwc: NDArray[Any], times: int) -> _Floats:
    """Sums of so many rows each: (H / times, W, C)."""
    parts = x_hwc.reshape(-1, times, *x_hwc.shape[1:])
    narrow = parts.dtype == np.uint8 and times <= 2**8  # no sum is above 16 bits
    kind = np.uint16 if narrow else np.float32 if parts.dtype == np.float32 else np.uint32
    sums = parts[:, 0].astype(kind)
    for index in range(1, times):
        sums += parts[:, index]
    return sums.astype(np.float32)


def _summed(x_hwc: _Floats, target: int) -> _Floats:
    """The same across, as sums: (H, target, C)."""
    height, width, channels = x_hwc.shape
    times, rest = divmod(width, target)
    if not rest:  # a product of matrices is the fastest way to add up what lies so close
        adds = np.tile(np.eye(channels, dtype=np.float32), (times, 1))
        return (x_hwc.reshape(height * target, -1) @ adds).reshape(height, target, channels)
    edges = np.arange(target) * width
    whole, parts = edges // target, (edges % target / target).astype(np.float32)
    sums = np.add.reduceat(x_hwc, whole, axis=1)
    if parts.any():  # of the pixel on an edge, so much belongs to what is left of it
        cut = x_hwc[:, whole] * parts[:, None]
        sums -= cut
        sums[:, :-1] += cut[:, 1:]
    return sums


def _of_one_colour(x_hwc: NDArray[Any], lefts: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Of each block of columns, which begin there."""
    first, middle, last = x_hwc[[0, len(x_hwc) // 2, -1]].reshape(3, -1)
    same = (first == middle) & (first == last)
    found = np.logical_and.reduceat(same, lefts * x_hwc.shape[2])
    if not found.any():  # as three rows show, of nearly all blocks
        return found
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
    sums = np.abs(off_hwc) @ np.ones(channels, np.float32)
    sums = np.add.reduceat(np.add.reduceat(sums, tops, axis=0), lefts, axis=1)
    high, wide = np.diff(tops, append=height), np.diff(lefts, append=width)
    return float((sums / (high[:, None] * wide * channels)).max())


def _decibels(square: float) -> float:
    return 10 * math.log10(255**2 / square) if square else math.inf


# ------------------------------------------------------------------------------- interpolation


def _against_plain(pair: _Pair) -> tuple[float | None, float | None]:
    """`plain_psnr` and `detail`, in windows of the result that lie evenly."""
    source, result = pair.source.samples.shape[:2], pair.result.samples.shape[:2]
    if result[0] < source[0] or result[1] < source[1]:
        return None, None
    (down, rows), (across, columns) = (
        _bicubic(_windows(target).ravel(), size, target)
        for size, target in zip(source, result, strict=True)
    )
    wanted = (down @ pair.source.green(rows, columns) @ across.T).clip(0, 255)
    if pair.result.full == 255:
        wanted = np.rint(wanted)
    high, wide = (_windows(target) for target in result)
    got = pair.result.green(high.ravel(), wide.ravel())
    psnr = _decibels(float(np.square(got - wanted).mean()))
    made, plain = (
        _laplacian_energy(each.reshape(*high.shape, *wide.shape)) for each in (got, wanted)
    )
    return psnr, made / plain if plain else None


def _windows(size: int) -> NDArray[np.intp]:
    """The indices along a side that are in windows, which lie evenly, none over another: (windows,
    side of a window)."""
    count, side = min(_WINDOWS, max(1, size // _WINDOW)), min(size, _WINDOW)
    free = size - count * side
    starts = [free * (2 * index + 1) // (2 * count) + index * side for index in range(count)]
    return np.array(starts)[:, None] + np.arange(side)


def _bicubic(places: NDArray[np.intp], size: int, target: int) -> tuple[_Floats, NDArray[np.intp]]:
    """Keys' cubic convolution with a = -0.5, for some of the target's rows: their weights
    (places, rows of the source), and which rows those are; the border goes on."""
    centres = (places + 0.5) * size / target - 0.5
    index = np.floor(centres).astype(np.intp)[:, None] + np.arange(-1, 3)
    distance = np.abs(index - centres[:, None])
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, far)
    used, column = np.unique(index.clip(0, size - 1), return_inverse=True)
    cells = np.arange(len(places))[:, None] * len(used) + column.reshape(index.shape)
    matrix = np.bincount(cells.ravel(), weights.ravel(), len(places) * len(used))
    return matrix.reshape(len(places), len(used)).astype(np.float32), used


def _laplacian_energy(x: _Floats) -> float:
    """Of the insides of windows, (windows, rows, windows, columns)."""
    middle = 4 * x[:, 1:-1, :, 1:-1]
    beside = x[:, 1:-1, :, :-2] + x[:, 1:-1, :, 2:] + x[:, :-2, :, 1:-1] + x[:, 2:, :, 1:-1]
    return float(np.square(middle - beside).sum())
