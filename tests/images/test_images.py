"""What is read is right, everything else has its code."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ItemError
from pipeline.images.decode import decode

TRICKY = Path(__file__).resolve().parents[3] / "shared" / "data" / "tricky"
exact = settings(deadline=None, derandomize=True, max_examples=40)


def read(data, max_pixels=10**6):
    return decode(data, max_pixels=max_pixels)


def saved(picture, format, **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def code(data, **limits):
    with pytest.raises(ItemError) as caught:
        read(data, **limits)
    return caught.value.code


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_every_8_bit_mode_is_read_as_it_looks(mode, format):
    channels = 3 if mode == "P" else 4
    picture = PIL.Image.fromarray(noise(24, 16, channels)).convert(mode)
    image = read(saved(picture, format))
    shown = picture.convert("RGB") if mode == "P" else picture
    wanted = np.asarray(shown.convert("L") if mode == "1" else shown)
    np.testing.assert_array_equal(image.pixels, wanted.reshape(24, 16, -1))
    assert (image.facts.mode, image.facts.width, image.facts.height) == (mode, 16, 24)


def test_transparency_of_palettes_and_colour_keys_survives():
    palette = PIL.Image.fromarray(noise(8, 8, 3)).quantize(4)
    wanted = np.asarray(palette.convert("RGB"))
    image = read(saved(palette, "PNG", transparency=0))
    np.testing.assert_array_equal(image.pixels[..., :3], wanted)
    np.testing.assert_array_equal(image.pixels[..., 3] == 0, np.asarray(palette) == 0)
    gray = PIL.Image.fromarray(np.array([[0, 7], [7, 255]], np.uint8))
    keyed = read(saved(gray, "PNG", transparency=7)).pixels
    np.testing.assert_array_equal(keyed[..., 1], [[255, 0], [0, 255]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_out_the_right_way_up_once(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stored = PIL.Image.fromarray(noise(6, 10, 3))
    image = read(saved(stored, "PNG", exif=exif, dpi=(100, 200)))
    turn = {
        2: [0], 3: [0, 1], 4: [1], 5: [4], 6: [3], 7: [5], 8: [2],
    }  # fmt: skip
    wanted = stored
    for step in turn.get(orientation, []):
        method = {0: 0, 1: 1, 2: 2, 3: 4, 4: 5, 5: 6}[step]
        wanted = wanted.transpose(PIL.Image.Transpose(method))
    np.testing.assert_array_equal(image.pixels, np.asarray(wanted))
    across, down = image.metadata.dpi
    assert (round(across), round(down)) == ((200, 100) if orientation > 4 else (100, 200))
    assert "exif_dropped" not in image.warnings


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
    assert read(saved(picture, "PNG")).warnings == ("icc_untagged",)


def png16(colour_type):
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    header = struct.pack(">IIBBBBB", 2, 2, 16, colour_type, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(4 * channels)) * 2)

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    parts = [chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def frames(format):
    pages = [PIL.Image.fromarray(noise(8, 8, 3)), PIL.Image.fromarray(255 - noise(8, 8, 3))]
    return saved(pages[0], format, save_all=True, append_images=pages[1:])


def test_what_is_not_read_yet_has_its_own_code():
    gray = PIL.Image.fromarray(noise(8, 8))
    cases = {
        "unsupported_depth": [
            *(png16(colour) for colour in (0, 2, 4, 6)),
            saved(gray.convert("I;16"), "TIFF"),
            saved(gray.convert("F"), "TIFF"),
        ],
        "unsupported_colour": [
            saved(gray.convert("RGB").convert("CMYK"), "JPEG"),
            saved(gray.convert("RGB").convert("CMYK"), "TIFF"),
            saved(gray.convert("RGB").convert("LAB"), "TIFF"),
        ],
        "unsupported_frames": [frames(kind) for kind in ("PNG", "TIFF", "WEBP")],
        "unsupported_format": [saved(gray, kind) for kind in ("GIF", "BMP", "PPM")],
    }
    found = {wanted: [code(data) for data in files] for wanted, files in cases.items()}
    assert found == {wanted: [wanted] * len(files) for wanted, files in cases.items()}


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_broken_files_are_failures(format):
    whole = saved(PIL.Image.fromarray(noise(32, 32, 3)), format)
    assert read(whole).pixels.shape == (32, 32, 3)
    for share in range(10):
        assert code(whole[: len(whole) * share // 10]) in ("not_an_image", "decode_failed")


@exact
@given(st.data())
def test_no_mutation_raises_anything_but_an_item_error(data):
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF"]))
    file = bytearray(saved(PIL.Image.fromarray(noise(12, 12, 3)), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ItemError):
        assert read(bytes(file)).pixels.dtype == np.uint8


def test_other_files_say_what_they_are():
    assert code(b"") == code(b"<html>404</html>") == "not_an_image"
    with pytest.raises(ItemError, match="<html>"):
        read(b"<html>404</html>")


def test_limits_name_both_numbers_and_the_knob():
    with pytest.raises(ItemError, match=r"20 x 10 = 200 pixels, limit 199 \(limits.max_input_pi"):
        read(saved(PIL.Image.fromarray(noise(10, 20, 3)), "PNG"), max_pixels=199)
    assert code(saved(PIL.Image.fromarray(noise(100, 100)), "PNG"), max_pixels=9) == (
        "input_too_large"
    )


@pytest.mark.skipif(not TRICKY.exists(), reason="the shared samples are not here")
def test_the_shared_tricky_files():
    upright = [read(file.read_bytes(), 10**8) for file in sorted(TRICKY.rglob("Portrait_*.jpg"))]
    assert {image.pixels.shape for image in upright} == {(1800, 1200, 3)}
    first = upright[0].pixels.astype(int)
    far = [np.abs(image.pixels.astype(int) - first).mean() for image in upright]
    assert max(far) < 3  # a printed number differs
    codes = {}
    for file in sorted((TRICKY / "pngsuite").glob("*.png")):
        try:
            codes[file.stem] = read(file.read_bytes()).pixels.shape[2]
        except ItemError as error:
            codes[file.stem] = error.code
    deep = ("basi2c16", "basi4a16", "basn0g16", "basn2c16", "basn6a16", "tbwn0g16")
    assert all(codes[name] == "unsupported_depth" for name in deep)
    assert codes["xs1n0g01"] == codes["xhdn0g08"] == "not_an_image"
    assert codes["xdtn0g01"] == "decode_failed"
    assert codes["tbbn3p08"] == codes["tm3n3p02"] == codes["tbrn2c08"] == codes["basi6a08"] == 4
    assert codes["basn0g01"] == 1
    assert codes["basn4a08"] == 2
