"""Which pictures a generator is looked at on, and that it can be."""

import numpy as np
import PIL.Image
import pytest
from small import config

from pipeline.training import assembly, validation
from pipeline.training.pictures import File, Pictures

UNSHUFFLED = {
    "architecture": "RRDBNet",
    "features": 8,
    "blocks": 1,
    "growth": 4,
    "upsampling": [2, 2],
    "unshuffle": 2,
}


@pytest.fixture
def drawn(tmp_path):
    """Makes a picture of a width and a height."""

    def draw(name, width, height):
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / name)
        return File(str(tmp_path / name))

    return draw


@pytest.mark.parametrize("paired", [False, True])
def test_a_generator_that_folds_pixels_is_given_what_it_can_fold(drawn, paired):
    asked = config(generator=UNSHUFFLED)
    network = assembly.generator(asked)
    inputs = (drawn("low.png", 125, 51),) if paired else None
    (case,) = validation.cases(
        Pictures((drawn("high.png", 250, 102),), inputs), asked, network.shape
    )
    assert case.source.shape == (50, 124, 3)
    assert case.target.shape == (100, 248, 3)
    made = validation.results(network, [case])
    assert made[0].shape == case.target.shape
    assert np.isfinite(validation.measure([case], made, scale=2)["psnr_y"])


def test_pictures_that_cannot_be_compared_are_left_out(drawn, tmp_path):
    asked = config()
    shape = assembly.generator(asked).shape
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    targets = (
        drawn("a.png", 64, 64),
        drawn("b.png", 64, 64),
        drawn("tiny.png", 12, 64),
        File(str(tmp_path / "broken.png")),
        File(str(tmp_path / "absent.png")),
    )
    low, narrow, little = (
        drawn("a2.png", 32, 32),
        drawn("b2.png", 31, 32),
        drawn("tiny2.png", 6, 32),
    )
    pairs = Pictures(targets, (low, narrow, little, low, low))
    assert [case.name for case in validation.cases(pairs, asked, shape)] == ["a.png"]
    alone = Pictures(targets, None)
    assert [case.name for case in validation.cases(alone, asked, shape)] == ["a.png", "b.png"]
