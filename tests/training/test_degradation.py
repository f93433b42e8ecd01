"""What is drawn against the recipe; each operator against scipy, Pillow or plain arithmetic."""

import io
import math
from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from PIL import Image
from scipy import ndimage, stats

from pipeline.training import config
from pipeline.training.degradation import Blur, Jpeg, Noise, Params, Resize, apply, draw
from pipeline.training.kernels import Gaussian, Sinc

RECIPE = config.Degradation()
# So large that sizes tell the factors they were drawn from.
SIDE, SCALE = 400_000, 4
LOW = SIDE // SCALE


@cache
def lanes():
    rng = np.random.default_rng(2021)
    return [draw(rng, RECIPE, count=12, height=SIDE, width=SIDE, scale=SCALE) for _ in range(3000)]


def order_of(lane, order):
    """Blur or None, resize and noise of the first or the second round."""
    steps = list(lane.steps)
    cut = next(place for place, step in enumerate(steps) if isinstance(step, Jpeg))
    part = steps[:cut] if order == 1 else steps[cut + 1 : -3]
    blur = part[0] if len(part) == 3 else None
    assert [type(step) for step in part[-2:]] == [Resize, Noise]
    return blur, *part[-2:]


def kernels(order):
    blurs = [order_of(lane, order)[0] for lane in lanes()]
    return [kernel for blur in blurs if blur for kernel in blur.kernels]


def assert_share(hits, expected):
    """A frequency within six standard errors: no right implementation is ever that unlucky."""
    hits = np.asarray(list(hits), float)
    margin = 6 * math.sqrt(expected * (1 - expected) / len(hits))
    assert abs(hits.mean() - expected) <= margin, (hits.mean(), expected)


def assert_uniform(values, low, high):
    values = np.asarray(list(values), float)
    assert values.min() >= low
    assert values.max() <= high
    # 1.95 / sqrt(n) is exceeded once in a thousand, 3 / sqrt(n) once in thirty million times.
    distance = stats.kstest(values, stats.uniform(low, high - low).cdf).statistic
    assert distance < 3 / math.sqrt(len(values))


def test_a_lane_has_two_rounds_and_a_last_step():
    for lane in lanes():
        assert (lane.count, lane.height, lane.width) == (12, SIDE, SIDE)
        kinds = [type(step) for step in lane.steps]
        assert kinds[:4] == [Blur, Resize, Noise, Jpeg]
        assert kinds[4:-3] in ([Blur, Resize, Noise], [Resize, Noise])
        assert kinds[-3:] in ([Resize, Blur, Jpeg], [Jpeg, Resize, Blur])


@pytest.mark.parametrize(("order", "probability"), [(1, 1), (2, 0.8)])
def test_a_lane_is_blurred_as_often_as_asked(order, probability):
    assert_share((order_of(lane, order)[0] is not None for lane in lanes()), probability)


@pytest.mark.parametrize("order", [1, 2])
def test_kernel_sizes_are_equally_likely(order):
    drawn = kernels(order)
    assert {kernel.size for kernel in drawn} == set(range(7, 22, 2))
    for size in range(7, 22, 2):
        assert_share((kernel.size == size for kernel in drawn), 1 / 8)


@pytest.mark.parametrize("order", [1, 2])
def test_families_of_kernels(order):
    drawn = kernels(order)
    assert_share((isinstance(kernel, Sinc) for kernel in drawn), 0.1)
    kinds = [kernel.kind for kernel in drawn if isinstance(kernel, Gaussian)]
    shares = {
        "iso": 0.45,
        "aniso": 0.25,
        "generalized_iso": 0.12,
        "generalized_aniso": 0.03,
        "plateau_iso": 0.12,
        "plateau_aniso": 0.03,
    }
    assert set(kinds) == set(shares)
    for kind, share in shares.items():
        assert_share((other == kind for other in kinds), share)


