"""What is written reads back by libraries that know nothing of us, and what is lost is said."""

import io
import shutil
import struct
import subprocess

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.config import Encode, Policy
from pipeline.errors import CODES, EncodeError, TooLargeError, UnsupportedError
from pipeline.images import exif
from pipeline.images.encode import CONTENT_TYPES, encode
from pipeline.images.image import Metadata
from pipeline.images.page import Page

exact = settings(deadline=None, derandomize=True, max_examples=40)
depths = pytest.mark.parametrize("depth", [np.uint8, np.uint16])
formats = pytest.mark.parametrize("format", CONTENT_TYPES)

XMP = b"<?xpacket begin='' id='W5M0MpCehiHzreSzNTczkc9d'?><x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
IPTC = b"\x1c\x02\x78\x00\x05hello"
PROFILE = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()


@st.composite
def pictures(draw, depths=(np.uint8, np.uint16), channels=(1, 2, 3, 4)):
    depth, count = draw(st.sampled_from(depths)), draw(st.sampled_from(channels))
    return draw(hnp.arrays(depth, (draw(st.integers(1, 20)), draw(st.integers(1, 20)), count)))


def written(pixels, format, said=None, policy=None, **asked):
    page = Page(pixels, said or Metadata())
    return encode([page], format, Encode(**asked), policy or Policy())


def opened(file):
    return PIL.Image.open(io.BytesIO(file))


def shown(file):
    """Samples as Pillow reads them."""
    picture = opened(file)
    return np.asarray(picture).reshape(picture.height, picture.width, -1)


def noise(*shape, depth=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(depth).max, shape, depth, endpoint=True)


def wide(eight):
    """The same picture in 16 bits."""
    return eight.astype(np.uint16) * 257


@exact
@given(pictures())
def test_png_gives_back_every_sample(pixels):
    file, lost = written(pixels, "png")
    found = imagecodecs.png_decode(file)
    np.testing.assert_array_equal(found.reshape(pixels.shape), pixels)
    assert (found.dtype, lost) == (pixels.dtype, ())


@exact
@given(pictures())
def test_tiff_gives_back_every_sample(pixels):
    file, lost = written(pixels, "tiff")
    found = tifffile.imread(io.BytesIO(file))
    np.testing.assert_array_equal(found.reshape(pixels.shape), pixels)
    assert (found.dtype, lost) == (pixels.dtype, ())


@exact
@given(pictures(depths=(np.uint8,)))
def test_lossless_webp_gives_back_every_visible_sample(pixels):
    file, lost = written(pixels, "webp", webp_lossless=True)
    picture = PIL.Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    wanted, got = np.asarray(picture.convert("RGBA")), np.asarray(opened(file).convert("RGBA"))
    seen = wanted[..., 3] > 0
    np.testing.assert_array_equal(got[seen], wanted[seen])
    assert lost == ()


@exact
@given(pictures(depths=(np.uint8,)), st.sampled_from(["jpeg", "webp"]))
def test_16_bits_are_written_as_their_nearest_8(pixels, format):
    """The same file as of the picture in 8 bits, and it is said."""
    off = noise(*pixels.shape, depth=np.uint16) % 257  # around each level, to half the next
    near = np.clip(wide(pixels).astype(int) + off - 128, 0, 65_535).astype(np.uint16)
    for deep in (wide(pixels), near):
        file, lost = written(deep, format)
        same, others = written(pixels, format)
        assert file == same
        assert lost == ("depth_reduced", *others)


def test_16_bits_that_may_not_be_reduced_are_refused():
    deep, refused = noise(4, 4, 3, depth=np.uint16), Policy(depth="reject")
    for kind in ("jpeg", "webp"):
        with pytest.raises(UnsupportedError, match="16 bits a sample") as caught:
            written(deep, kind, policy=refused)
        assert (caught.value.code, caught.value.stage) == ("output_depth", "encode")
        assert written(noise(4, 4, 3), kind, policy=refused)[1] == ()
    for kind in ("png", "tiff"):
        assert written(deep, kind, policy=refused)[1] == ()


