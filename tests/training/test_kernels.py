"""Blur kernels against scipy's distributions and Bessel function, filtering against ndimage."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import ndimage, special, stats

from pipeline.training.kernels import Gaussian, Sinc, filter2d

KINDS = ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
ODD = st.integers(3, 10).map(lambda half: 2 * half + 1)


def covariance(sigma_x, sigma_y, theta):
    turn = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    return turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T


def places(size):
    """(size, size, 2): x and y of each pixel, from the middle."""
    y, x = np.mgrid[:size, :size] - size // 2
    return np.stack([x, y], -1).astype(float)


def mahalanobis_squared(size, matrix):
    return np.einsum("...i,ij,...j", places(size), np.linalg.inv(matrix), places(size))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(ODD, st.floats(0.2, 3), st.floats(0.2, 3), st.floats(-np.pi, np.pi))
def test_plain_gaussian_is_the_normal_density(size, sigma_x, sigma_y, theta):
    kernel = Gaussian("aniso", size, sigma_x, sigma_y, theta, 1.0).weights()
    density = stats.multivariate_normal(cov=covariance(sigma_x, sigma_y, theta)).pdf(places(size))
    assert kernel.dtype == np.float32
    assert_allclose(kernel, density / density.sum(), atol=1e-6)


def test_isotropic_gaussian_is_scipys_filter():
    impulse = np.zeros((21, 21))
    impulse[10, 10] = 1
    expected = ndimage.gaussian_filter(impulse, 1.7, mode="constant", radius=10)
    assert_allclose(Gaussian("iso", 21, 1.7, 1.7, 0.0, 1.0).weights(), expected, atol=1e-7)


@pytest.mark.parametrize("beta", [0.5, 0.8, 1.0, 2.5, 4.0])
def test_generalised_gaussian_is_scipys_on_its_axes(beta):
    # exp(-(x^2 / sigma^2)^beta / 2) is the generalised normal density with exponent 2 beta.
    kernel = Gaussian("generalized_aniso", 21, 2.5, 1.2, 0.0, beta).weights()
    for line, sigma in ((kernel[10], 2.5), (kernel[:, 10], 1.2)):
        spread = sigma * 2 ** (1 / (2 * beta))
        density = stats.gennorm(2 * beta, scale=spread).pdf(np.arange(-10, 11))
        assert_allclose(line / line.sum(), density / density.sum(), atol=1e-6)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(ODD, st.floats(0.2, 3), st.floats(0.2, 3), st.floats(-3, 3), st.floats(0.5, 4))
def test_profiles_of_the_quadratic_form(size, sigma_x, sigma_y, theta, beta):
    powered = mahalanobis_squared(size, covariance(sigma_x, sigma_y, theta)) ** beta
    for kind, profile in (
        ("generalized_aniso", np.exp(-0.5 * powered)),
        ("plateau_aniso", special.expit(-np.log(powered, where=powered > 0, out=powered * 0))),
    ):
        profile[size // 2, size // 2] = 1
        kernel = Gaussian(kind, size, sigma_x, sigma_y, theta, beta).weights()
        assert_allclose(kernel, profile / profile.sum(), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_keep_brightness_and_place(kind):
    kernel = Gaussian(kind, 15, 2.0, 2.0 if kind.endswith("_iso") else 0.7, 0.4, 1.5).weights()
    assert kernel.shape == (15, 15)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-7)
    assert kernel.max() == kernel[7, 7]


def test_theta_turns_x_towards_y():
    kernel = Gaussian("aniso", 21, 3.0, 0.5, np.pi / 4, 1.0).weights()
    assert kernel[14, 14] > 100 * kernel[14, 6]  # y as x, not its opposite


@settings(deadline=None, derandomize=True, max_examples=50)
@given(ODD, st.floats(np.pi / 5, np.pi))
def test_sinc_is_the_jinc_of_scipys_bessel_function(size, cutoff):
    radius = np.linalg.norm(places(size), axis=-1)
    radius[size // 2, size // 2] = np.nan
    expected = cutoff * special.j1(cutoff * radius) / (2 * np.pi * radius)
    expected[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    assert_allclose(Sinc(size, cutoff).weights(), expected / expected.sum(), atol=1e-6)


def test_sinc_passes_what_is_below_its_cutoff():
    spectrum = np.abs(np.fft.fft2(Sinc(101, np.pi / 2).weights(), (400, 400)))
    frequency = 2 * np.pi * np.fft.fftfreq(400)
    radius = np.hypot(frequency[:, None], frequency)
    assert_allclose(spectrum[radius < 0.4 * np.pi].mean(), 1, atol=0.02)
    assert spectrum[radius > 0.6 * np.pi].mean() < 0.02


@pytest.mark.parametrize(("height", "width"), [(40, 33), (64, 64), (12, 57), (11, 11)])
def test_filtering_is_scipys_with_mirrored_edges(height, width):
    pictures = torch.rand(4, 3, height, width, generator=torch.Generator().manual_seed(1))
    kernels = [
        Gaussian("aniso", 7, 3.0, 0.5, 0.3, 1.0),
        Sinc(21, 1.1),
        None,
        Gaussian("plateau_iso", 13, 1.5, 1.5, 0.0, 2.0),
    ]
    blurred = filter2d(pictures, kernels)
    for result, picture, kernel in zip(blurred, pictures, kernels, strict=True):
        weights = np.ones((1, 1)) if kernel is None else kernel.weights()
        expected = ndimage.correlate(picture.double().numpy(), weights[None], mode="mirror")
        assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("side", [1, 2, 10])
def test_pictures_smaller_than_half_a_kernel_repeat_their_edges(side):
    picture = torch.rand(1, 3, side, 30, generator=torch.Generator().manual_seed(1))
    kernel = Sinc(21, 1.1)
    expected = ndimage.correlate(picture[0].numpy(), kernel.weights()[None], mode="nearest")
    assert_allclose(filter2d(picture, [kernel])[0], expected, atol=1e-5)
