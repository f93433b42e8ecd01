"""Pictures beside each other, to be looked at: sheets of labelled crops, and plain enlargements."""

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.images.image import Pixels
from pipeline.training.quality import luma

_MARGIN = 8
_TEXT = 16
_LINE = _TEXT + _MARGIN
_CELL = 256  # pixels a side that small crops are shown at, at least half of it
_PAPER, _INK = "white", "black"


def resize(pixels: Pixels, width: int, height: int) -> Pixels:
    """The picture at another size, as Pillow's BICUBIC has it.

    uint8 (H, W, 3) to (height, width, 3). It enlarges by cubic interpolation with a = -0.5 and
    reduces by the same kernel stretched by the factor, so that nothing aliases.
    """
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def most_detailed(pixels: Pixels, side: int) -> tuple[slice, slice]:
    """Rows and columns of the square in which the luma changes most from pixel to pixel.

    pixels: uint8 (H, W, 3). side: in pixels; where the picture is smaller, all of it is taken.
    """
    y_hw = luma(pixels)
    change = np.zeros(y_hw.shape)
    change[1:] += np.abs(np.diff(y_hw, axis=0))
    change[:, 1:] += np.abs(np.diff(y_hw, axis=1))
    rows, columns = (min(side, length) for length in y_hw.shape)
    sums = _running(_running(change, rows).T, columns).T
    top, left = divmod(int(np.argmax(sums)), sums.shape[1])
    return slice(top, top + rows), slice(left, left + columns)


def sheet(rows: Sequence[tuple[str, Sequence[Pixels]]], columns: Sequence[str]) -> bytes:
    """A PNG file with a row of crops for each picture.

    rows: a label, and as many crops, uint8 (H, W, 3), as there are columns; small ones are shown
    in larger pixels. columns: their headings.
    Raises ValueError for a row with more or less crops than headings.
    """
    shown = [(label, [_magnified(crop) for crop in crops]) for label, crops in rows]
    width = max((crop.shape[1] for _, crops in shown for crop in crops), default=_CELL)
    heights = [max((len(crop) for crop in crops), default=0) for _, crops in shown]
    total = _LINE + sum(_LINE + height + _MARGIN for height in heights)
    paper = Image.new("RGB", (_MARGIN + (width + _MARGIN) * len(columns), total), _PAPER)
    pen, font = ImageDraw.Draw(paper), ImageFont.load_default(_TEXT)
    lefts = [_MARGIN + (width + _MARGIN) * number for number in range(len(columns))]
    for left, heading in zip(lefts, columns, strict=True):
        pen.text((left, _MARGIN // 2), heading, _INK, font)
    top = _LINE
    for (label, crops), height in zip(shown, heights, strict=True):
        pen.text((_MARGIN, top + _MARGIN // 2), label, _INK, font)
        for left, crop in zip(lefts, crops, strict=True):
            paper.paste(Image.fromarray(crop), (left, top + _LINE))
        top += _LINE + height + _MARGIN
    file = io.BytesIO()
    paper.save(file, "PNG")
    return file.getvalue()


def _magnified(crop: Pixels) -> Pixels:
    """Every pixel as a square of them, as many as fit a cell."""
    factor = max(1, _CELL // max(crop.shape[:2]))
    return crop.repeat(factor, axis=0).repeat(factor, axis=1)


def _running(x_hw: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Sums of so many rows, from each row that has them."""
    sums = np.cumsum(np.pad(x_hw, ((1, 0), (0, 0))), axis=0)
    return sums[length:] - sums[:-length]
