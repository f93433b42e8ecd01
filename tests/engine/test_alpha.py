"""Transparency: no colour of what is hidden comes into what is seen, and alpha stays alpha."""

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import SHAPES, interpolating, network, noise

from pipeline.engine.alpha import bleed, settled
from pipeline.engine.upscaler import Upscaler
from pipeline.models.srvgg import SRVGGShape

some = settings(deadline=None, derandomize=True, max_examples=40)
RED = (0.85, 0.15, 0.1)
FINE = 8  # samples a side of a pixel that has an edge in it


def coverage(side):
    """How much of each pixel a ring with a bar through it covers: float (side, side)."""
    y, x = (np.mgrid[: side * FINE, : side * FINE] + 0.5) / (side * FINE)
    radius = np.hypot(x - 0.5, y - 0.5)
    shape = ((radius < 0.42) & (radius > 0.3)) | (np.abs(x - y) < 0.05) & (radius < 0.36)
    return shape.reshape(side, FINE, side, FINE).mean(axis=(1, 3))


def logo(side, *, hard, under, dtype=np.uint8):
    """A red logo: straight alpha, hard or antialiased, with colours under what is transparent."""
    full = np.iinfo(dtype).max
    alpha = coverage(side)
    alpha = np.rint((alpha >= 0.5 if hard else alpha) * full)
    pixels = np.empty((side, side, 4))
    pixels[:, :, :3], pixels[:, :, 3] = np.array(RED) * full, alpha
    hidden = alpha == 0
    colours = noise(side, side, 3, dtype=dtype) if under == "noise" else full * (under == "white")
    pixels[hidden, :3] = np.broadcast_to(colours, (side, side, 3))[hidden]
    return np.rint(pixels).astype(dtype)


def halo(result, ground):
    """The largest difference on a ground, in levels of 255, to the logo's colour with the same
    alpha; and the mean near the edge."""
    full = np.iinfo(result.dtype).max
    alpha = result[:, :, 3:] / full
    shown = result[:, :, :3] / full * alpha + ground * (1 - alpha)
    wanted = np.array(RED) * alpha + ground * (1 - alpha)
    off = np.abs(shown - wanted).max(axis=2) * 255
    edge = (alpha[:, :, 0] > 0.02) & (alpha[:, :, 0] < 0.98)
    return off.max(), off[edge].mean()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("way", ["network", "lanczos"])
@pytest.mark.parametrize("under", ["black", "white", "noise"])
@pytest.mark.parametrize("hard", [True, False])
def test_a_logo_has_no_halo_on_black_and_on_white(hard, under, way, dtype):
    upscaler = Upscaler(interpolating(4), device="cpu", precision="fp32", alpha=way)
    pixels = logo(48, hard=hard, under=under, dtype=dtype)
    inside = np.s_[8:-8, 8:-8]  # the network sees zeros beyond the border
    clean = upscaler(pixels).pixels[inside]
    as_it_is = upscaler(np.ascontiguousarray(pixels[:, :, :3])).pixels[inside]
    spoilt = np.dstack([as_it_is, clean[:, :, 3]])
    for ground in (0, 1):
        largest, mean = halo(clean, ground)
        assert largest <= 1.5  # rounding of the colours, of 8 bits
        assert mean <= 0.6
    # What was hidden comes up at the edges otherwise, by tens of levels.
    assert halo(spoilt, 0)[0] > 25
    assert halo(spoilt, 0)[1] > 4


@pytest.mark.parametrize("way", ["network", "lanczos"])
def test_alpha_is_near_the_ideal_and_nothing_is_left_outside(way):
    upscaler = Upscaler(interpolating(4), device="cpu", precision="fp32", alpha=way)
    ideal = coverage(192) * 255
    for hard, most in ((False, 12), (True, 16)):
        alpha = upscaler(logo(48, hard=hard, under="black")).pixels[:, :, 3]
        assert np.abs(alpha - ideal).mean() <= most
        near = np.lib.stride_tricks.sliding_window_view(np.pad(coverage(48), 2), (5, 5))
        far = (near.max(axis=(2, 3)) == 0).repeat(4, 0).repeat(4, 1)
        assert alpha[far].max() == 0
        assert alpha.max() == 255


@some
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 40),
    channels=st.sampled_from([2, 4]),
    visible=st.floats(0.001, 0.999),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    seed=st.integers(0, 99),
)
def test_bleeding_changes_hidden_colours_alone_and_knows_nothing_of_them(
    height, width, channels, visible, dtype, seed
):
    pixels = noise(height, width, channels, seed=seed, dtype=dtype)
    hidden = np.random.default_rng(seed).random((height, width)) >= visible
    pixels[hidden, -1] = 0
    bled = bleed(pixels)
    hidden = pixels[:, :, -1] == 0
    assert bled.dtype == dtype
    np.testing.assert_array_equal(bled[~hidden], pixels[~hidden])
    np.testing.assert_array_equal(bled[..., -1], pixels[..., -1])
    if hidden.any() and not hidden.all():
        other = pixels.copy()
        other[hidden, :-1] = 7
        np.testing.assert_array_equal(bleed(other), bled)
        seen = pixels[~hidden][:, :-1]
        assert (bled[hidden][:, :-1] >= seen.min(axis=0)).all()
        assert (bled[hidden][:, :-1] <= seen.max(axis=0)).all()


