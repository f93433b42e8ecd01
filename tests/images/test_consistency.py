"""The figures of pictures whose answers are known, and CIEDE2000 against its published pairs."""

import math
import tracemalloc

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.images.consistency import measure
from pipeline.images.delta_e import delta_e2000
from pipeline.records import Outcome

some = settings(deadline=None, derandomize=True, max_examples=60)


def noise(*shape, seed=1, low=20, high=230, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    wide = np.iinfo(dtype).max // 255
    return (rng.integers(low, high, shape) * wide).astype(dtype)


def repeated(pixels, factor):
    return pixels.repeat(factor, 0).repeat(factor, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_repeated_pixels_agree_in_everything(factor, channels, dtype):
    source = noise(37, 53, channels, dtype=dtype)
    result = repeated(source, factor)
    for before, after in ((source, result), (result, source)):
        found = measure(before, after)
        if channels in (1, 3):
            assert found.psnr == math.inf
        assert found.psnr > 130  # with alpha, colours times alpha round
        for name in ("delta_e", "local_difference", "bias_red", "bias_green", "bias_blue"):
            assert abs(getattr(found, name)) < 1e-4
        assert found.clipped_share == found.constant_share == 0
        assert (found.bias_alpha is None) == (channels in (1, 3))
    assert (measure(result, source).detail is None) == (factor > 1)


def test_16_bits_agree_with_the_same_in_8():
    source = noise(40, 40, 3)
    assert measure(source, repeated(source, 3).astype(np.uint16) * 257).psnr > 120
    assert measure(source.astype(np.uint16) * 257, repeated(source, 3)).psnr > 120


def test_a_tint_is_the_bias_of_its_channel():
    source = noise(64, 80, 3)
    result = repeated(source, 4)
    result[:, :, 2] += 6
    found = measure(source, result)
    biases = (found.bias_red, found.bias_green, found.bias_blue)
    assert biases == pytest.approx((0, 0, 6), abs=1e-5)
    assert found.local_difference == pytest.approx(2, abs=1e-5)
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / (36 / 3)), abs=1e-4)
    assert found.delta_e > 1


def test_gray_has_the_colour_difference_of_its_lightness():
    source = np.full((20, 20, 1), 119, dtype=np.uint8)  # L* is 50.03, and of 130 it is 54.29
    found = measure(source, np.full((40, 40, 1), 130, dtype=np.uint8))
    assert found.delta_e == pytest.approx(4.26, abs=0.1)
    assert found.bias_red == found.bias_green == found.bias_blue == pytest.approx(11)
    colour = measure(source.repeat(3, 2), np.full((40, 40, 3), 130, dtype=np.uint8))
    assert colour.delta_e == pytest.approx(found.delta_e)


