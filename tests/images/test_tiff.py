"""The TIFF writer, read back by tifffile, by Pillow's libtiff and by exiftool."""

import io
import json
import re
import shutil
import struct
import subprocess
import tracemalloc

import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.images import exif
from pipeline.images.image import Metadata
from pipeline.images.page import Page
from pipeline.images.tiff import encode

exact = settings(deadline=None, derandomize=True, max_examples=60)
sizes = pytest.mark.parametrize("big", [False, True])
depths = pytest.mark.parametrize("depth", [np.uint8, np.uint16])
orders = pytest.mark.parametrize("order", ["<", ">"])

pictures = st.tuples(st.sampled_from([np.uint8, np.uint16]), st.integers(1, 4)).flatmap(
    lambda kind: hnp.arrays(
        kind[0], st.tuples(st.integers(1, 40), st.integers(1, 20), st.just(kind[1]))
    )
)
XMP = b"<?xpacket begin='' id='W5M0MpCehiHzreSzNTczkc9d'?><x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
IPTC = b"\x1c\x02\x78\x00\x05hello"


def written(*pages, big=False, moved=False):
    file, warnings = encode(pages, classic_bytes=0 if big else 2**32)
    assert warnings == (("maker_note_moved",) if moved else ())
    return file


def noise(*shape, depth=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(depth).max, shape, depth, endpoint=True)


def by_tifffile(file):
    """Samples and tags of each page."""
    with tifffile.TiffFile(io.BytesIO(file)) as opened:
        for page in opened.pages:
            samples = page.asarray().reshape(page.imagelength, page.imagewidth, -1)
            yield samples, {tag.code: tag.value for tag in page.tags}


def by_pillow(file, page=0):
    """As libtiff reads it. 16-bit colours it cannot."""
    picture = PIL.Image.open(io.BytesIO(file))
    picture.seek(page)
    samples = np.asarray(picture)
    return samples.reshape(picture.height, picture.width, -1)


def stream(order="<", **changes):
    """EXIF of every kind of value, with directories at all places."""

    def short(*values):
        return 3, len(values), struct.pack(f"{order}{len(values)}H", *values)

    def rational(*values):
        return 5, len(values) // 2, struct.pack(f"{order}{len(values)}I", *values)

    def text(value):
        return 2, len(value) + 1, value.encode() + b"\0"

    directories = {
        "ifd0": {
            256: short(4000),
            270: text("A description"),
            271: text("Maker"),
            272: text("M"),
            274: short(6),
            282: rational(72, 1),
            296: short(3),
            305: text("Scanner 1.0"),
            306: text("2001:02:03 04:05:06"),
            315: (2, 6, "Jürg".encode() + b"\0"),
            531: short(1),
            33432: text("(c) somebody"),
        },
        "exif": {
            0x829A: rational(1, 125),
            0x8827: short(400),
            0x9000: (7, 4, b"0232"),
            0x9003: text("2001:02:03 04:05:06"),
            0x9204: (10, 1, struct.pack(f"{order}2i", -1, 3)),
            0x927C: (7, 2001, bytes(range(1, 256)) * 7 + bytes(216)),
        },
        "gps": {
            0: (1, 4, bytes((2, 3, 0, 0))),
            1: text("N"),
            2: rational(48, 1, 8, 1, 325, 100),
        },
        "interop": {1: text("R98"), 2: (7, 4, b"0100")},
    }
    return exif.build(directories | changes, order)


@exact
@given(pictures, st.booleans())
def test_every_sample_comes_back(pixels, big):
    file = written(Page(pixels), big=big)
    [(samples, tags)] = by_tifffile(file)
    np.testing.assert_array_equal(samples, pixels)
    assert samples.dtype == pixels.dtype
    assert file[:4] == (b"II\x2b\0" if big else b"II\x2a\0")
    assert tags.get(338) == ((2,) if pixels.shape[2] in (2, 4) else None)
    if pixels.dtype == np.uint8 or pixels.shape[2] == 1:
        np.testing.assert_array_equal(by_pillow(file), pixels)