@pytest.mark.parametrize(("order", "greatest"), [(1, 3), (2, 1.5)])
def test_gaussian_spreads_and_angles(order, greatest):
    gaussians = [kernel for kernel in kernels(order) if isinstance(kernel, Gaussian)]
    turned = [kernel for kernel in gaussians if kernel.kind.endswith("aniso")]
    round_ones = [kernel for kernel in gaussians if not kernel.kind.endswith("aniso")]
    assert all(k.sigma_x == k.sigma_y and k.theta == 0 for k in round_ones)
    assert_uniform((kernel.sigma_x for kernel in round_ones), 0.2, greatest)
    assert_uniform((kernel.sigma_x for kernel in turned), 0.2, greatest)
    assert_uniform((kernel.sigma_y for kernel in turned), 0.2, greatest)
    assert_uniform((kernel.theta for kernel in turned), -np.pi, np.pi)
    x_y = np.array([(kernel.sigma_x, kernel.sigma_y) for kernel in turned])
    assert abs(np.corrcoef(x_y.T)[0, 1]) < 6 / math.sqrt(len(x_y))


@pytest.mark.parametrize("order", [1, 2])
def test_exponents(order):
    betas = {kind: [] for kind in ("iso", "aniso", "generalized", "plateau")}
    for kernel in kernels(order):
        if isinstance(kernel, Gaussian):
            betas[kernel.kind.split("_")[0]].append(kernel.beta)
    assert set(betas["iso"] + betas["aniso"]) == {1.0}
    assert_share((beta < 1 for beta in betas["generalized"]), 0.5)
    assert_uniform((beta for beta in betas["generalized"] if beta < 1), 0.5, 1)
    assert_uniform((beta for beta in betas["generalized"] if beta >= 1), 1, 4)
    assert_share((beta == 1 for beta in betas["plateau"]), 0.5)
    assert_uniform((beta for beta in betas["plateau"] if beta != 1), 1, 2)


@pytest.mark.parametrize("order", [1, 2])
def test_sinc_cutoffs_depend_on_the_size(order):
    sincs = [kernel for kernel in kernels(order) if isinstance(kernel, Sinc)]
    assert_uniform((kernel.cutoff for kernel in sincs if kernel.size < 13), np.pi / 3, np.pi)
    assert_uniform((kernel.cutoff for kernel in sincs if kernel.size >= 13), np.pi / 5, np.pi)


@pytest.mark.parametrize(
    ("order", "full", "least", "greatest", "shares"),
    [(1, SIDE, 0.15, 1.5, (0.2, 0.7, 0.1)), (2, LOW, 0.3, 1.2, (0.3, 0.4, 0.3))],
)
def test_resizes(order, full, least, greatest, shares):
    resizes = [order_of(lane, order)[1] for lane in lanes()]
    assert all(resize.height == resize.width for resize in resizes)
    factors = np.array([resize.height / full for resize in resizes])
    for hits, share in zip((factors > 1, factors < 1, factors == 1), shares, strict=True):
        assert_share(hits, share)
    assert_uniform(factors[factors > 1], 1, greatest)
    assert_uniform(factors[factors < 1], least - 1 / full, 1)
    for mode in ("area", "bilinear", "bicubic"):
        assert_share((resize.mode == mode for resize in resizes), 1 / 3)


@pytest.mark.parametrize(("order", "sigma", "shot"), [(1, 30, 3), (2, 25, 2.5)])
def test_noises(order, sigma, shot):
    noises = [order_of(lane, order)[2] for lane in lanes()]
    assert_share((noise.kind == "gaussian" for noise in noises), 0.5)
    for kind, low, high in (("gaussian", 1, sigma), ("poisson", 0.05, shot)):
        strengths = [noise.strength for noise in noises if noise.kind == kind]
        assert_uniform(np.ravel(strengths), low, high)
        assert_share(np.ravel([noise.gray for noise in noises if noise.kind == kind]), 0.4)
        assert all(len(set(of_lane)) == 12 for of_lane in strengths)
    assert len({noise.seed for noise in noises}) > len(noises) - 5


def test_jpeg_qualities():
    compressions = [
        [step.quality for step in lane.steps if isinstance(step, Jpeg)] for lane in lanes()
    ]
    for place in (0, 1):
        qualities = np.array([of_lane[place] for of_lane in compressions])
        assert qualities.shape == (3000, 12)
        assert_uniform(qualities.ravel(), 30, 95)


