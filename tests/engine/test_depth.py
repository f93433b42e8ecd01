"""16 bits in, 16 bits out: no level lost, and the same picture whatever the way.

In fp32 the order of sums moves a result by some 1e-7 of the range, 0.02 of a level of 65,535; so
the ways through the engine differ by a level at ties at most. On one CPU they do not differ at all,
but for pictures a few pixels wide, which another kernel may compute when they are alone.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import SHAPES, forward, interpolating, network, noise, whole
from test_engine import upscale_together, upscaler_of
from test_packer import Counting, visit

from pipeline.engine import sweep
from pipeline.engine.packer import Packer
from pipeline.engine.upscaler import Upscaler

some = settings(deadline=None, derandomize=True, max_examples=6)
sides = st.integers(1, 40)
# In levels of 65,535, with the half that rounding takes; `forward` rounds its product, too.
TIE = 0.5 + 0.1


@pytest.fixture(scope="module")
def networks():
    return {name: network(shape) for name, shape in SHAPES.items()}


def deep(*shape, seed=1):
    return noise(*shape, seed=seed, dtype=np.uint16)


def ramp(height, width):
    """As many levels as there are pixels, or nearly, from black to white."""
    y, x = np.mgrid[:height, :width]
    levels = (x + y / height) / width * 65535
    return np.rint(levels).astype(np.uint16)[:, :, None]


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_ramp_keeps_its_levels(scale, channels):
    pixels = np.repeat(ramp(100, 160), channels, axis=2)
    upscaled = Upscaler(interpolating(scale), device="cpu", precision="bf16")(pixels)
    assert upscaled.pixels.dtype == np.uint16
    assert upscaled.warnings == ()
    x_bchw = torch.from_numpy(pixels.astype(np.float64)).permute(2, 0, 1)[None]
    wanted = torch.nn.functional.interpolate(x_bchw, scale_factor=float(scale), mode="bilinear")
    inside = np.s_[scale:-scale, scale:-scale]  # the network sees zeros beyond the border
    off = np.abs(upscaled.pixels - wanted[0].permute(1, 2, 0).numpy())[inside]
    assert off.max() <= TIE
    for channel in range(channels):
        levels = len(np.unique(upscaled.pixels[:, :, channel]))
        assert levels >= max(10_000, len(np.unique(pixels)))


def test_a_ramp_keeps_its_levels_at_any_final_size():
    upscaled = Upscaler(interpolating(4), device="cpu", precision="fp32")(
        ramp(100, 160), (501, 293)
    )
    assert len(np.unique(upscaled.pixels)) >= 10_000


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_16_bits_go_in_fp32_whatever_the_precision(precision):
    net, pixels = network(SHAPES["compact"]), deep(20, 30, 3)
    lower = Upscaler(net, device="cpu", precision=precision)
    np.testing.assert_array_equal(lower(pixels).pixels, upscaler_of(net)(pixels).pixels)
    eight = noise(20, 30, 3)
    assert not np.array_equal(lower(eight).pixels, upscaler_of(net)(eight).pixels)


@pytest.mark.parametrize("name", SHAPES)
def test_eight_bits_widened_give_what_eight_bits_give(networks, name):
    pixels = noise(19, 23, 3)
    deeper = upscaler_of(networks[name])(pixels.astype(np.uint16) * 257).pixels
    shallow = upscaler_of(networks[name])(pixels).pixels
    assert deeper.dtype == np.uint16
    assert np.abs(deeper / 257 - shallow).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("name", SHAPES)
@some
@given(height=sides, width=st.integers(1, 90), scarce=st.integers(3, 8))
def test_a_sweep_gives_what_the_whole_picture_gives(networks, name, height, width, scarce):
    net, pixels = networks[name], deep(height, width, 3)
    plenty = upscaler_of(net)(pixels).pixels
    assert np.abs(plenty - whole(net, pixels)).max() <= TIE
    graph = net.shape.graph()
    columns = -(-width // net.shape.multiple)
    budget = sweep.peak_bytes(graph, scarce, (4,) * len(graph.levels)) * columns
    little = upscaler_of(net, budget_bytes=max(budget, 2**20))(pixels).pixels
    np.testing.assert_array_equal(little, plenty)


@pytest.mark.parametrize(("channels", "size"), [(3, None), (1, None), (4, (900, 70))])
def test_bands_of_columns_give_the_same_picture(networks, channels, size):
    net, pixels = networks["compact"], deep(31, 801, channels)
    graph = net.shape.graph()
    budget = sweep.peak_bytes(graph, 4, (4,) * len(graph.levels)) * 250
    banded = upscaler_of(net, budget_bytes=budget)(pixels, size).pixels
    np.testing.assert_array_equal(banded, upscaler_of(net)(pixels, size).pixels)


@pytest.mark.parametrize("name", SHAPES)
@some
@given(
    sizes=st.lists(st.tuples(sides, sides), min_size=1, max_size=8),
    side=st.integers(40, 70),
    channels=st.integers(1, 4),
)
def test_a_canvas_gives_what_each_whole_picture_gives(networks, name, sizes, side, channels):
    net = networks[name]
    pictures = [deep(h, w, channels, seed=i) for i, (h, w) in enumerate(sizes)]
    got, _ = upscale_together(upscaler_of(net), pictures, side, side)
    for pixels, result in zip(pictures, got, strict=True):
        alone = upscaler_of(net)(pixels).pixels
        assert np.abs(result.astype(int) - alone).max() <= 1
        if channels == 3:
            assert np.abs(result - whole(net, pixels)).max() <= TIE


def test_gray_comes_back_as_one_channel():
    net, gray = network(SHAPES["compact"]), deep(12, 9, 1)
    upscaled = upscaler_of(net)(gray).pixels
    wanted = forward(net, np.repeat(gray, 3, axis=2)).mean(axis=2, keepdims=True).clip(0, 65535)
    assert upscaled.shape == (48, 36, 1)
    assert np.abs(upscaled - wanted).max() <= TIE


def test_8_and_16_bits_never_share_a_launch(networks):
    upscaler = upscaler_of(networks["compact"])
    pictures = [noise(9, 9, 3), deep(9, 9, 3), noise(12, 9, 3), deep(7, 9, 3)]
    planes = [upscaler.split(pixels)[0][0] for pixels in pictures]
    assert upscaler.choose(planes).planes == (planes[0], planes[2])
    assert upscaler.choose(planes[1:]).planes == (planes[1], planes[3])


def test_everybody_gets_as_many_bits_as_came():
    upscaler = Counting(network(SHAPES["compact"]), device="cpu", precision="fp32")
    upscaler.go.clear()
    packer = Packer(upscaler, threads=1)
    makers = (noise, deep)
    pictures = [makers[i % 2](5 + i, 20 - i, 3, seed=i) for i in range(12)]
    with ThreadPoolExecutor(len(pictures)) as threads:
        threading.Timer(0.5, upscaler.go.set).start()
        results = list(threads.map(lambda pixels: visit(packer, pixels), pictures))
    alone = upscaler_of(network(SHAPES["compact"]))
    for pixels, result in zip(pictures, results, strict=True):
        assert result.pixels.dtype == pixels.dtype
        assert np.abs(result.pixels.astype(int) - alone(pixels).pixels).max() <= 1
    assert max(upscaler.launches) >= 5
