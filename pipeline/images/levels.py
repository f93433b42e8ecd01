"""Samples as `image.Samples` promises them: full range, straight alpha, the right way up."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.images.image import Samples

_BAND_PIXELS = 2**17


def bands(samples: NDArray[Any]) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of all of it in turn, whole rows unless they are very wide.

    What is computed band by band takes little memory beside its result.
    """
    height, width = samples.shape[:2]
    down, across = max(1, _BAND_PIXELS // width), min(width, _BAND_PIXELS)
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield slice(top, top + down), slice(left, left + across)


def full_range(stored: NDArray[Any], highest: int) -> Samples:
    """Levels 0 to `highest` as 0 to 255, or above that to 65,535; rounded to the nearest."""
    dtype: Any = np.uint8 if highest <= 255 else np.uint16
    full = int(np.iinfo(dtype).max)
    if highest == full:
        return stored.astype(dtype, copy=False)
    levels = (np.arange(highest + 1, dtype=np.uint64) * full + highest // 2) // highest
    # Levels that the depth cannot have, of a broken file, are the highest.
    levels = levels.astype(dtype)
    made: NDArray[Any] = np.empty(stored.shape, dtype)
    for band in bands(stored):
        made[band] = levels[np.minimum(stored[band], highest)]
    return made


def straight(samples: NDArray[Any]) -> Samples:
    """Colours that were multiplied by their alpha (the last channel) divided by it again.

    Under a transparent pixel nothing is left of the colour: it becomes black.
    """
    full = np.iinfo(samples.dtype).max
    made = np.empty(samples.shape, samples.dtype)
    for band in bands(samples):
        alpha = samples[band][:, :, -1:].astype(np.uint32)
        colours = samples[band][:, :, :-1].astype(np.uint32)  # 65,535 squared and a half fit
        divided = np.minimum((colours * full + alpha // 2) // np.maximum(alpha, 1), full)
        made[band][:, :, :-1] = divided
        made[band][:, :, -1] = samples[band][:, :, -1]
    return made


def upright(samples: NDArray[Any], orientation: int) -> Samples:
    """The stored rows and columns turned as EXIF's orientation (1 to 8) says."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    return np.ascontiguousarray(samples)


def palette_channels(palette: bytes) -> int:
    """1 where the palette (red, green and blue in turn) holds only grays, else 3."""
    return 1 if palette[::3] == palette[1::3] == palette[2::3] else 3