def test_the_last_steps():
    assert_share((isinstance(lane.steps[-1], Jpeg) for lane in lanes()), 0.5)
    filters = [next(s for s in lane.steps[-3:] if isinstance(s, Blur)) for lane in lanes()]
    drawn = [kernel for step in filters for kernel in step.kernels]
    assert_share((kernel is not None for kernel in drawn), 0.8)
    sincs = [kernel for kernel in drawn if kernel]
    assert_uniform((sinc.cutoff for sinc in sincs), np.pi / 3, np.pi)
    for size in range(7, 22, 2):
        assert_share((sinc.size == size for sinc in sincs), 1 / 8)
    resizes = [next(s for s in lane.steps[-3:] if isinstance(s, Resize)) for lane in lanes()]
    assert {(resize.height, resize.width) for resize in resizes} == {(LOW, LOW)}
    for mode in ("area", "bilinear", "bicubic"):
        assert_share((resize.mode == mode for resize in resizes), 1 / 3)


def test_another_recipe_is_followed():
    order = {
        "blur": {"probability": 0},
        "resize": {"probabilities": (0, 0, 1), "modes": ("area",)},
        "noise": {"gaussian": 0, "poisson_scale": (0.5, 0.5), "gray": 1},
        "jpeg_quality": (70, 70),
    }
    values = {"first": order, "second": order, "final_sinc": 0}
    recipe = config.Degradation.model_validate(values)
    drawn = draw(np.random.default_rng(0), recipe, count=2, height=64, width=40, scale=2)
    counts = Counter(type(step) for step in drawn.steps)
    assert counts == {Resize: 3, Noise: 2, Jpeg: 2, Blur: 1}
    full, low = Resize(64, 40, "area"), Resize(32, 20, "area")
    assert [step for step in drawn.steps if isinstance(step, Resize)] == [full, low, low]
    assert Blur((None, None)) in drawn.steps
    assert Jpeg((70, 70)) in drawn.steps
    noises = [step for step in drawn.steps if isinstance(step, Noise)]
    assert all((n.kind, n.strength, n.gray) == ("poisson", (0.5,) * 2, (True,) * 2) for n in noises)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(16, 500), st.integers(16, 500))
def test_a_line_of_a_log_holds_everything(seed, count, height, width):
    drawn = draw(
        np.random.default_rng(seed), RECIPE, count=count, height=height, width=width, scale=4
    )
    line = drawn.to_json()
    assert "\n" not in line
    assert Params.from_json(line) == drawn


def test_the_same_generator_draws_the_same():
    first, second = (
        draw(np.random.default_rng(3), RECIPE, count=4, height=64, width=64, scale=4)
        for _ in range(2)
    )
    assert first == second
    assert first != draw(np.random.default_rng(4), RECIPE, count=4, height=64, width=64, scale=4)