def soft(height, width, channels, depth):
    row = np.cumsum(noise(width, channels, depth=depth) % 9, axis=0, dtype=depth)
    return row + np.arange(height, dtype=depth)[:, None, None]


@pytest.mark.parametrize(
    ("shape", "tiled"),
    [
        ((512, 512, 3), True),
        ((513, 1025, 4), True),
        ((1030, 520, 1), True),
        ((700, 900, 2), True),
        ((511, 2000, 3), False),
        ((1, 300_000, 4), False),
        ((512, 511, 1), False),
    ],
)
@depths
@sizes
def test_large_pictures_are_tiled(shape, tiled, depth, big):
    pixels = soft(*shape, depth)
    classic = 0 if big else 2**32
    file, _ = encode([Page(pixels)], tiled_pixels=512 * 512, classic_bytes=classic)
    [(samples, tags)] = by_tifffile(file)
    np.testing.assert_array_equal(samples, pixels)
    assert (tags.get(322), tags.get(323)) == ((512, 512) if tiled else (None, None))
    assert (tags[259], tags[317]) == (8, 2)
    if depth == np.uint8:
        np.testing.assert_array_equal(by_pillow(file), pixels)


def test_tiles_begin_at_16_megapixels():
    for width, tiled in ((4096, True), (4095, False)):
        [(samples, tags)] = by_tifffile(written(Page(soft(4096, width, 1, np.uint8))))
        assert (322 in tags, samples.shape) == (tiled, (4096, width, 1))


@depths
def test_the_layout_in_memory_changes_nothing(depth):
    whole = noise(60, 40, 4, depth=depth)
    views = (
        whole[::-1],
        whole[:, ::-1],
        whole.transpose(1, 0, 2),
        whole[5:50:3, 3:30:2, :3],
        np.asfortranarray(whole),
        whole.astype(whole.dtype.newbyteorder(">")),
    )
    for view in views:
        packed = np.ascontiguousarray(view, dtype=depth)
        assert written(Page(view)) == written(Page(packed))


def test_a_ramp_keeps_its_levels():
    ramp = np.arange(65_536, dtype=np.uint16).reshape(256, 256, 1).repeat(3, axis=2)
    [(samples, _)] = by_tifffile(written(Page(ramp)))
    assert len(np.unique(samples[..., 1])) == 65_536


def test_nothing_is_said_that_is_not_known():
    [(_, tags)] = by_tifffile(written(Page(noise(5, 6, 3))))
    structure = {256, 257, 258, 259, 262, 273, 277, 278, 279, 282, 283, 284, 296, 317}
    assert set(tags) == structure
    assert tags[296] == 1  # no unit
    assert PIL.Image.open(io.BytesIO(written(Page(noise(5, 6, 3))))).info.get("dpi") is None


@sizes
@orders
def test_the_same_again_is_the_same_bytes(big, order):
    page = Page(noise(30, 20, 3), Metadata(exif=stream(order), xmp=XMP, dpi=(300, 300)))
    first, again = (written(page, page, big=big, moved=True) for _ in range(2))
    assert first == again