@pytest.mark.parametrize("format", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_16_bit_ramp_keeps_its_levels(format, channels):
    ramp = np.arange(65_536, dtype=np.uint16).reshape(256, 256, 1).repeat(channels, axis=2)
    file, _ = written(ramp, format)
    read = imagecodecs.png_decode if format == "png" else imagecodecs.tiff_decode
    found = read(file).reshape(256, 256, -1)
    assert found.dtype == np.uint16
    assert len(np.unique(found[..., 0])) == 65_536


@pytest.mark.parametrize("channels", [1, 3])
@depths
def test_jpeg_keeps_every_colour_in_full_resolution(channels, depth):
    stripes = np.zeros((64, 64, channels), depth)
    stripes[:, ::2, 0] = np.iinfo(depth).max
    file, _ = written(stripes, "jpeg", jpeg_quality=98)
    assert np.abs(shown(file) - (stripes / np.iinfo(depth).max * 255)).max() < 16


@pytest.mark.parametrize(
    ("asked", "factors"), [("4:4:4", (1, 1)), ("4:2:2", (2, 1)), ("4:2:0", (2, 2))]
)
def test_jpeg_halves_colour_where_that_is_asked_for(asked, factors):
    file, _ = written(noise(48, 48, 3), "jpeg", jpeg_subsampling=asked)
    (marker,) = (place for place in range(len(file)) if file[place : place + 2] == b"\xff\xc0")
    components = struct.unpack_from("9B", file, marker + 10)
    sampling = [(each >> 4, each & 15) for each in components[1::3]]
    assert sampling == [factors, (1, 1), (1, 1)]
    assert written(noise(48, 48, 1), "jpeg", jpeg_subsampling=asked)[1] == ()


def test_quality_is_what_was_asked_for():
    pixels = noise(64, 64, 3)
    for kind in ("jpeg", "webp"):
        low, high = (written(pixels, kind, **{f"{kind}_quality": q})[0] for q in (30, 95))
        assert len(low) < len(high) / 2


@pytest.mark.parametrize("channels", [2, 4])
@depths
def test_jpeg_shows_transparent_pictures_on_white(channels, depth):
    pixels, full = np.zeros((16, 16, channels), depth), np.iinfo(depth).max
    reduced = ("depth_reduced",) if depth == np.uint16 else ()
    file, lost = written(pixels, "jpeg")
    assert lost == (*reduced, "alpha_flattened")
    assert shown(file).min() > 250
    pixels[..., -1] = full // 2
    assert np.abs(shown(written(pixels, "jpeg")[0]).astype(int) - 128).max() < 3
    pixels[..., -1] = full
    file, lost = written(pixels, "jpeg")
    assert lost == reduced
    assert shown(file).max() < 5
    pixels[-1, -1, -1] = full * 3 // 4
    assert written(pixels, "jpeg")[1] == (*reduced, "alpha_flattened")


@exact
@given(pictures(depths=(np.uint8,), channels=(2, 4)))
def test_on_white_means_each_to_its_share(pixels):
    share = pixels[..., -1:] / 255
    wanted = np.rint(pixels[..., :-1] * share + 255 * (1 - share)).astype(np.uint8)
    opaque = bool(pixels[..., -1].min() == 255)
    file, lost = written(pixels, "jpeg")
    assert file == written(wanted, "jpeg")[0]
    assert lost == (() if opaque else ("alpha_flattened",))


def test_wide_pictures_are_reduced_in_bands_without_a_seam():
    pixels = noise(9, 60_000, 4, depth=np.uint16)
    file, _ = written(pixels, "jpeg")
    eight = ((pixels.astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8)
    assert file == written(eight, "jpeg")[0]


@formats
@pytest.mark.parametrize("channels", [1, 3, 4])
@depths
def test_everything_that_was_said_is_said_again(format, channels, depth):
    said = Metadata(
        icc_profile=PROFILE if channels > 1 else None,
        exif=exif.build({"ifd0": {271: (2, 6, b"Maker\0")}}, "<"),
        xmp=XMP,
        iptc=IPTC,
        dpi=(1200, 600),
    )
    file, lost = written(noise(8, 8, channels, depth=depth), format, said)
    lossy = format in ("jpeg", "webp")
    wanted = [
        *["depth_reduced"] * (lossy and depth == np.uint16),
        *["alpha_flattened"] * (format == "jpeg" and channels == 4),
        *["iptc_dropped"] * (format == "webp"),
    ]
    assert list(lost) == wanted
    picture = opened(file)
    assert picture.info.get("icc_profile") == said.icc_profile
    assert picture.getexif()[271] == "Maker"
    assert XMP in file
    assert IPTC in file or format in ("png", "webp")  # a PNG has it in hexadecimal, deflated
    if format != "webp":
        assert picture.info["dpi"] == pytest.approx((1200, 600), rel=1e-3)


def test_a_gray_profile_does_not_go_into_a_picture_that_becomes_rgb():
    gray = PROFILE[:16] + b"GRAY" + PROFILE[20:]
    file, lost = written(noise(8, 8, 1), "webp", Metadata(icc_profile=gray))
    assert lost == ("icc_dropped",)
    assert opened(file).info.get("icc_profile") is None
    assert shown(file).shape == (8, 8, 3)


@pytest.mark.parametrize("format", ["png", "jpeg", "tiff", "webp"])
@pytest.mark.parametrize("channels", [1, 2])
def test_grays_with_a_profile_of_rgb_become_rgb(format, channels):
    pixels = noise(8, 8, channels)
    if format == "jpeg":
        pixels[:] = pixels[0, 0] | 255 * (np.arange(channels) > 0)  # flat and opaque: it keeps that
    said = Metadata(icc_profile=PROFILE)
    file, lost = written(pixels, format, said, webp_lossless=True)
    assert (lost, opened(file).info["icc_profile"]) == ((), PROFILE)
    found = shown(file)
    assert found.shape[2] == (3 if format == "jpeg" else channels + 2)
    visible = pixels[:, :, -1] > 0 if channels == 2 else np.full((8, 8), True)
    assert np.abs(found[visible, :3].astype(int) - pixels[visible, :1]).max() <= 1
    if channels == 2 and format != "jpeg":
        np.testing.assert_array_equal(found[:, :, 3], pixels[:, :, 1])


def test_several_pages_become_a_tiff_or_nothing():
    pages = [Page(noise(4, 5, 3)), Page(noise(7, 3, 1, depth=np.uint16))]
    file, lost = encode(pages, "tiff", Encode(), Policy())
    with tifffile.TiffFile(io.BytesIO(file)) as found:
        assert [page.shape for page in found.pages] == [(4, 5, 3), (7, 3)]
    assert lost == ()
    for kind in ("png", "jpeg", "webp"):
        with pytest.raises(UnsupportedError, match=r"2 pages.*format: tiff") as caught:
            encode(pages, kind, Encode(), Policy())
        assert caught.value.code == "output_pages"


@formats
@depths
def test_the_same_again_is_the_same_bytes(format, depth):
    pixels = noise(40, 30, 4, depth=depth)
    said = Metadata(icc_profile=PROFILE, xmp=XMP, dpi=(300, 300))
    assert written(pixels, format, said) == written(pixels.copy(), format, said)


def test_what_an_encoder_refuses_fails_one_item():
    with pytest.raises(EncodeError, match="webp: ") as caught:
        written(np.zeros((1, 16_384, 3), np.uint8), "webp")
    assert caught.value.code == "encode_failed"
    assert CODES["encode_failed"].stage == "encode"
    # more than there is address space, of one zero
    vast = np.broadcast_to(np.uint8(0), (2**24, 2**24, 4))
    with pytest.raises(TooLargeError) as too_large:
        written(vast, "jpeg")
    assert too_large.value.code == "encode_memory"


@pytest.mark.skipif(not shutil.which("pngcheck"), reason="pngcheck is not installed")
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@depths
def test_pngcheck_finds_no_fault(tmp_path, channels, depth):
    said = Metadata(icc_profile=PROFILE if channels > 2 else None, dpi=(300, 300))
    path = tmp_path / "picture.png"
    path.write_bytes(written(noise(60, 50, channels, depth=depth), "png", said)[0])
    done = subprocess.run(["pngcheck", "-q", path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
