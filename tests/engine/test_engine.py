"""Exactness: strips of any height against the whole image in one forward pass."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import sweep
from pipeline.engine.upscaler import Upscaler
from pipeline.errors import ConfigError, TooLargeError, UpscaleError
from pipeline.models.rrdbnet import RRDBNet, RRDBNetShape
from pipeline.models.srvgg import SRVGGNetCompact, SRVGGShape

exact = settings(deadline=None, derandomize=True, max_examples=60)

SHAPES = {
    "compact": SRVGGShape(features=8, convs=3, scale=4),
    "rrdb-x4": RRDBNetShape(features=8, blocks=1, growth=4),
    "rrdb-x2": RRDBNetShape(features=8, blocks=1, growth=4, unshuffle=2),
    "rrdb-x1": RRDBNetShape(features=8, blocks=1, growth=4, unshuffle=4),
}


def network(shape):
    """A seeded network whose result is neither saturated nor flat."""
    torch.manual_seed(0)
    kind = SRVGGNetCompact if isinstance(shape, SRVGGShape) else RRDBNet
    net = kind(shape).eval().requires_grad_(requires_grad=False)
    for parameter in net.parameters():
        spread = 1 / max(1, parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.1
        torch.nn.init.normal_(parameter, std=spread)
    return net


def noise(*shape):
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def forward(net, pixels):
    """The oracle: the plain network on the plain image, in levels of 255 and beyond."""
    x_bchw = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        return (net(x_bchw)[0] * 255).permute(1, 2, 0).numpy()


def whole(net, pixels):
    return forward(net, pixels).clip(0, 255)


@exact
@given(st.integers(1, 400), st.integers(0, 300), st.integers(0, 60), st.sampled_from([1, 2, 4]))
def test_strips_cover_every_row_once_and_see_their_whole_surroundings(count, more, radius, unit):
    height = -(-count // unit) * unit
    rows = sweep.least_rows(height, radius, unit) + more
    strips = sweep.plan(height, rows=rows, radius=radius, multiple=unit)
    assert [strip.start for strip in strips] == [0, *(strip.stop for strip in strips[:-1])]
    assert strips[-1].stop == height
    for strip in strips:
        assert strip.top == 0 or strip.start - strip.top >= radius
        assert strip.bottom == height or strip.bottom - strip.stop >= radius
        assert 0 <= strip.top <= strip.start < strip.stop <= strip.bottom <= height
        assert strip.top % unit == strip.bottom % unit == 0
        assert strip.bottom - strip.top <= rows
    assert sum(strip.bottom - strip.top for strip in strips) <= 3 * height + rows


@pytest.mark.parametrize("name", SHAPES)
@settings(deadline=None, derandomize=True, max_examples=15)
@given(height=st.integers(1, 90), width=st.integers(1, 24), rows=st.integers(1, 90))
def test_strips_give_what_the_whole_image_gives(name, height, width, rows):
    shape, net = SHAPES[name], network(SHAPES[name])
    pixels = noise(height, width, 3)
    unit = shape.multiple
    full_height, full_width = (-(-side // unit) * unit for side in (height, width))
    rows = max(rows, sweep.least_rows(full_height, shape.radius, unit))
    budget = rows * full_width * shape.peak_values * 4
    upscaled = Upscaler(net, device="cpu", precision="fp32", budget_bytes=budget)(pixels)
    padded = np.pad(
        pixels,
        ((0, -height % unit), (0, -width % unit), (0, 0)),
        mode="reflect" if -height % unit < height and -width % unit < width else "edge",
    )
    wanted = whole(net, padded)[: height * shape.scale, : width * shape.scale]
    assert upscaled.pixels.shape == wanted.shape
    assert np.abs(upscaled.pixels - wanted).max() <= 0.5 + 1e-3
    assert upscaled.warnings == ()


def test_what_does_not_fit_is_an_error_with_both_numbers_and_the_knob():
    shape = SHAPES["rrdb-x4"]
    budget = 3 * shape.radius * 24 * shape.peak_values * 4
    upscaler = Upscaler(network(shape), device="cpu", precision="fp32", budget_bytes=budget)
    assert upscaler(noise(100, 24, 3)).pixels.shape == (400, 96, 3)
    with pytest.raises(TooLargeError, match=r"25 x 100 pixels need .* rows, .* fit .*device_bytes"):
        upscaler(noise(100, 25, 3))


class Forgetful(SRVGGNetCompact):
    """A network that runs out of memory above so many rows, as the CPU's allocator says it."""

    def forward(self, x_bchw):
        if x_bchw.shape[2] > 40:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
        return super().forward(x_bchw)


def test_out_of_memory_repeats_the_whole_picture_in_smaller_strips():
    net = network(SHAPES["compact"])
    small = Forgetful(SHAPES["compact"]).eval()
    small.load_state_dict(net.state_dict())
    pixels = noise(90, 12, 3)
    got = Upscaler(small, device="cpu", precision="fp32")(pixels).pixels
    assert np.abs(got - whole(net, pixels)).max() <= 0.5 + 1e-3