@sizes
@orders
@pytest.mark.parametrize("kind", [(np.uint8, 3), (np.uint16, 4), (np.uint16, 1)])
def test_everything_that_was_said_is_said_again(big, order, kind):
    depth, channels = kind
    profile = noise(3001).tobytes()
    said = Metadata(icc_profile=profile, exif=stream(order), xmp=XMP, iptc=IPTC, dpi=(300, 72.5))
    pixels = noise(50, 31, channels, depth=depth)
    file = written(Page(pixels, said), big=big)
    [(samples, tags)] = by_tifffile(file)
    np.testing.assert_array_equal(samples, pixels)
    assert (tags[34675], tags[700]) == (profile, XMP)
    assert (tags[256], tags[257], tags[282], tags[283], tags[296]) == (
        31,
        50,
        (300, 1),
        (145, 2),
        2,
    )
    assert {271: "Maker", 272: "M", 305: "Scanner 1.0"}.items() <= tags.items()
    assert {274, 531}.isdisjoint(tags)  # upright, and not sampled as in a JPEG
    taken = {name: tags[34665][name] for name in ("ExposureTime", "ExposureBiasValue")}
    assert taken == {"ExposureTime": (1, 125), "ExposureBiasValue": (-1, 3)}
    assert tags[34853]["GPSLatitude"] == (48, 1, 8, 1, 325, 100)
    opened = PIL.Image.open(io.BytesIO(file))
    read = opened.getexif()
    assert opened.info["dpi"] == (300, 72.5)
    assert opened.info["icc_profile"] == profile
    assert read[0x8298] == "(c) somebody"
    assert read.get_ifd(0x8769)[0x927C] == bytes(range(1, 256)) * 7 + bytes(216)
    assert read.get_ifd(0x8769)[0x9003] == "2001:02:03 04:05:06"
    assert read.get_ifd(0x8825)[2] == (48, 8, 3.25)
    assert read.get_ifd(0xA005)[1] == "R98"
    assert bytes(opened.tag_v2[33723]) == IPTC


@pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed")
@orders
def test_exiftool_finds_every_word_and_no_fault(tmp_path, order):
    said = Metadata(
        exif=stream(order), xmp=XMP + b"<?xpacket end='w'?>", iptc=IPTC, dpi=(300, 72.5)
    )
    path = tmp_path / "page.tif"
    path.write_bytes(written(Page(noise(50, 31, 3, depth=np.uint16), said), Page(noise(9, 8, 1))))
    asked = ["exiftool", "-json", "-G1", "-n", str(path)]
    [words] = json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)
    asked = ["exiftool", "-a", "-s3", "-validate", "-warning", str(path)]
    faults = subprocess.run(asked, capture_output=True, check=True).stdout.decode().splitlines()
    wanted = {
        "IFD0:ImageWidth": 31,
        "IFD0:ImageHeight": 50,
        "IFD0:BitsPerSample": "16 16 16",
        "IFD0:Make": "Maker",
        "IFD0:Software": "Scanner 1.0",
        "IFD0:ModifyDate": "2001:02:03 04:05:06",
        "IFD0:Artist": "Jürg",
        "IFD0:XResolution": 300,
        "IFD0:YResolution": 72.5,
        "ExifIFD:ExposureTime": 0.008,
        "ExifIFD:ISO": 400,
        "ExifIFD:ExposureCompensation": pytest.approx(-1 / 3, abs=1e-6),
        "ExifIFD:DateTimeOriginal": "2001:02:03 04:05:06",
        "GPS:GPSLatitude": pytest.approx(48.1342361, abs=1e-6),
        "InteropIFD:InteropIndex": "R98",
        "IPTC:Caption-Abstract": "hello",
        "IFD1:ImageWidth": 8,
    }
    assert {name: words.get(name) for name in wanted} == wanted
    # It knows neither deflate nor where XMP's specification puts IPTC, and wants a true maker note.
    known = "Compression|IPTC|MakerNotes|InteropIndex|Missing required"
    assert [fault for fault in faults[1:] if not re.search(known, fault)] == []


@sizes
@orders
def test_a_maker_note_stays_as_far_from_the_beginning_as_it_was(big, order):
    """What its own offsets count on; further pages have no such place left."""
    said = Metadata(exif=stream(order))
    at, note = exif.maker_note(said.exif)
    assert said.exif[at : at + len(note)] == note
    pages = Page(noise(5, 4, 3), said), Page(noise(3, 3, 1), said)
    file = written(*pages, big=big, moved=True)
    assert file[at : at + len(note)] == note
    for index in range(2):
        read = PIL.Image.open(io.BytesIO(file))
        read.seek(index)
        assert read.getexif().get_ifd(0x8769)[0x927C] == note
    words = 70_000
    values = {0x9101: (7, words, bytes(words)), 0x927C: (7, len(note), note)}
    far = Metadata(exif=stream(order, exif=values))
    assert exif.maker_note(far.exif)[0] > words
    assert len(written(Page(noise(5, 4, 3), far), big=big, moved=True)) < words + 5000


