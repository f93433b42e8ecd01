"""Codecs: what is read is right, what is written reads back, everything else has its code."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.config import Encode, Limits, Policy
from pipeline.errors import ItemError
from pipeline.images.decode import decode
from pipeline.images.encode import check_size, encode

TRICKY = Path(__file__).resolve().parents[3] / "shared" / "data" / "tricky"
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
exact = settings(deadline=None, derandomize=True, max_examples=40)

pictures = st.integers(1, 4).flatmap(
    lambda channels: hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(channels))
    )
)


def read(data):
    return decode(data, Limits(), Policy())


def saved(picture, format, **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@exact
@given(pictures, st.sampled_from(["png", "tiff"]))
def test_lossless_formats_give_back_every_sample(pixels, format):
    file, warnings = encode(pixels, format, Encode())
    image = read(file)
    np.testing.assert_array_equal(image.pixels, pixels)
    assert image.facts.format == format
    assert warnings == ()


@exact
@given(pictures)
def test_lossless_webp_gives_back_every_visible_sample(pixels):
    file, _ = encode(pixels, "webp", Encode(webp_lossless=True))
    as_rgba = PIL.Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    wanted, got = np.asarray(as_rgba.convert("RGBA")), PIL.Image.open(io.BytesIO(file))
    shown = wanted[..., 3] > 0
    np.testing.assert_array_equal(np.asarray(got.convert("RGBA"))[shown], wanted[shown])


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_keeps_every_colour_in_full_resolution(channels):
    stripes = np.zeros((64, 64, channels), np.uint8)
    stripes[:, ::2, 0] = 255
    file, _ = encode(stripes, "jpeg", Encode(jpeg_quality=98))
    assert np.abs(read(file).pixels.astype(int) - stripes).max() < 16


def test_jpeg_shows_transparent_pictures_on_white():
    pixels = np.zeros((8, 8, 4), np.uint8)
    file, warnings = encode(pixels, "jpeg", Encode())
    assert warnings == ("alpha_flattened",)
    assert read(file).pixels.min() > 250
    pixels[..., 3] = 255
    file, warnings = encode(pixels, "jpeg", Encode())
    assert warnings == ()
    assert read(file).pixels.max() < 5


def test_profile_and_resolution_go_through_and_what_is_lost_is_said():
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    exif = PIL.Image.Exif()
    exif[0x010E] = "a description"
    picture = PIL.Image.fromarray(noise(8, 8, 3))
    image = read(
        saved(picture, "JPEG", icc_profile=profile, dpi=(300, 300), exif=exif, xmp=b"<x/>")
    )
    assert image.metadata.icc_profile == profile
    assert image.warnings == ("exif_dropped", "xmp_dropped")
    for kind in ("png", "jpeg", "tiff", "webp"):
        file, warnings = encode(
            image.pixels, kind, Encode(), icc_profile=image.metadata.icc_profile, dpi=(1200, 600)
        )
        again = read(file)
        assert again.metadata.icc_profile == profile
        assert warnings == (("dpi_dropped",) if kind == "webp" else ())
        if kind != "webp":
            assert np.allclose(again.metadata.dpi, (1200, 600), rtol=1e-3)
    assert read(saved(picture, "PNG")).warnings == ("icc_untagged",)


def test_a_gray_profile_does_not_go_into_a_picture_that_becomes_rgb():
    file, warnings = encode(noise(8, 8, 1), "webp", Encode(), icc_profile=b"profile")
    assert warnings == ("icc_dropped",)
    assert read(file).metadata.icc_profile is None


def test_limits_name_both_numbers_and_the_knob():
    with pytest.raises(ItemError, match=r"65501 x 1 .*jpeg holds 65,500 a side"):
        check_size("jpeg", 65_501, 1, max_pixels=10**9)
    with pytest.raises(ItemError, match=r"webp holds 16,383 a side \(format"):
        check_size("webp", 1, 16_384, max_pixels=10**9)
    with pytest.raises(ItemError, match=r"limit 99 \(limits.max_output_pixels"):
        check_size("png", 10, 10, max_pixels=99)
    check_size("png", 70_000, 10, max_pixels=10**9)