def test_a_halo_one_row_too_small_would_be_seen():
    shape, net = SHAPES["compact"], network(SHAPES["compact"])
    pixels, radius = noise(60, 8, 3), shape.radius
    strip = sweep.plan(60, rows=2 * radius + 10, radius=radius)[1]
    good, bad = (
        whole(net, pixels[strip.start - halo : strip.stop + halo])[halo * 4 : -halo * 4]
        for halo in (radius, radius - 1)
    )
    wanted = whole(net, pixels)[strip.start * 4 : strip.stop * 4]
    assert np.abs(good - wanted).max() < 1e-2 < np.abs(bad - wanted).max()


def test_gray_goes_in_as_three_equal_channels_and_comes_out_as_their_mean():
    net = network(SHAPES["compact"])
    gray = noise(12, 9, 1)
    upscaled = Upscaler(net, device="cpu", precision="fp32")(gray).pixels
    wanted = forward(net, np.repeat(gray, 3, axis=2)).mean(axis=2, keepdims=True).clip(0, 255)
    assert upscaled.shape == (48, 36, 1)
    assert np.abs(upscaled - wanted).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_a_picture_of_its_own_and_opaque_stays_opaque(channels):
    upscaler = Upscaler(network(SHAPES["compact"]), device="cpu", precision="fp32")
    pixels = noise(12, 9, channels)
    upscaled = upscaler(pixels).pixels
    np.testing.assert_array_equal(upscaled[..., :-1], upscaler(pixels[..., :-1]).pixels)
    np.testing.assert_array_equal(upscaled[..., -1:], upscaler(pixels[..., -1:]).pixels)
    pixels[..., -1] = 255
    assert upscaler(pixels).pixels[..., -1].min() == 255


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("picture", [1, 2, 3, 4])
def test_networks_of_one_and_four_channels_take_every_picture(channels, picture):
    shape = SRVGGShape(in_channels=channels, out_channels=channels, features=8, convs=1, scale=2)
    upscaler = Upscaler(network(shape), device="cpu", precision="fp32")
    assert upscaler(noise(5, 6, picture)).pixels.shape == (10, 12, picture)
    if picture in (2, 4) and channels == 1:
        opaque = noise(5, 6, picture)
        opaque[..., -1] = 255
        assert upscaler(opaque).pixels[..., -1].min() == 255


def test_other_channels_are_refused_with_both_numbers():
    shape = RRDBNetShape(in_channels=1, out_channels=3, features=8, blocks=1, growth=4)
    with pytest.raises(ConfigError, match="1 channels to 3"):
        Upscaler(network(shape), device="cpu", precision="fp32")


def test_the_final_size_is_resized_before_it_is_rounded_to_8_bits():
    net = network(SHAPES["compact"])
    pixels = noise(16, 20, 3)
    upscaled = Upscaler(net, device="cpu", precision="fp32")(pixels, (50, 41)).pixels
    y_chw = torch.from_numpy(forward(net, pixels)).permute(2, 0, 1)
    resized = torch.nn.functional.interpolate(
        y_chw[None], size=(41, 50), mode="bicubic", antialias=True
    )
    wanted = resized[0].permute(1, 2, 0).numpy().clip(0, 255)
    assert upscaled.shape == (41, 50, 3)
    assert np.abs(upscaled - wanted).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_near_and_a_non_finite_result_is_repeated_in_fp32(precision):
    net = network(SHAPES["compact"])
    pixels = noise(16, 16, 3)
    exact_pixels = Upscaler(net, device="cpu", precision="fp32")(pixels).pixels
    near = Upscaler(network(SHAPES["compact"]), device="cpu", precision=precision)(pixels)
    assert np.abs(near.pixels.astype(int) - exact_pixels).mean() < 3
    assert near.warnings == ()
    steep = network(SHAPES["compact"])
    with torch.no_grad():
        next(steep.parameters()).mul_(1e6)
        list(steep.parameters())[-2].mul_(1e-6)
    wanted = Upscaler(steep, device="cpu", precision="fp32")(pixels).pixels
    if precision == "fp16":
        repeated = Upscaler(steep, device="cpu", precision="fp16")(pixels)
        assert repeated.warnings == ("repeated_in_fp32",)
        np.testing.assert_array_equal(repeated.pixels, wanted)


def test_what_is_not_finite_in_fp32_is_an_error():
    net = network(SHAPES["compact"])
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    for precision in ("fp32", "fp16"):
        with pytest.raises(UpscaleError, match="NaN") as caught:
            Upscaler(net, device="cpu", precision=precision)(noise(4, 4, 3))
        assert caught.value.code == "non_finite"
