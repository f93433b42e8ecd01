"""JPEG against a real encoder and decoder: Pillow's libjpeg."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.training.jpeg import compress, quantisation

QUALITIES = [10, 30, 49, 50, 75, 95, 100]


def stored(levels, quality):
    """What Pillow reads from the JPEG that it wrote; uint8 (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file))


def scene(height, width):
    """Flats, gradients, coloured edges and fine noise, as photographs have; uint8 (H, W, 3)."""
    rng = np.random.default_rng(height * width)
    coarse = rng.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    edges = np.kron(coarse, np.ones((12, 12, 1)))[:height, :width]
    left = np.arange(width)[None, :, None] < width // 2
    noisy = np.where(left, smooth, edges) + rng.normal(0, 3, (height, width, 3))
    return noisy.round().clip(0, 255).astype(np.uint8)


def tensor(levels):
    return torch.from_numpy(levels).permute(2, 0, 1)[None] / 255


def ours(levels, quality):
    compressed = compress(tensor(levels), torch.tensor([float(quality)]))
    return (compressed[0].permute(1, 2, 0) * 255).numpy()


def distance(a, b):
    return np.abs(a.astype(float) - b).mean()


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize(("height", "width"), [(256, 256), (33, 47), (16, 17), (131, 100), (8, 90)])
def test_within_a_level_of_a_real_encoder(height, width, quality):
    levels = scene(height, width)
    real = stored(levels, quality)
    assert distance(real, ours(levels, quality)) < min(1, 0.75 * distance(real, levels))


@pytest.mark.parametrize("quality", QUALITIES)
def test_noise_within_a_level_of_a_real_encoder(quality):
    levels = np.random.default_rng(5).integers(0, 256, (200, 201, 3), np.uint8)
    real = stored(levels, quality)
    assert distance(real, ours(levels, quality)) < 1
    assert distance(real, levels) > 40  # nearly all of such noise's colour is lost


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 20), (15, 5)])
def test_a_few_pixels(height, width):
    levels = scene(height, width)
    assert distance(stored(levels, 80), ours(levels, 80)) < 1


@pytest.mark.parametrize("quality", range(1, 101))
def test_tables_are_the_real_encoders(quality):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    luma, chroma = Image.open(file).quantization.values()
    tables = quantisation(torch.tensor([float(quality)]))
    assert tables[0].tolist() == [list(luma), list(chroma)]


def test_each_picture_has_its_own_quality_which_stays():
    levels = scene(40, 56)
    batch = tensor(levels).repeat(3, 1, 1, 1)
    quality = torch.tensor([30.0, 61.25, 95.0])
    kept = quality.clone(), batch.clone()
    together = compress(batch, quality)
    for index in range(3):
        alone = compress(batch[index : index + 1], quality[index : index + 1])
        assert torch.equal(together[index], alone[0])
    assert torch.equal(quality, kept[0])
    assert torch.equal(batch, kept[1])


def test_finer_quality_is_closer():
    levels = scene(96, 96)
    distances = [distance(levels, ours(levels, quality)) for quality in (5, 30, 55.5, 80, 98.5)]
    assert distances == sorted(distances, reverse=True)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(1, 100), st.integers(0, 99))
def test_any_size_gives_bytes(height, width, quality, seed):
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.rand(2, 3, height, width, generator=generator) * 1.5 - 0.25
    result = compress(pictures, torch.full((2,), quality))
    assert result.shape == pictures.shape
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1
    assert torch.equal((result * 255).round() / 255, result)


def test_what_is_out_of_range_is_clamped():
    pictures = torch.tensor([-1.0, 2.0]).view(2, 1, 1, 1).expand(2, 3, 16, 16)
    assert torch.equal(compress(pictures, torch.tensor([90.0, 90.0])), pictures.clamp(0, 1))
