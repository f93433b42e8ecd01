"""A part of a picture's reduction, at the cost of the part."""

import math

import numpy as np
import PIL.Image

from pipeline.images.image import Pixels

_SUPPORT = 3  # Lanczos looks at so many pixels of the result to each side


def reduce(pixels: Pixels, width: int, height: int, window: tuple[int, int, int, int]) -> Pixels:
    """What `window` shows of the picture reduced to `width` x `height` by a Lanczos filter.

    pixels: (rows, columns, 3). window: left, top, width and height, inside the result.
    Equal to reducing the whole picture, across and then down, and cutting after; a few samples in
    a thousand differ by one level, because Pillow takes a box in single precision.
    """
    left, top, across, down = window
    columns, from_x, to_x = _span(left, across, pixels.shape[1] / width, pixels.shape[1])
    rows, from_y, to_y = _span(top, down, pixels.shape[0] / height, pixels.shape[0])
    part = PIL.Image.fromarray(pixels[rows, columns])
    # The filter reads what lies around a box, as long as the picture goes on there. Both ways at
    # once, Pillow would begin with the cheaper: rounding between them would depend on the window.
    lanczos = PIL.Image.Resampling.LANCZOS
    part = part.resize((across, part.height), lanczos, box=(from_x, 0, to_x, part.height))
    part = part.resize((across, down), lanczos, box=(0, from_y, across, to_y))
    return np.asarray(part)


def _span(start: int, length: int, factor: float, whole: int) -> tuple[slice, float, float]:
    """What is read along one axis, and where in it the box begins and ends."""
    first = max(0, math.floor((start - _SUPPORT) * factor) - 1)
    last = min(whole, math.ceil((start + length + _SUPPORT) * factor) + 1)
    begin, end = start * factor - first, (start + length) * factor - first
    return slice(first, last), begin, min(end, float(last - first))
