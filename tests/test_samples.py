"""The drawn pictures: the same every time, in the formats they claim, and worse than drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import samples

HELD = {  # file: (format, mode, size)
    "landscape.jpg": ("JPEG", "RGB", (320, 200)),
    "still-life.webp": ("WEBP", "RGB", (200, 150)),
    "boat.jpg": ("JPEG", "RGB", (200, 150)),
    "page.jpg": ("JPEG", "L", (180, 240)),
    "chart.png": ("PNG", "RGB", (240, 180)),
    "engraving.png": ("PNG", "P", (200, 200)),
    "logo.png": ("PNG", "RGBA", (160, 160)),
}


@pytest.fixture(scope="module")
def clean() -> dict[str, np.ndarray]:
    return dict(samples.drawings(np.random.default_rng(0)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "made" / "by it"
    assert [path.name for path in samples.write(folder)] == list(HELD)
    return folder


def _sharpest(picture: Image.Image) -> float:
    """The 99.5th percentile of the steps between neighbours, in levels."""
    gray = np.asarray(picture.convert("RGBA").convert("L"), np.float32)
    return float(np.percentile(np.abs(np.diff(gray, axis=1)), 99.5))


def test_drawings_are_named_after_their_files(clean):
    assert list(clean) == [Path(file).stem for file in HELD]


@pytest.mark.parametrize("file", HELD)
def test_a_drawing_is_four_times_its_file(clean, file):
    drawing, (_, mode, (width, height)) = clean[Path(file).stem], HELD[file]
    assert drawing.dtype == np.uint8
    assert drawing.shape == (4 * height, 4 * width, 4 if mode == "RGBA" else 3)


@pytest.mark.parametrize("file", HELD)
def test_a_file_is_what_it_is_said_to_be(folder, file):
    with Image.open(folder / file) as picture:
        assert (picture.format, picture.mode, picture.size) == HELD[file]


@pytest.mark.parametrize("file", HELD)
def test_a_file_shows_its_drawing_but_blurred(clean, folder, file):
    drawn = Image.fromarray(clean[Path(file).stem]).reduce(4)
    with Image.open(folder / file) as picture:
        held = picture.convert(drawn.mode)
    error = np.abs(np.asarray(held, np.float32) - np.asarray(drawn, np.float32)).mean()
    assert 1 < error < 25
    assert np.asarray(held).std() > 20
    assert _sharpest(held) < 0.8 * _sharpest(drawn)


def test_the_logo_is_transparent_opaque_and_between(folder):
    with Image.open(folder / "logo.png") as picture:
        alpha = np.asarray(picture.getchannel("A"))
    assert (alpha == 0).mean() > 0.1
    assert (alpha == 255).mean() > 0.3
    assert ((alpha > 0) & (alpha < 255)).mean() > 0.05


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    again = samples.write(tmp_path, seed=0)
    assert [p.read_bytes() for p in again] == [(folder / p.name).read_bytes() for p in again]


def test_another_seed_gives_another_picture():
    first, second = (samples.boat(np.random.default_rng(seed)) for seed in (0, 1))
    assert (first != second).any(axis=-1).mean() > 0.01


def test_noise_has_the_deviation_asked_for_and_spares_alpha():
    gray = np.full((400, 400, 4), (128, 128, 128, 255), np.uint8)
    held = np.asarray(samples.degrade(np.random.default_rng(3), gray, blur=0.5, noise=6))
    assert (held[..., 3] == 255).all()
    assert held[..., :3].std() == pytest.approx(6, rel=0.05)
    assert held[..., :3].mean() == pytest.approx(128, abs=0.5)


def test_blur_widens_an_edge_and_does_not_move_it():
    edge = np.zeros((64, 160, 3), np.uint8)
    edge[:, 80:] = 255
    rng = np.random.default_rng(0)
    soft, hard = (
        np.asarray(samples.degrade(rng, edge, blur=blur, noise=0))[8, :, 0].astype(int)
        for blur in (2.0, 0.01)
    )
    assert (hard == np.repeat((0, 255), 20)).all()
    assert np.diff(soft).max() < 80
    assert soft[19] + soft[20] == pytest.approx(255, abs=2)


def test_what_is_transparent_does_not_bleed_into_what_is_seen():
    drawing = np.zeros((64, 64, 4), np.uint8)
    drawing[:, 32:] = (200, 100, 50, 255)
    held = np.asarray(samples.degrade(np.random.default_rng(0), drawing, blur=1, noise=0))
    seen = held[held[..., 3] > 64]
    assert np.abs(seen[:, :3].astype(int) - (200, 100, 50)).max() <= 3


def test_fractal_noise_has_the_slope_asked_for():
    noise = samples._fractal(np.random.default_rng(5), (4096,), beta=1.5)
    assert noise.dtype == np.float32
    assert (float(noise.mean()), float(noise.std())) == pytest.approx((0, 1), abs=1e-4)
    amplitude = np.abs(np.fft.rfft(noise))[8:1024]
    slope = np.polyfit(np.log(np.arange(8, 1024)), np.log(amplitude), 1)[0]
    assert slope == pytest.approx(-1.5, abs=0.15)