def test_a_black_tile_is_a_difference_and_a_share_of_blocks():
    source = noise(64, 96, 3, low=100, high=156)
    result = repeated(source, 4)
    result[32 * 4 : 48 * 4, 16 * 4 : 48 * 4] = 0
    found = measure(source, result)
    assert found.constant_share == 8 / 96
    wanted = source[32:48, 16:48].astype(float)
    worst = max(
        wanted[y : y + 8, x : x + 8].mean() for y in range(0, 16, 8) for x in range(0, 32, 8)
    )
    assert found.local_difference == pytest.approx(worst, rel=1e-5)
    assert found.clipped_share == pytest.approx(16 * 32 / (64 * 96))
    assert (
        measure(repeated(source[:1, :1], 64), np.zeros((256, 256, 3), np.uint8)).constant_share == 0
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_gain_clips_what_was_not_clipped(dtype):
    source = noise(50, 60, 3, low=0, high=256, dtype=dtype)
    full = np.iinfo(dtype).max
    result = (repeated(source, 2).astype(np.uint32) * 2).clip(0, full).astype(dtype)
    found = measure(source, result)
    assert found.clipped_share == pytest.approx(((source >= full / 2) & (source < full)).mean())
    assert found.bias_red > 50


def test_colours_under_what_is_transparent_do_not_count():
    source, result = noise(40, 48, 4), noise(160, 192, 4, seed=2)
    hidden = np.zeros((40, 48), dtype=bool)
    hidden[:, :24] = True
    source[hidden, 3], source[~hidden, 3] = 0, 255
    result[:, :, 3] = repeated(source, 4)[:, :, 3]
    result[:, 96:] = repeated(source, 4)[:, 96:]
    result[:, :96, :3] = 7  # of one colour, where the source has many that nobody sees
    found = measure(source, result)
    assert found.psnr == math.inf
    assert found.constant_share == found.clipped_share == found.bias_alpha == 0
    result[:, :, 3] = 255
    assert measure(source, result).bias_alpha == pytest.approx(255 / 2)


def test_a_network_that_does_nothing_is_seen():
    smooth = PIL.Image.fromarray(noise(40, 60, 3)).resize((120, 90), PIL.Image.Resampling.BICUBIC)
    source = np.asarray(smooth)
    size = (480, 360)
    filters = PIL.Image.Resampling
    found = {
        kind: measure(source, np.asarray(smooth.resize(size, kind)))
        for kind in (filters.BICUBIC, filters.BILINEAR, filters.LANCZOS, filters.NEAREST)
    }
    assert found[filters.BICUBIC].plain_psnr > 50
    assert found[filters.BICUBIC].detail == pytest.approx(1, abs=0.02)
    assert 30 < found[filters.BILINEAR].plain_psnr < 45
    assert found[filters.NEAREST].plain_psnr < 33
    assert found[filters.NEAREST].detail > 5
    sharpened = np.asarray(smooth.resize(size, filters.BICUBIC)).astype(int)
    sharpened[1:-1, 1:-1] += (
        4 * sharpened[1:-1, 1:-1]
        - (sharpened[2:, 1:-1] + sharpened[:-2, 1:-1])
        - (sharpened[1:-1, 2:] + sharpened[1:-1, :-2])
    )
    busy = measure(source, sharpened.clip(0, 255).astype(np.uint8))
    assert busy.detail > 2
    assert busy.plain_psnr < found[filters.BICUBIC].plain_psnr - 5


@some
@given(
    source=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    result=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    channels=st.integers(1, 4),
    dtypes=st.tuples(*[st.sampled_from([np.uint8, np.uint16])] * 2),
    seed=st.integers(0, 9),
)
def test_all_figures_are_within_their_bounds(source, result, channels, dtypes, seed):
    before = noise(*source, channels, seed=seed, low=0, high=256, dtype=dtypes[0])
    after = noise(*result, channels, seed=seed + 1, low=0, high=256, dtype=dtypes[1])
    found = measure(before, after)
    assert found.psnr >= 0
    assert 0 <= found.delta_e <= 160
    assert 0 <= found.local_difference <= 255.001
    assert 0 <= found.clipped_share <= 1
    assert 0 <= found.constant_share <= 1
    for value in (found.bias_red, found.bias_green, found.bias_blue, found.bias_alpha or 0):
        assert abs(value) <= min(255, found.local_difference if channels == 1 else 255) + 1e-3
    larger = result[0] >= source[0] and result[1] >= source[1]
    assert (found.plain_psnr is not None) == larger


@some
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels=st.sampled_from([1, 3]),
)
def test_the_larger_is_reduced_by_area(size, target, channels):
    """Against sums over a grid so fine that every edge of a pixel lies on it."""
    before, after = noise(*size, channels), noise(*target, channels, seed=2)
    fine = [side * other for side, other in zip(size, target, strict=True)]
    common = np.minimum(size, target)
    averages = []
    for pixels in (before, after):
        spread = pixels.astype(float)
        for axis in (0, 1):
            spread = spread.repeat(fine[axis] // pixels.shape[axis], axis)
            kept = (*spread.shape[:axis], common[axis], -1, *spread.shape[axis + 1 :])
            spread = spread.reshape(kept).mean(axis=axis + 1)
        averages.append(spread)
    found = measure(before, after)
    off = averages[1] - averages[0]
    bias = off.mean(axis=(0, 1))
    assert found.bias_red == pytest.approx(bias[0], abs=1e-3)
    assert found.bias_blue == pytest.approx(bias[-1], abs=1e-3)
    square = (off**2).mean()
    assert 10 ** (-found.psnr / 10) * 255**2 == pytest.approx(square, rel=1e-3, abs=1e-6)


def test_large_pictures_are_measured_in_strips_of_little_memory():
    source, result = noise(300, 400, 3), noise(1200, 1600, 3, seed=2)
    result[640:672, :32] = 9
    tracemalloc.start()
    found = measure(source, result)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < result.nbytes
    off = result.reshape(300, 4, 400, 4, 3).mean(axis=(1, 3)) - source
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / (off**2).mean()), rel=1e-5)
    assert found.bias_green == pytest.approx(off[:, :, 1].mean(), abs=1e-4)
    worst = max(
        np.abs(off[top : top + 8, left : left + 8]).mean()
        for top in range(0, 300, 8)
        for left in range(0, 400, 8)
    )
    assert found.local_difference == pytest.approx(worst, rel=1e-5)
    assert found.constant_share == 1 / (38 * 50)