@sizes
def test_a_maker_note_that_cannot_stay_where_it_was_is_said_to_have_moved(big):
    classic = 0 if big else 2**32
    near = Page(noise(5, 4, 3), Metadata(exif=stream()))
    assert encode([near], classic_bytes=classic)[1] == ()
    assert encode([near, near], classic_bytes=classic)[1] == ("maker_note_moved",)
    _, note = exif.maker_note(near.said.exif)
    values = {0x9101: (7, 70_000, bytes(70_000)), 0x927C: (7, len(note), note)}
    far = Page(noise(5, 4, 3), Metadata(exif=stream(exif=values)))
    assert encode([far], classic_bytes=classic)[1] == ("maker_note_moved",)


@sizes
def test_pages_have_their_own_samples_and_words(big):
    pages = [
        Page(noise(20, 30, 3), Metadata(exif=stream(), dpi=(300, 300))),
        Page(noise(7, 9, 1, depth=np.uint16), Metadata(xmp=XMP)),
        Page(noise(20, 30, 3)[::-1], Metadata(exif=stream(">", gps={1: (2, 2, b"S\0")}))),
        Page(noise(1, 1, 4)),
    ]
    file = written(*pages, big=big, moved=True)
    found = list(by_tifffile(file))
    assert len(found) == 4
    for (samples, _), page in zip(found, pages, strict=True):
        np.testing.assert_array_equal(samples, page.samples)
    tags = [tags for _, tags in found]
    assert [700 in each for each in tags] == [False, True, False, False]
    assert [each.get(271) for each in tags] == ["Maker", None, "Maker", None]
    assert [each.get(34853, {}).get("GPSLatitudeRef") for each in tags] == ["N", None, "S", None]
    assert [each[296] for each in tags] == [2, 1, 1, 1]
    np.testing.assert_array_equal(by_pillow(file, 2), pages[2].samples)


def test_exif_that_cannot_be_read_is_left_out_and_named():
    page = Page(noise(3, 4, 3), Metadata(exif=b"no EXIF at all", xmp=XMP))
    file, warnings = encode([page, page])
    assert warnings == ("exif_dropped",)
    assert [tags[700] for _, tags in by_tifffile(file)] == [XMP, XMP]


@pytest.mark.parametrize("dpi", [(72, 2**32), (0, 300)])
def test_a_resolution_that_a_tiff_does_not_hold_is_left_out_and_named(dpi):
    file, warnings = encode([Page(noise(3, 4, 3), Metadata(dpi=dpi))])
    assert warnings == ("dpi_dropped",)
    assert [tags[296] for _, tags in by_tifffile(file)] == [1]


@exact
@given(pictures, st.integers(1, 3), st.booleans())
def test_no_file_becomes_larger_than_was_foreseen(pixels, pages, tiled):
    """So none can outgrow the offsets that were chosen for it."""
    said = Metadata(exif=stream(), xmp=XMP, iptc=IPTC, icc_profile=bytes(999))
    shape = (512, 512, 1) if tiled else pixels.shape
    many = [Page(noise(*shape, depth=pixels.dtype), said)] * pages
    classic, _ = encode(many, tiled_pixels=1, classic_bytes=2**32)
    assert encode(many, tiled_pixels=1, classic_bytes=len(classic))[0][2] == 0x2B


def test_memory_holds_one_copy_of_the_file_and_a_segment():
    pixels = noise(4100, 4100, 1)
    tracemalloc.start()
    try:
        file = written(Page(pixels))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1.125 * len(file) + 2**22
