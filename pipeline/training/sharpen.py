"""Unsharp masking of training targets.

X. Wang et al., "Real-ESRGAN" (2021): who learns from sharpened targets sharpens, without the
artefacts of a stronger GAN. The numbers are those of its released code.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_RADIUS = 25  # pixels; the kernel has 51
_SIGMA = 8.0  # pixels; what OpenCV derives from 51: 0.3 * ((51 - 1) / 2 - 1) + 0.8
_AMOUNT = 0.5  # share of the difference from the blurred picture that is added
_THRESHOLD = 10 / 255  # differences up to this are noise, not edges


@torch.no_grad()
def sharpen(x_bchw: Tensor) -> Tensor:
    """Add half of what a Gaussian blur takes away, around edges only.

    x_bchw: float32 (B, C, H, W) in [0, 1], of any size and on any device. Channels are sharpened
    one by one. Beyond its borders a picture is reflected about its outermost pixels, as often as
    the kernel needs: a picture may be smaller than that, down to one pixel.
    Returns float32 of the same shape in [0, 1], without gradients.
    """
    # The steps of bf16 are whole levels of 8 bits, and the threshold has but ten of them.
    with torch.autocast(x_bchw.device.type, enabled=False):
        detail = x_bchw - _blur(x_bchw)
        softness = _blur((detail.abs() > _THRESHOLD).to(x_bchw.dtype))
        sharp = (x_bchw + _AMOUNT * detail).clamp(0, 1)
        return torch.lerp(x_bchw, sharp, softness.clamp(0, 1))


def _blur(x_bchw: Tensor) -> Tensor:
    """Gaussian blur, along columns and then along rows.

    As products of matrices: at the sides of crops several times faster on CPUs than convolutions of
    single channels, and the borders are in the matrix.
    """
    down, across = (_blurring(side, x_bchw.device) for side in x_bchw.shape[-2:])
    return down @ x_bchw @ across.T


@lru_cache(maxsize=8)
def _blurring(side: int, device: torch.device) -> Tensor:
    """The blur of a line of pixels as a float32 matrix (side, side)."""
    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    kernel = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    period = max(2 * (side - 1), 1)
    wrapped = (np.arange(side)[:, None] + offsets) % period
    sources = np.minimum(wrapped, period - wrapped)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], sources), kernel / kernel.sum())
    return torch.from_numpy(matrix).to(device, torch.float32)