def test_colours_bleed_from_what_is_next_to_them():
    pixels = np.zeros((300, 300, 4), dtype=np.uint8)
    pixels[:, :129] = (200, 10, 0, 255)  # ends in the middle of every block of the pyramid
    pixels[:, 200:] = (0, 10, 200, 1)
    bled = bleed(pixels)
    for columns, channel in ((np.s_[129:133], 0), (np.s_[199:195:-1], 2)):
        assert (bled[:, columns, channel] >= 198).all()
    assert (np.diff(bled[0, 129:200, 0].astype(int)) <= 0).all()  # from one to the other, smoothly
    assert (bled[:, :, 1] == 10).all()


def test_nothing_hidden_or_nothing_visible_is_left_as_it_is():
    pixels = noise(5, 6, 4)
    for alpha in (255, 1, 0):
        pixels[:, :, 3] = alpha
        assert bleed(pixels) is pixels


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("way", ["network", "lanczos"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_opaque_and_transparent_pictures_stay_so(channels, way, dtype):
    shape = SRVGGShape(in_channels=channels, out_channels=channels, features=8, convs=1, scale=2)
    upscaler = Upscaler(network(shape), device="cpu", precision="fp32", alpha=way)
    for picture in (2, 4):
        pixels = noise(9, 8, picture, dtype=dtype)
        for alpha in (0, np.iinfo(dtype).max):
            pixels[:, :, -1] = alpha
            assert (upscaler(pixels).pixels[:, :, -1] == alpha).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [None, (70, 71)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_flat_all_around_stays_so_beside_an_edge(channels, size, dtype):
    """By a network that knows nothing: all of its levels are off."""
    shape = SRVGGShape(in_channels=channels, out_channels=channels, features=8, convs=1, scale=2)
    pixels = logo(48, hard=False, under="black", dtype=dtype)
    near = np.lib.stride_tricks.sliding_window_view(
        np.pad(pixels[:, :, 3], 2, mode="edge"), (5, 5)
    ).reshape(48, 48, 25)
    for picture in (pixels, np.ascontiguousarray(pixels[:, :, 2:])):
        found = Upscaler(network(shape), device="cpu", precision="fp32")(picture, size).pixels
        down, across = (
            ((np.arange(side) + 0.5) * 48 / side).astype(int) for side in found.shape[:2]
        )
        off = 0
        for level in (0, np.iinfo(dtype).max):
            flat = (near == level).all(axis=2)
            where = flat[np.ix_(down, across)]
            assert where.any()
            assert (found[where][:, -1] == level).all()
            off += (found[~where][:, -1] != level).any()
        assert off == 2


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_lanczos_leaves_the_network_the_colours_alone(channels):
    shape = SRVGGShape(in_channels=channels, out_channels=channels, features=8, convs=1, scale=2)
    net = network(shape)
    by_lanczos, by_network = (
        Upscaler(net, device="cpu", precision="fp32", alpha=way) for way in ("lanczos", "network")
    )
    for picture in (2, 4):
        pixels = noise(9, 8, picture)
        got, other = by_lanczos(pixels, (21, 20)).pixels, by_network(pixels, (21, 20)).pixels
        np.testing.assert_array_equal(got[:, :, :-1], other[:, :, :-1])
        wanted = np.empty((20, 21), dtype=np.uint8)
        assert settled(pixels[:, :, -1], wanted, "lanczos")
        np.testing.assert_array_equal(got[:, :, -1], wanted)
        assert len(by_lanczos.split(pixels)[0]) == (picture - 1 if channels == 1 else 1)


@some
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 40)),
    target=st.tuples(st.integers(1, 160), st.integers(1, 160)),
)
def test_lanczos_is_pillow_s_within_the_samples_beside(size, target):
    alpha = noise(*size)
    got = np.empty(target, dtype=np.uint8)
    assert settled(alpha, got, "lanczos") or alpha.min() == alpha.max()
    wanted = alpha.astype(np.float32)
    for axis in (0, 1):
        wanted = resized(wanted, axis, target[axis])
    assert np.abs(got - wanted.clip(0, 255)).max() <= 0.51


def resized(x, axis, target):
    """Along one axis by Pillow, in floats; where that enlarges, between the nearest two samples."""
    x = x if axis else x.T
    lanczos = PIL.Image.Resampling.LANCZOS
    made = np.asarray(PIL.Image.fromarray(x).resize((target, len(x)), lanczos))
    if target >= x.shape[1]:
        left = np.floor((np.arange(target) + 0.5) * x.shape[1] / target - 0.5).astype(int)
        beside = [x[:, (left + more).clip(0, x.shape[1] - 1)] for more in (0, 1)]
        made = made.clip(np.minimum(*beside), np.maximum(*beside))
    return made if axis else made.T


def test_alpha_of_its_own_ways_is_told_apart():
    net, pixels = network(SHAPES["compact"]), noise(12, 9, 4)
    ways = [
        Upscaler(net, device="cpu", precision="fp32", alpha=way)(pixels).pixels
        for way in ("network", "lanczos")
    ]
    assert not np.array_equal(*ways)