def pictures(count, height, width, seed=0):
    coarse = torch.rand(count, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    enlarged = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (enlarged * 255).round() / 255


@pytest.mark.parametrize(("height", "width", "scale"), [(64, 64, 4), (70, 49, 2), (16, 90, 4)])
@pytest.mark.parametrize("seed", range(6))
def test_a_drawn_degradation_gives_low_resolution_bytes_again_and_again(height, width, scale, seed):
    size = {"count": 3, "height": height, "width": width}
    drawn = draw(np.random.default_rng(seed), RECIPE, **size, scale=scale)
    sharp = pictures(**size)
    kept = sharp.clone()
    state = torch.random.get_rng_state()
    low = apply(sharp, drawn)
    assert low.shape == (3, 3, height // scale, width // scale)
    assert low.dtype == torch.float32
    assert torch.equal((low * 255).round().clamp(0, 255) / 255, low)
    assert torch.equal(sharp, kept)
    assert torch.equal(apply(sharp, Params.from_json(drawn.to_json())), low)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = draw(np.random.default_rng(seed + 100), RECIPE, **size, scale=scale)
    assert not torch.equal(apply(sharp, other), low)


def test_what_is_applied_is_in_single_precision_and_without_gradients():
    drawn = draw(np.random.default_rng(0), RECIPE, count=2, height=64, width=64, scale=4)
    sharp = pictures(2, 64, 64).requires_grad_()
    plain = apply(sharp, drawn)
    assert not plain.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(apply(sharp, drawn), plain)


def test_pictures_of_another_shape_are_refused():
    drawn = draw(np.random.default_rng(0), RECIPE, count=2, height=64, width=64, scale=4)
    with pytest.raises(ValueError, match=r"\(2, 3, 64, 60\), but \(2, 3, 64, 64\)"):
        apply(pictures(2, 64, 60), drawn)


def test_degraded_pictures_still_show_the_same():
    sharp = pictures(12, 256, 256)
    expected = torch.nn.functional.avg_pool2d(sharp, 4)
    for seed in range(3):
        drawn = draw(np.random.default_rng(seed), RECIPE, count=12, height=256, width=256, scale=4)
        low = apply(sharp, drawn)
        for a, b in zip(low, expected, strict=True):
            assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.5


def test_steps_follow_each_other():
    steps = (Blur((Sinc(7, 2.0),)), Resize(40, 30, "bicubic"), Jpeg((50.0,)))
    sharp = pictures(1, 48, 48)
    result = apply(sharp, Params(1, 48, 48, steps))
    weights = Sinc(7, 2.0).weights()[None]
    blurred = ndimage.correlate(sharp[0].numpy(), weights, mode="mirror")
    small = torch.nn.functional.interpolate(
        torch.from_numpy(blurred)[None], size=(40, 30), mode="bicubic"
    )
    levels = (small[0].permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=50, subsampling="4:2:0")
    stored = np.asarray(Image.open(file)) / 255
    assert np.abs(result[0].permute(1, 2, 0).numpy() - stored).mean() < 1 / 255


def positions(size, target):
    """Of the target's pixels among the source's, edges on edges."""
    return (np.arange(target) + 0.5) * size / target - 0.5


@pytest.mark.parametrize(("height", "width"), [(17, 25), (40, 31), (61, 90)])
def test_bilinear_resize_is_scipys_interpolation(height, width):
    sharp = pictures(2, 40, 50)
    places = np.meshgrid(positions(40, height), positions(50, width), indexing="ij")
    result = Resize(height, width, "bilinear").apply(sharp)
    for plane, resized in zip(sharp.flatten(0, 1), result.flatten(0, 1), strict=True):
        expected = ndimage.map_coordinates(plane.numpy(), places, order=1, mode="nearest")
        assert_allclose(resized, expected, atol=1e-5)


def cubic(size, target):
    """(target, size): Keys' cubic convolution with a = -0.75, edges repeated."""
    a, matrix = -0.75, np.zeros((target, size))
    for row, place in zip(matrix, positions(size, target), strict=True):
        for index in range(math.floor(place) - 1, math.floor(place) + 3):
            d = abs(place - index)
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            far = a * (d**3 - 5 * d**2 + 8 * d - 4)
            row[min(max(index, 0), size - 1)] += near if d <= 1 else far if d < 2 else 0
    return matrix


@pytest.mark.parametrize(("height", "width"), [(17, 25), (40, 31), (61, 90)])
def test_bicubic_resize_is_keys_convolution(height, width):
    sharp = pictures(2, 40, 50)
    expected = cubic(40, height) @ sharp.double().numpy() @ cubic(50, width).T
    assert_allclose(Resize(height, width, "bicubic").apply(sharp), expected, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(17, 25), (40, 31), (61, 90)])
def test_area_resize_is_the_mean_of_the_pixels_it_touches(height, width):
    sharp = pictures(2, 40, 50)
    result = Resize(height, width, "area").apply(sharp)
    for y in range(height):
        rows = slice(y * 40 // height, -(-(y + 1) * 40 // height))
        for x in range(width):
            touched = sharp[:, :, rows, x * 50 // width : -(-(x + 1) * 50 // width)]
            assert_allclose(result[:, :, y, x], touched.mean((2, 3)), atol=1e-5)


def test_area_resize_by_a_whole_factor_is_pillows_box():
    sharp = pictures(1, 40, 60)
    for plane, resized in zip(sharp[0], Resize(10, 15, "area").apply(sharp)[0], strict=True):
        expected = Image.fromarray(plane.numpy()).resize((15, 10), Image.Resampling.BOX)
        assert_allclose(resized, np.asarray(expected), atol=1e-5)


def test_keeping_a_size_keeps_the_pixels():
    sharp = pictures(2, 20, 30)
    assert Resize(20, 30, "bicubic").apply(sharp) is sharp


def test_gaussian_noise_is_normal_and_independent_but_for_gray():
    middle = torch.full((3, 3, 120, 120), 0.5)
    step = Noise("gaussian", (3.0, 20.0, 20.0), (False, False, True), seed=11)
    noise = (step.apply(middle) - middle).double().numpy() * 255
    for index, sigma in ((0, 3), (1, 20)):
        assert stats.kstest(noise[index].ravel(), stats.norm(0, sigma).cdf).pvalue > 1e-4
        red, green, blue = noise[index].reshape(3, -1)
        assert abs(np.corrcoef([red, green, blue])[np.triu_indices(3, 1)]).max() < 0.05
    assert (noise[2][0] == noise[2][1]).all()
    assert (noise[2][0] == noise[2][2]).all()
    assert stats.kstest(noise[2][0].ravel(), stats.norm(0, 20).cdf).pvalue > 1e-4
    assert all(abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.05 for a, b in pairwise(noise))


def three_levels(count):
    """Levels 0, 64 and 192, so three of them: white is four photons."""
    picture = torch.zeros(count, 3, 100, 100)
    picture[:, :, 1:, :50] = 64 / 255
    picture[:, :, 1:, 50:] = 192 / 255
    return picture


@pytest.mark.parametrize("gray", [False, True])
def test_poisson_noise_is_scipys_distribution(gray):
    picture = three_levels(1)
    # So weak that nothing is clamped: photons are counted from what it adds.
    added = Noise("poisson", (0.01,), (gray,), seed=5).apply(picture) - picture
    if gray:
        assert_allclose(added[:, 1:], added[:, :1].expand(-1, 2, -1, -1), atol=1e-6)
        added = added[:, :1]
    for columns, level in ((slice(0, 50), 64), (slice(50, 100), 192)):
        mean = level / 255 * 4
        photons = added[:, :, 1:, columns].double().numpy().ravel() / 0.01 * 4 + mean
        assert_allclose(photons, photons.round(), atol=1e-3)
        counted = np.bincount(photons.round().astype(int), minlength=30)[:9]
        expected = stats.poisson(mean).pmf(np.arange(9)) * len(photons)
        common = expected > 5
        rest = [len(photons) - counted[common].sum()], [len(photons) - expected[common].sum()]
        verdict = stats.chisquare(
            np.append(counted[common], rest[0]), np.append(expected[common], rest[1])
        )
        assert verdict.pvalue > 1e-4


@pytest.mark.parametrize(("levels", "white"), [(3, 4), (4, 4), (5, 8), (64, 64), (171, 256)])
def test_poisson_noise_counts_the_levels_of_each_picture(levels, white):
    chosen = np.linspace(50, 220, levels).round() / 255
    picture = np.random.default_rng(0).choice(chosen, (1, 3, 100, 100))
    batch = torch.cat([torch.from_numpy(picture).float(), three_levels(1)])
    noisy = Noise("poisson", (0.05, 0.05), (False, False), seed=1).apply(batch)
    added = (noisy - batch)[0].double()
    assert added.std().item() == pytest.approx(0.05 * math.sqrt(picture.mean() / white), rel=0.05)


def test_strength_scales_poisson_noise():
    middle = pictures(1, 60, 60) * 0.2 + 0.4
    weak, strong = (
        Noise("poisson", (strength,), (False,), seed=1).apply(middle) - middle
        for strength in (0.1, 0.2)
    )
    assert_allclose(strong, 2 * weak, atol=1e-5)


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
def test_noise_depends_on_its_seed_alone_and_stays_in_range(kind):
    sharp = pictures(2, 30, 30)
    torch.manual_seed(1)
    strong = {"gaussian": 30.0, "poisson": 3.0}[kind]
    first, again, other = (
        Noise(kind, (strong, strong), (True, False), seed).apply(sharp) for seed in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1
