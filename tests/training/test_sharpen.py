"""Unsharp masking against numpy and scipy, in double precision and with the kernel written out."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from pipeline.training.sharpen import sharpen


def blurred(image):
    """Of one channel. OpenCV's kernel of 51 taps; scipy calls its REFLECT_101 `mirror`."""
    sigma = 0.3 * ((51 - 1) * 0.5 - 1) + 0.8
    kernel = np.exp(-((np.arange(51) - 25) ** 2) / (2 * sigma**2))
    for axis in (0, 1):
        image = ndimage.correlate1d(image, kernel / kernel.sum(), axis=axis, mode="mirror")
    return image


def sharpened(image):
    """Of one channel, as the recipe says it."""
    residual = image - blurred(image)
    softness = blurred((np.abs(residual) * 255 > 10).astype(np.float64))
    sharp = np.clip(image + 0.5 * residual, 0, 1)
    return softness * sharp + (1 - softness) * image


def pictures(*shape, seed=0):
    """Smooth surroundings with edges, and noise both above and below the threshold."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    smooth = ndimage.gaussian_filter(noise, (0, 0, 3, 3), mode="wrap") * 5
    return np.clip(0.5 + 0.3 * np.sign(smooth) + 0.02 * noise, 0, 1)


# 25 and less are smaller than the kernel's half, 1 and 2 reflect again and again.
@pytest.mark.parametrize("size", [(80, 64), (51, 27), (26, 25), (7, 40), (2, 3), (1, 60), (1, 1)])
def test_it_is_the_unsharp_mask_of_the_recipe(size):
    wanted = pictures(2, 3, *size)
    found = sharpen(torch.from_numpy(wanted).float())
    expected = np.stack([[sharpened(channel) for channel in picture] for picture in wanted])
    assert found.dtype == torch.float32
    assert found.shape == wanted.shape
    # A difference within rounding of the threshold would move its surroundings by 5e-5.
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-6)


def test_it_changes_edges_and_nothing_else():
    step = torch.full((1, 1, 40, 200), 0.3)
    step[..., 100:] = 0.7
    found = sharpen(step)
    assert found[..., 99].max() < 0.3 - 0.01
    assert found[..., 100].min() > 0.7 + 0.01
    # Twice the kernel's radius away nothing is left of the edge.
    np.testing.assert_allclose(found[..., :49].numpy(), 0.3, atol=1e-6)
    faint = 0.5 + (step - 0.5) * (9 / 255 / 0.2)  # its halves are 9 levels from their mean
    np.testing.assert_allclose(sharpen(faint).numpy(), faint.numpy(), atol=1e-6)


def test_its_result_is_a_target_and_a_picture():
    noise = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (1, 3, 30, 30))).float()
    found = sharpen(noise.requires_grad_())
    assert not found.requires_grad
    assert found.min() >= 0
    assert found.max() <= 1


def test_half_precision_around_it_does_not_reach_it():
    picture = torch.from_numpy(pictures(1, 3, 40, 40)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = sharpen(picture)
    assert torch.equal(inside, sharpen(picture))
