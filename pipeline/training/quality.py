"""How near a picture comes to its target: PSNR and SSIM as the literature reports them.

Published figures follow one of two conventions, between which lie 1 to 3 dB:

    RGB   all three channels and all pixels; mmagic's tables
    Y     the luma of BT.601 alone, without a border as wide as the scale; most papers, and BasicSR

Both are in levels of 255. SSIM is that of Z. Wang et al., "Image quality assessment: from error
visibility to structural similarity" (2004), as its authors' MATLAB code computes it: of several
channels the mean of their indices.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.images.image import Pixels

WINDOW = 11
"""Pixels a side that SSIM compares; no picture may be smaller."""

_SIGMA = 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_BELL = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * _SIGMA**2))
_WEIGHTS = _BELL / _BELL.sum()

# Of 255: Y is 16 for black and 235 for white.
_LUMA, _BLACK = np.array([65.481, 128.553, 24.966]) / 255, 16


@dataclass(frozen=True, slots=True)
class Quality:
    """PSNR in dB, infinite for equal pictures; SSIM at most 1. In RGB, and of Y within a border."""

    psnr: float
    ssim: float
    psnr_y: float
    ssim_y: float


def compare(made: Pixels, target: Pixels, *, border: int) -> Quality:
    """Both conventions at once.

    made, target: uint8 (H, W, 3). border: pixels that Y leaves out at each side, by custom as many
    as the scale. Raises ValueError for other shapes, or less than `WINDOW` pixels within it.
    """
    for pixels in (made, target):
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"quality is that of RGB pictures, (H, W, 3), not {pixels.shape}")
    height, width = target.shape[:2]
    if min(height, width) < WINDOW + 2 * border:
        raise ValueError(
            f"{width} x {height} pixels, SSIM needs {WINDOW + 2 * border} a side: a window of "
            f"{WINDOW} within a border of {border}"
        )
    inside = np.s_[border : height - border, border : width - border]
    made_y, target_y = luma(made)[inside], luma(target)[inside]
    return Quality(
        psnr(made, target), ssim(made, target), psnr(made_y, target_y), ssim(made_y, target_y)
    )


def mean(qualities: Sequence[Quality]) -> Quality:
    """Of each figure; a PSNR is infinite where one of them is. Raises ValueError of none."""
    if not qualities:
        raise ValueError("the mean of no pictures")
    columns = zip(*map(astuple, qualities), strict=True)
    return Quality(*(math.fsum(column) / len(qualities) for column in columns))


def luma(pixels: Pixels) -> NDArray[np.float64]:
    """Y of BT.601 in studio swing, 16 to 235: float64 (H, W) of uint8 (H, W, 3).

    As MATLAB's `rgb2ycbcr` has it but for its rounding to whole levels, which BasicSR and mmagic
    leave out.
    """
    return pixels @ _LUMA + _BLACK


def psnr(made: NDArray[Any], target: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio in dB, of all values together; infinite for equal pictures.

    made, target: levels of 255, of one shape, else ValueError.
    """
    _check(made, target)
    error = float(np.mean(np.square(np.subtract(made, target, dtype=np.float64))))
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(made: NDArray[Any], target: NDArray[Any]) -> float:
    """Structural similarity: the mean over channels and over windows that lie wholly inside.

    made, target: levels of 255, (H, W) or (H, W, C). Raises ValueError for different shapes and
    for less than `WINDOW` pixels a side.
    """
    _check(made, target)
    if min(made.shape[:2]) < WINDOW:
        height, width = made.shape[:2]
        raise ValueError(f"{width} x {height} pixels, SSIM needs {WINDOW} a side")
    channels = (np.moveaxis(np.atleast_3d(levels), 2, 0) for levels in (made, target))
    return float(np.mean([_ssim(a_hw, b_hw) for a_hw, b_hw in zip(*channels, strict=True)]))


def _ssim(made_hw: NDArray[Any], target_hw: NDArray[Any]) -> float:
    a_hw, b_hw = made_hw.astype(np.float64), target_hw.astype(np.float64)
    product, squares = a_hw * b_hw, np.square(a_hw) + np.square(b_hw)
    means = _local_mean(a_hw), _local_mean(b_hw)
    mean_product, mean_squares = means[0] * means[1], np.square(means[0]) + np.square(means[1])
    covariance = _local_mean(product) - mean_product
    variances = _local_mean(squares) - mean_squares  # only their sum is needed
    likeness = (2 * mean_product + _C1) * (2 * covariance + _C2)
    return float(np.mean(likeness / ((mean_squares + _C1) * (variances + _C2))))


def _local_mean(x_hw: NDArray[np.float64]) -> NDArray[np.float64]:
    """Under the window, which is a product of two: down the columns, then along the rows."""
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(x_hw, WINDOW, axis)
        x_hw = np.einsum("hwk,k->hw", windows, _WEIGHTS)
    return x_hw


def _check(made: NDArray[Any], target: NDArray[Any]) -> None:
    if made.shape != target.shape:
        raise ValueError(f"pictures of different shapes, {made.shape} and {target.shape}")