def test_channels_have_to_be_the_same():
    with pytest.raises(ValueError, match="3 channels, and 1"):
        measure(noise(4, 4, 3), noise(8, 8, 1))


def test_the_report_has_a_column_for_each():
    columns = measure(noise(9, 9, 3), noise(18, 18, 3)).columns()
    assert set(columns) <= set(Outcome.__dataclass_fields__)
    assert all(value is None or type(value) is float for value in columns.values())


# Table 1 of G. Sharma, W. Wu, E. N. Dalal, "The CIEDE2000 Color-Difference Formula" (2005).
PAIRS = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425
50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.02 50 0 -82.7485 3.4412
50 -1.3802 -84.2814 50 0 -82.7485 1
50 -1.1848 -84.8006 50 0 -82.7485 1
50 -0.9009 -85.5211 50 0 -82.7485 1
50 0 0 50 -1 2 2.3669
50 -1 2 50 0 0 2.3669
50 2.49 -0.001 50 -2.49 0.0009 7.1792
50 2.49 -0.001 50 -2.49 0.001 7.1792
50 2.49 -0.001 50 -2.49 0.0011 7.2195
50 2.49 -0.001 50 -2.49 0.0012 7.2195
50 -0.001 2.49 50 0.0009 -2.49 4.8045
50 -0.001 2.49 50 0.001 -2.49 4.8045
50 -0.001 2.49 50 0.0011 -2.49 4.7461
50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492
50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.9030
50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1
50 2.5 0 50 3.2972 0 1
50 2.5 0 50 1.8634 0.5757 1
50 2.5 0 50 3.2592 0.335 1
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.263
61.2901 3.7196 -5.3901 61.4292 2.248 -4.962 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.694 23.0331 14.973 -42.5619 2.0373
36.4612 47.858 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.441 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.135 0.9033 -0.0636 -0.5514 0.9082
"""


def test_delta_e2000_gives_the_published_differences():
    pairs = np.array([[float(value) for value in line.split()] for line in PAIRS.split("\n")[1:-1]])
    assert len(pairs) == 34
    first, second, wanted = pairs[:, :3], pairs[:, 3:6], pairs[:, 6]
    np.testing.assert_allclose(delta_e2000(first, second), wanted, atol=5.1e-5)
    np.testing.assert_allclose(delta_e2000(second, first), wanted, atol=5.1e-5)
