"""PSNR and SSIM beside their textbook formulas, scipy's filters, and values known by hand."""

import math

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training import quality
from pipeline.training.quality import Quality

PROPERTY = settings(deadline=None, derandomize=True, max_examples=25)


def noise(seed, height=24, width=31):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def near(pixels, seed, spread=12):
    """The picture with noise, in levels."""
    levels = pixels + np.random.default_rng(seed).normal(0, spread, pixels.shape)
    return levels.round().clip(0, 255).astype(np.uint8)


def y_by_hand(pixels):
    """Poynton's form: 219 levels of luma with the weights 0.299, 0.587 and 0.114."""
    red, green, blue = (pixels[..., channel] / 255 for channel in range(3))
    return 16 + 219 * (0.299 * red + 0.587 * green + 0.114 * blue)


def ssim_by_scipy(a, b):
    """Wang's formula with all five moments, under a two-dimensional window."""
    row = scipy.signal.windows.gaussian(11, 1.5)
    window = np.outer(row, row) / row.sum() ** 2
    a, b = a.astype(np.float64), b.astype(np.float64)

    def moment(x):
        return scipy.signal.convolve2d(x, window, mode="valid")

    mu_a, mu_b = moment(a), moment(b)
    var_a, var_b = moment(a * a) - mu_a**2, moment(b * b) - mu_b**2
    cov = moment(a * b) - mu_a * mu_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mu_a * mu_b + c1) * (2 * cov + c2)
    return (top / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))).mean()


@pytest.mark.parametrize(("levels", "expected"), [(1, 48.1308), (2, 42.1102), (10, 28.1308)])
def test_a_constant_difference_has_the_psnr_of_the_textbook(levels, expected):
    dark = np.full((20, 20, 3), 100, np.uint8)
    assert quality.psnr(dark, dark + np.uint8(levels)) == pytest.approx(expected, abs=1e-4)
    assert quality.psnr(dark + np.uint8(levels), dark) == pytest.approx(expected, abs=1e-4)


def test_psnr_is_that_of_the_error_over_all_channels():
    black, red = np.zeros((2, 16, 16, 3), np.uint8)
    red[..., 0] = 255
    assert quality.psnr(black, red) == pytest.approx(10 * math.log10(3))
    assert quality.psnr(black, np.full_like(black, 255)) == pytest.approx(0, abs=1e-12)


def test_equal_pictures_are_infinitely_near():
    found = quality.compare(noise(0), noise(0), border=4)
    assert (found.psnr, found.psnr_y) == (math.inf, math.inf)
    assert (found.ssim, found.ssim_y) == (pytest.approx(1), pytest.approx(1))


def test_luma_is_that_of_the_standard():
    colours = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
    known = [16, 235, 81.481, 144.553, 40.966]  # MATLAB's documentation of rgb2ycbcr
    assert quality.luma(colours[None].astype(np.uint8))[0] == pytest.approx(known)
    assert quality.luma(noise(1)) == pytest.approx(y_by_hand(noise(1)))


@PROPERTY
@given(seed=st.integers(0, 99), height=st.integers(11, 40), width=st.integers(11, 40))
def test_ssim_of_a_channel_is_that_of_scipy(seed, height, width):
    target = noise(seed, height, width)[..., 0]
    made = near(target, seed + 1)
    assert quality.ssim(made, target) == pytest.approx(ssim_by_scipy(made, target), abs=1e-12)


@PROPERTY
@given(seed=st.integers(0, 99), border=st.integers(0, 6), spread=st.integers(1, 60))
def test_both_conventions_are_computed_as_they_are_written_down(seed, border, spread):
    target = noise(seed)
    made = near(target, seed + 1, spread)
    found = quality.compare(made, target, border=border)
    error = ((made.astype(int) - target.astype(int)) ** 2).mean()
    assert found.psnr == pytest.approx(10 * math.log10(65025 / error))
    channels = [ssim_by_scipy(made[..., c], target[..., c]) for c in range(3)]
    assert found.ssim == pytest.approx(sum(channels) / 3, abs=1e-12)
    height, width = target.shape[:2]
    inside = [
        y_by_hand(each)[border : height - border, border : width - border]
        for each in (made, target)
    ]
    error = ((inside[0] - inside[1]) ** 2).mean()
    assert found.psnr_y == pytest.approx(10 * math.log10(65025 / error))
    assert found.ssim_y == pytest.approx(ssim_by_scipy(*inside), abs=1e-12)


def test_what_lies_in_the_border_counts_in_rgb_alone():
    target = noise(2)
    made = target.copy()
    made[:4], made[-4:], made[:, :4], made[:, -4:] = 0, 0, 0, 0
    found = quality.compare(made, target, border=4)
    assert found.psnr < 15
    assert found.psnr_y == math.inf
    assert quality.compare(made, target, border=3).psnr_y < 30


def test_quality_does_not_depend_on_which_way_a_picture_is_turned():
    target = noise(3)
    made = near(target, 4)
    upright = quality.compare(made, target, border=2)
    turned = quality.compare(np.rot90(made), np.rot90(target), border=2)
    for name in ("psnr", "ssim", "psnr_y", "ssim_y"):
        assert getattr(turned, name) == pytest.approx(getattr(upright, name), abs=1e-12)


def test_the_mean_is_that_of_the_pictures_and_infinite_with_a_perfect_one():
    first, second = Quality(30, 0.9, 32, 0.8), Quality(20, 0.7, 22, 0.6)
    assert quality.mean([first, second]) == Quality(25, pytest.approx(0.8), 27, pytest.approx(0.7))
    perfect = Quality(math.inf, 1, math.inf, 1)
    assert quality.mean([first, perfect]).psnr == math.inf
    with pytest.raises(ValueError, match="no pictures"):
        quality.mean([])


@pytest.mark.parametrize(
    ("made", "target", "said"),
    [
        (noise(0, 24, 24), noise(0, 24, 25), r"\(24, 24, 3\) and \(24, 25, 3\)"),
        (noise(0, 18, 40), noise(1, 18, 40), "40 x 18 pixels, SSIM needs 19 a side"),
        (noise(0)[..., :1], noise(1)[..., :1], r"RGB pictures.*not \(24, 31, 1\)"),
        (noise(0)[..., 0], noise(1)[..., 0], r"RGB pictures.*not \(24, 31\)"),
    ],
)
def test_what_cannot_be_compared_is_said_with_its_numbers(made, target, said):
    with pytest.raises(ValueError, match=said):
        quality.compare(made, target, border=4)


def test_a_channel_smaller_than_the_window_has_no_ssim():
    with pytest.raises(ValueError, match="30 x 10 pixels, SSIM needs 11"):
        quality.ssim(np.zeros((10, 30)), np.zeros((10, 30)))
