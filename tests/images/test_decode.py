"""Decoding: facts by the header, samples as stored, policies, and every broken file an error."""

import contextlib
import io
import itertools
import struct
import zlib
from pathlib import Path

import camera
import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import tifffile
from files import WHOLE, gradient, noise, saved, tiff
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.config import Limits, Policy
from pipeline.errors import ItemError
from pipeline.images import colour, exif, levels
from pipeline.images.decode import decode, probe, probe_pages
from pipeline.images.image import eight_bit

TRICKY = Path(__file__).resolve().parents[3] / "shared" / "data" / "tricky"
needs_samples = pytest.mark.skipif(not TRICKY.exists(), reason="the shared samples are not here")
exact = settings(deadline=None, derandomize=True, max_examples=40)
LIMITS = Limits(max_input_pixels=10**6)


def read(data, page=0, limits=LIMITS, **policy):
    image = decode(data, limits, Policy(**policy), page=page)
    assert image.facts == probe(data, limits, Policy(**policy), page=page)
    assert image.pixels.shape[2] == image.facts.channels
    assert image.pixels.itemsize == image.facts.sample_bytes or image.facts.colour == "cmyk"
    assert image.pixels.flags.c_contiguous
    return image


def code(data, **options):
    with pytest.raises(ItemError) as caught:
        read(data, **options)
    return caught.value.code


def picture(*shape):
    return PIL.Image.fromarray(noise(*shape))


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(pixels, kind, depth, *more):
    """A PNG of one written line filter (none) and any colour type; more: chunks before IDAT."""
    height, width = pixels.shape[:2]
    if depth == 16:
        lines = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    elif depth == 8:
        lines = pixels.reshape(height, -1)
    else:
        bits = np.unpackbits(pixels.reshape(height, -1, 1), axis=2)[:, :, 8 - depth :]
        lines = np.packbits(bits.reshape(height, -1), axis=1)
    rows = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


# --- Every depth and kind of samples -------------------------------------------------------------


@exact
@given(
    st.sampled_from([np.uint8, np.uint16]).flatmap(
        lambda dtype: st.integers(1, 4).flatmap(
            lambda channels: hnp.arrays(
                dtype, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(channels))
            )
        )
    ),
    st.sampled_from(["png", "tiff", "jpeg2000"]),
)
def test_what_imagecodecs_wrote_comes_back_in_its_own_depth(pixels, format):
    squeezed = np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if format == "tiff":
        alpha = {"extrasamples": ["unassalpha"]} if pixels.shape[2] in (2, 4) else {}
        model = "minisblack" if pixels.shape[2] < 3 else "rgb"
        if pixels.shape[2] > 1:
            alpha["planarconfig"] = "contig"
        data = tiff(squeezed, photometric=model, **alpha)
    elif format == "png":
        data = imagecodecs.png_encode(squeezed)
    else:
        data = jp2(squeezed, *defined(pixels.shape[2]))
    image = read(data)
    np.testing.assert_array_equal(image.pixels, pixels)
    assert image.pixels.dtype == pixels.dtype
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[pixels.shape[2]]
    assert image.facts.mode == (mode if pixels.itemsize == 1 else f"{mode};16")
    assert image.facts.bit_depth == 8 * pixels.itemsize
    assert image.facts.alpha == ("straight" if pixels.shape[2] in (2, 4) else "none")


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        *itertools.product(["1", "L", "LA", "P", "RGB", "RGBA"], ["PNG", "TIFF", "GIF", "WEBP"]),
        *[(mode, "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")],
        *[(mode, "PPM") for mode in ("1", "L", "RGB")],
    ],
)
def test_every_8_bit_mode_is_read_as_pillow_reads_it(mode, format):
    source = picture(24, 16, 3 if mode == "P" else 4).convert(mode)
    data = saved(source, format, **({"lossless": True} if format == "WEBP" else {}))
    image = read(data)
    with PIL.Image.open(io.BytesIO(data)) as opened:
        wanted = np.asarray(opened.convert("RGBA"))
    gray = image.facts.channels < 3
    shown = image.pixels[:, :, [0, 0, 0] if gray else [0, 1, 2]]
    np.testing.assert_array_equal(shown, wanted[:, :, :3])
    if image.facts.channels in (2, 4):
        np.testing.assert_array_equal(image.pixels[:, :, -1], wanted[:, :, 3])
    else:
        assert (wanted[:, :, 3] == 255).all()
    assert gray == (mode in ("1", "L", "LA") and format != "WEBP")


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_shallow_gray_has_the_full_range(depth):
    highest = 2**depth - 1
    stored = np.arange(16, dtype=np.uint8).reshape(2, 8) % (highest + 1)
    wanted = stored * (255 // highest)
    np.testing.assert_array_equal(read(png(stored, 0, depth)).pixels[:, :, 0], wanted)
    image = read(tiff(stored, bitspersample=depth, photometric="minisblack"))
    np.testing.assert_array_equal(image.pixels[:, :, 0], wanted)
    assert (image.facts.colour, image.facts.bit_depth) == (
        "bilevel" if depth == 1 else "gray",
        depth,
    )


@pytest.mark.parametrize("depth", [10, 12, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_depths_above_8_have_the_full_range_of_16(depth, channels):
    highest = 2**depth - 1
    stored = np.linspace(0, highest, 24 * channels).astype(np.uint16).reshape(4, 6, channels)
    wanted = np.rint(stored * (65_535 / highest))
    squeezed = np.ascontiguousarray(stored.squeeze())
    wrapped = [
        imagecodecs.jpeg2k_encode(squeezed, level=0, bitspersample=depth, codecformat=kind)
        for kind in ("jp2", "j2k")
    ]
    raw = f"P{5 if channels == 1 else 6} # said\n6 4\n{highest}\n".encode()
    plain = f"P{2 if channels == 1 else 3}\n6 4 # wide\n{highest}\n".encode()
    text = " ".join(str(value) for value in stored.ravel()).encode()
    for data in (*wrapped, raw + stored.astype(">u2").tobytes(), plain + text):
        image = read(data)
        assert image.pixels.dtype == np.uint16
        assert image.facts.mode == f"{'L' if channels == 1 else 'RGB'};{depth}"
        np.testing.assert_array_equal(image.pixels, wanted)


def test_netpbm_in_all_its_kinds():
    assert read(b"P1\n3 2\n101\n0 1 0").pixels[:, :, 0].tolist() == [[0, 255, 0], [255, 0, 255]]
    assert read(b"P4 3 2\n\xa0\x40").pixels[:, :, 0].tolist() == [[0, 255, 0], [255, 0, 255]]
    assert read(b"P2 2 1 3 1 # one\n3").pixels[:, :, 0].tolist() == [[85, 255]]
    assert (
        code(b"P3 1 1 255 1 2 x")
        == code(b"P5 0 1 255\n")
        == code(b"P5 1 1 65536\n")
        == ("decode_failed")
    )


def test_12_bit_jpeg_has_its_16_bits():
    stored = (np.mgrid[:64, :64].sum(0) * 32).astype(np.uint16)
    data = imagecodecs.jpeg8_encode(stored, bitspersample=12, level=98)
    image = read(data)
    assert (image.facts.mode, image.pixels.dtype) == ("L;12", np.uint16)
    assert np.abs(image.pixels[:, :, 0] / 16 - stored).max() < 16
    assert code(data[: len(data) // 2]) == "decode_failed"


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (noise(4, 4, 3).astype(np.float32), {"photometric": "rgb"}),
        (noise(4, 4).astype(np.uint32), {}),
        (noise(4, 4).astype(np.int16), {}),
        (noise(4, 4).astype(np.float16), {}),
    ],
)
def test_samples_that_are_no_16_bit_integers_are_refused_by_their_numbers(pixels, options):
    with pytest.raises(ItemError, match=rf"{8 * pixels.itemsize} bits.* 1 to 16") as caught:
        read(tiff(pixels, **options))
    assert caught.value.code == "unsupported_depth"


# --- Palettes and transparency -------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("entries", [1, 2])
def test_palettes_become_what_they_hold(depth, entries):
    gray = bytes(range(0, 3 * entries, 3))
    stored = (noise(5, 9) & 1) if entries == 2 else np.zeros((5, 9), np.uint8)
    values = np.frombuffer(gray, np.uint8)[stored]
    same = b"".join(bytes([value] * 3) for value in gray)
    image = read(png(stored, 3, depth, (b"PLTE", same)))
    assert (image.facts.channels, image.facts.colour, image.facts.mode) == (1, "palette", "P")
    np.testing.assert_array_equal(image.pixels[:, :, 0], values)
    image = read(png(stored, 3, depth, (b"PLTE", same), (b"tRNS", b"\7")))
    np.testing.assert_array_equal(image.pixels[:, :, 1], np.where(stored == 0, 7, 255))
    image = read(png(stored, 3, depth, (b"PLTE", b"\1\2\3" * entries)))
    assert (image.pixels == [1, 2, 3]).all()


@pytest.mark.parametrize("depth", [2, 8, 16])
def test_a_transparent_colour_is_compared_as_it_is_stored(depth):
    full = 65_535 if depth == 16 else 255
    gray = np.array([[0, 2], [3, 2]], np.uint16 if depth == 16 else np.uint8)
    image = read(png(gray, 0, depth, (b"tRNS", b"\0\2")))
    np.testing.assert_array_equal(image.pixels[:, :, 1], [[full, 0], [full, 0]])
    assert image.facts.alpha == "transparent_colour"
    if depth > 2:
        rgb = np.dstack([gray, gray, gray])
        rgb[1, 1, 0] ^= 1
        image = read(png(rgb, 2, depth, (b"tRNS", b"\0\2" * 3)))
        np.testing.assert_array_equal(image.pixels[:, :, 3], [[full, 0], [full, full]])


def test_a_16_bit_colour_key_is_not_compared_in_8_bits():
    gray = np.array([[0x1234, 0x1235]], np.uint16)
    image = read(png(gray, 0, 16, (b"tRNS", b"\x12\x34")))
    assert image.pixels.tolist() == [[[0x1234, 0], [0x1235, 65_535]]]


def test_tiff_palettes_of_16_and_of_8_bits():
    index = noise(4, 5) & 3
    for step in (1, 256, 257):
        colours = np.zeros((3, 256), np.uint16)
        colours[:, :4] = np.arange(12).reshape(3, 4) * 20 * step
        image = read(tiff(index, photometric="palette", colormap=colours))
        np.testing.assert_array_equal(image.pixels, (colours // step).T[index])
        assert image.facts.colour == "palette"


@pytest.mark.parametrize("grays", [False, True])
def test_a_palette_of_tiff_may_have_an_alpha_beside_it(grays):
    """As Pillow writes it. Alpha that an index cannot have been multiplied by is none."""
    index, alpha = noise(4, 5) & 3, noise(5, 4).T
    colours = np.arange(12, dtype=np.uint8).reshape(4, 3) * 20
    colours = colours[:, :1].repeat(3, 1) if grays else colours
    source = PIL.Image.fromarray(index).convert("PA")
    source.putalpha(PIL.Image.fromarray(np.ascontiguousarray(alpha)))
    source.putpalette(colours.tobytes())
    file = saved(source, "TIFF")
    image = read(file)
    wanted = colours[np.asarray(source)[:, :, 0]][:, :, : 1 if grays else 3]
    np.testing.assert_array_equal(image.pixels, np.dstack([wanted, alpha]))
    assert (image.facts.mode, image.facts.alpha) == ("PA", "straight")
    assert "extra_samples_dropped" not in image.warnings
    kind = struct.pack("<HHI", 338, 3, 1)
    image = read(file.replace(kind + b"\2", kind + b"\1"))
    np.testing.assert_array_equal(image.pixels, wanted)
    assert "extra_samples_dropped" in image.warnings


def test_a_bmp_of_grays_is_gray_however_many_there_are():
    for count in (2, 16, 200):
        index = noise(6, 9) % count
        source = PIL.Image.fromarray(index)
        source.putpalette([min(255, 3 + entry * 15 // 10) for entry in range(count) for _ in "rgb"])
        image = read(saved(source, "BMP"))
        assert image.facts.channels == 1
        wanted = np.asarray(source.convert("RGB"))[:, :, 0]
        np.testing.assert_array_equal(image.pixels[:, :, 0], wanted)
        source.putpalette([1, 2, 3] * count)
        assert read(saved(source, "BMP")).facts.channels == 3


def paletted(index, table, *more, depths=(), space=16):
    """A JPEG 2000 whose one component is an index; table: (entries, columns)."""
    count, columns = table.shape
    depths = depths or (8 * table.itemsize,) * columns
    head = struct.pack(f">HB{columns}B", count, columns, *(depth - 1 for depth in depths))
    entries = b"".join(
        int(value).to_bytes(1 + (depth > 8))
        for entry in table
        for value, depth in zip(entry, depths, strict=True)
    )
    places = b"".join(struct.pack(">HBB", 0, 1, column) for column in range(columns))
    named = (b"colr", b"\1\0\0" + struct.pack(">I", space))
    return jp2(index, named, (b"pclr", head + entries), (b"cmap", places), *more, method=b"\2")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_a_palette_of_jpeg_2000_is_what_it_holds(columns, dtype):
    """Equal entries and all, of which Pillow makes one."""
    table = noise(9, columns, dtype=dtype)
    table[5] = table[2]
    index = noise(20, 16) % 9
    file = paletted(index, table, *defined(columns), space=17 if columns < 3 else 16)
    image = read(file)
    np.testing.assert_array_equal(image.pixels, table[index])
    oracle = imagecodecs.jpeg2k_decode(file)
    np.testing.assert_array_equal(image.pixels, oracle.reshape(image.pixels.shape))
    alpha = "none" if columns % 2 else "straight"
    facts = image.facts
    assert (facts.colour, facts.alpha, facts.channels) == ("palette", alpha, columns)
    assert facts.mode == ("P" if columns % 2 else "PA") + ";16" * (dtype == np.uint16)
    assert image.warnings == ()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_palette_of_grays_in_jpeg_2000_is_gray(dtype):
    table = noise(4, 1, dtype=dtype).repeat(4, axis=1)
    table[:, 3] = noise(4)
    index = noise(6, 9) & 3
    for columns in (3, 4):
        image = read(paletted(index, table[:, :columns], *defined(columns)))
        assert image.facts.channels == columns - 2
        np.testing.assert_array_equal(image.pixels, table[index][:, :, 2:columns])


def test_a_palette_of_jpeg_2000_may_have_columns_of_many_depths():
    table = np.array([[0, 0, 0], [31, 255, 0], [31, 128, 1]], np.uint8)
    index = np.array([[0, 1, 2, 200]], np.uint8).repeat(8, axis=0)
    wanted = np.array([[0, 0, 0], [255, 255, 0], [255, 128, 255], [255, 128, 255]])
    image = read(paletted(index, table, depths=(5, 8, 1)))
    np.testing.assert_array_equal(image.pixels[0], wanted)
    deep = read(paletted(index, table, depths=(5, 12, 1))).pixels[0]
    np.testing.assert_array_equal(deep[:, [0, 2]], wanted[:, [0, 2]] * 257)
    np.testing.assert_array_equal(deep[:, 1], np.rint(np.array([0, 255, 128, 128]) * 65_535 / 4095))


def test_one_component_may_be_an_index_and_the_other_alpha():
    table, stored = noise(9, 3), noise(20, 16, 2) % 9
    places = b"".join(struct.pack(">HBB", *part) for part in ((0, 1, 0), (0, 1, 1), (0, 1, 2)))
    places += struct.pack(">HBB", 1, 0, 0)
    palette = struct.pack(">HB3B", 9, 3, 7, 7, 7) + table.tobytes()
    named = (b"colr", b"\1\0\0" + struct.pack(">I", 16))
    boxes = (named, (b"pclr", palette), (b"cmap", places), *defined(4))
    image = read(jp2(stored, *boxes, method=b"\2"))
    np.testing.assert_array_equal(image.pixels[:, :, :3], table[stored[:, :, 0]])
    np.testing.assert_array_equal(image.pixels[:, :, 3], stored[:, :, 1])


def test_palettes_of_jpeg_2000_that_cannot_be_used_are_refused():
    index, table = noise(6, 9) & 3, noise(4, 3)
    whole = paletted(index, table)
    assert code(whole.replace(b"cmap", b"free")) == "decode_failed"
    assert code(whole.replace(struct.pack(">HBB", 0, 1, 2), struct.pack(">HBB", 0, 1, 3))) == (
        "decode_failed"
    )
    for at in (2, 4):  # fewer entries than it says, signed ones
        place = whole.index(b"pclr") + 3 + at
        changed = bytearray(whole)
        changed[place] |= 0x80
        assert code(bytes(changed)) == {2: "decode_failed", 4: "unsupported_depth"}[at]
    assert code(paletted(index, noise(4, 4), space=12)) == "unsupported_colour"


def test_a_palette_beside_other_colours_means_nothing():
    pixels = noise(4, 5, 3)
    for numbers in ((70_000,) * 768, (1, 2, 3)):
        stray = [(320, 4, len(numbers), numbers, True)]
        data = tiff(pixels, photometric="rgb", extratags=stray)
        np.testing.assert_array_equal(read(data).pixels, pixels)
        with pytest.raises(ItemError, match=rf"a palette of {len(numbers)} numbers, 768 of 16 "):
            read(tiff(pixels[:, :, 0], photometric="palette", extratags=stray))


def test_a_palette_without_colours_is_no_facts_of_a_picture():
    whole = WHOLE["jp2"]
    palette = struct.pack(">I4sHB", 11, b"pclr", 1, 0)
    at = whole.index(b"jp2h") + 4
    size = int.from_bytes(whole[at - 8 : at - 4]) + len(palette)
    file = whole[: at - 8] + struct.pack(">I4s", size, b"jp2h") + palette + whole[at:]
    with pytest.raises(ItemError, match="a palette of 0 columns, 1 to 4 are read"):
        probe(file, LIMITS, Policy())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_premultiplied_colours_are_divided_by_their_alpha(dtype):
    full = int(np.iinfo(dtype).max)
    straight = noise(16, 16, 4, dtype=dtype)
    straight[:, :, 3] |= 1 << (8 * straight.itemsize - 1)
    share = straight[:, :, 3:] / full
    stored = np.rint(straight * share).astype(dtype)
    stored[:, :, 3] = straight[:, :, 3]
    stored[0, 0] = 0
    image = read(tiff(stored, photometric="rgb", extrasamples=["assocalpha"]))
    assert (image.facts.alpha, image.facts.mode[:4]) == ("premultiplied", "RGBa")
    assert image.pixels[0, 0].tolist() == [0, 0, 0, 0]
    assert np.abs(image.pixels.astype(int) - straight)[1:].max() <= 1
    np.testing.assert_array_equal(image.pixels[1:, :, 3], straight[1:, :, 3])


def test_samples_of_no_known_meaning_are_dropped_and_said():
    stored = noise(6, 5, 5, dtype=np.uint16)
    extra = ["unspecified", "unassalpha"]
    image = read(tiff(stored, photometric="rgb", extrasamples=extra, planarconfig="contig"))
    np.testing.assert_array_equal(image.pixels, stored[:, :, [0, 1, 2, 4]])
    assert "extra_samples_dropped" in image.warnings
    image = read(tiff(stored[:, :, :4], photometric="rgb", extrasamples=["unspecified"]))
    np.testing.assert_array_equal(image.pixels, stored[:, :, :3])


# --- TIFF's ways ---------------------------------------------------------------------------------

LAYOUTS = {
    "tiled": {"tile": (16, 32)},
    "planar": {"planarconfig": "separate"},
    "planar tiles": {"planarconfig": "separate", "tile": (32, 16), "compression": "zstd"},
    "lzw": {"compression": "lzw", "predictor": True, "rowsperstrip": 7},
    "deflate": {"compression": "deflate", "predictor": True},
    "packbits": {"compression": "packbits"},
    "big": {"bigtiff": True, "byteorder": ">"},
    "big-endian": {"byteorder": ">", "compression": "lzw", "predictor": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_in_every_layout(layout, dtype):
    stored = noise(45, 50, 3, dtype=dtype)
    if LAYOUTS[layout].get("planarconfig"):
        data = tiff(np.moveaxis(stored, 2, 0), photometric="rgb", **LAYOUTS[layout])
    else:
        data = tiff(stored, photometric="rgb", **LAYOUTS[layout])
    np.testing.assert_array_equal(read(data).pixels, stored)


def test_jpeg_fax_and_ycbcr_in_tiff(capfd):
    soft = PIL.Image.fromarray(np.mgrid[:64, :48].sum(0).astype(np.uint8) * 2)
    rgb = PIL.Image.merge("RGB", [soft, soft.rotate(180), soft])
    for options in (
        {"compression": "jpeg", "quality": 95},
        {"compression": "tiff_lzw"},
    ):
        for source in (rgb, rgb.convert("YCbCr")):
            pixels = read(saved(source, "TIFF", **options)).pixels
            assert np.abs(pixels.astype(int) - np.asarray(rgb)).max() < 12
    page = picture(40, 37).convert("1")
    for compression in ("group3", "group4", "packbits", None):
        image = read(saved(page, "TIFF", compression=compression))
        np.testing.assert_array_equal(image.pixels[:, :, 0], np.asarray(page.convert("L")))
        assert image.facts.colour == "bilevel"
    white_is_zero = tiff(noise(4, 5, dtype=np.uint16), photometric="miniswhite")
    np.testing.assert_array_equal(
        read(white_is_zero).pixels[:, :, 0], 65_535 - noise(4, 5, dtype=np.uint16)
    )
    assert capfd.readouterr() == ("", "")


def pages(*stored, **options):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in stored:
            subfile = {"subfiletype": 1} if page.shape[0] == 2 else {}
            writer.write(page, metadata=None, contiguous=False, **subfile, **options)
    return file.getvalue()


def test_pages_are_decoded_each_by_its_own_facts():
    stored = [noise(6, 5), noise(2, 2), noise(7, 8, 3), noise(4, 3, dtype=np.uint16)]
    data = pages(*stored)
    for page, wanted in enumerate((stored[0], *stored[2:])):
        image = read(data, page)
        np.testing.assert_array_equal(image.pixels.squeeze(), wanted)
        assert image.facts.frames == 3
        assert "frames_dropped" not in image.warnings
    with pytest.raises(ItemError, match="page 3 of 3"):
        read(data, 3)
    with pytest.raises(ItemError, match=r"3 pages, limit 2 \(limits.max_pages\)") as caught:
        read(data, limits=Limits(max_pages=2))
    assert caught.value.code == "too_many_pages"
    assert code(pages(noise(2, 2))) == "unsupported_format"
    assert probe_pages(data, LIMITS, Policy()) == tuple(
        probe(data, LIMITS, Policy(), page=page) for page in range(3)
    )
    whole = saved(picture(4, 4), "PNG")
    assert probe_pages(whole, LIMITS, Policy()) == (probe(whole, LIMITS, Policy()),)


def test_a_thumbnail_between_pages_does_not_say_what_the_next_page_says():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for name, thumbnail in (("first", False), ("thumbnail", True), ("last", False)):
            tags = [(315, 2, None, f"Artist of the {name}", True)]
            writer.write(noise(4, 5), metadata=None, subfiletype=int(thumbnail), extratags=tags)
    first, last = (read(file.getvalue(), page).metadata.exif for page in (0, 1))
    assert b"Artist of the first" in first
    assert b"Artist of the last" in last


def test_a_circle_of_pages_is_a_broken_file():
    data = bytearray(pages(*[noise(4, 4)] * 3))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as opened:
        first, last = opened.pages[0].offset, opened.pages[2].offset
    (count,) = struct.unpack_from("<H", data, last)
    struct.pack_into("<I", data, last + 2 + 12 * count, first)
    with pytest.raises(ItemError, match="comes up again"):
        read(bytes(data))


def test_ten_thousand_pages_are_counted_and_refused():
    entry = struct.pack("<HHHII", 1, 254, 4, 1, 0)
    parts = [b"II*\0" + struct.pack("<I", 8)]
    for index in range(10_000):
        parts.append(entry + struct.pack("<I", 8 + 18 * (index + 1) if index < 9_999 else 0))
    with pytest.raises(ItemError, match=r"10,000 pages, limit 1,000"):
        read(b"".join(parts))


def jp2(pixels, *more, method=b"\1"):
    """Without loss; more: boxes that say how it is meant. method: 1 a colour space's number."""
    file = imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True, codecformat="jp2")
    at = file.index(b"jp2h") - 4
    (size,) = struct.unpack_from(">I", file, at)
    header = file[at + 8 : at + size]
    if method != b"\1":
        header = header[: header.index(b"colr") - 4]
    header += b"".join(struct.pack(">I4s", 8 + len(body), kind) + body for kind, body in more)
    return file[:at] + struct.pack(">I4s", 8 + len(header), b"jp2h") + header + file[at + size :]


def defined(channels):
    """The box that says of gray or RGB that the last of 2 or 4 channels is alpha; none of 1, 3."""
    colours = channels - 1 + channels % 2
    kinds = [
        (index, index == colours, (index + 1) * (index < colours)) for index in range(channels)
    ]
    said = struct.pack(">H", channels) + b"".join(struct.pack(">HHH", *kind) for kind in kinds)
    return [(b"cdef", said)] if channels in (2, 4) else []


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_jpeg_2000_stays_in_the_space_of_its_profile(dtype):
    """Its codec would convert to sRGB. In this profile red is blue."""
    profile = camera.swapped()
    pixels = noise(20, 16, 3, dtype=dtype)
    image = read(jp2(pixels, (b"colr", b"\2\0\0" + profile), method=b"\2"))
    np.testing.assert_array_equal(image.pixels, pixels)
    assert image.metadata.icc_profile == profile


def test_a_codestream_is_found_where_its_header_was():
    # The size of the header's box, which is wrong, reaches to the file's end.
    data = jp2(picture(20, 30, 3))
    at = data.index(b"jp2h") - 4
    np.testing.assert_array_equal(
        read(data[:at] + b"\0\0\xff\0" + data[at + 4 :]).pixels, read(data).pixels
    )


def test_components_of_jpeg_2000_stand_in_any_order():
    """As its channel definitions say: here alpha, blue, green, red."""
    pixels = noise(20, 16, 4)
    kinds = struct.pack(">H12H", 4, 0, 1, 0, 1, 0, 3, 2, 0, 2, 3, 0, 1)
    image = read(jp2(pixels, (b"cdef", kinds)))
    np.testing.assert_array_equal(image.pixels, pixels[:, :, ::-1])
    assert image.facts.mode == "RGBA"
    assert code(jp2(pixels, (b"cdef", struct.pack(">H3H", 1, 0, 1, 0)))) == "decode_failed"


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_that_pillow_writes_to_jpeg_2000_comes_through(mode):
    source = picture(20, 16, 4).convert(mode)
    image = read(saved(source, "JPEG2000"))
    assert (image.facts.mode, image.facts.alpha) == (mode, "straight")
    np.testing.assert_array_equal(image.pixels, np.asarray(source))
    assert "extra_samples_dropped" not in image.warnings


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("channels", [2, 4, 5])
def test_components_of_no_stated_kind_are_dropped_and_said(channels, wrapped):
    """As of a TIFF. Without channel definitions they are colours in order, and these are more."""
    pixels = noise(20, 16, channels)
    file = imagecodecs.jpeg2k_encode(
        pixels, level=0, reversible=True, codecformat="jp2" if wrapped else "j2k"
    )
    image = read(file)
    colours = 1 if channels == 2 else 3
    assert (image.facts.channels, image.facts.alpha) == (colours, "none")
    assert image.facts.mode == {1: "L", 3: "RGB"}[colours]
    np.testing.assert_array_equal(image.pixels, pixels[:, :, :colours])
    assert "extra_samples_dropped" in image.warnings


def test_alpha_of_jpeg_2000_is_found_behind_components_of_no_kind():
    pixels = noise(20, 16, 6)
    kinds = [(0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 65_535, 65_535), (4, 1, 1), (5, 1, 0)]
    said = struct.pack(">H", 6) + b"".join(struct.pack(">HHH", *kind) for kind in kinds)
    image = read(jp2(pixels, (b"cdef", said)))
    np.testing.assert_array_equal(image.pixels, pixels[:, :, [0, 1, 2, 5]])
    assert "extra_samples_dropped" in image.warnings


def test_a_profile_says_how_many_colours_jpeg_2000_has():
    for profile, channels in ((camera.icc("gray"), 1), (camera.icc(), 3)):
        pixels = noise(20, 16, 4)
        image = read(jp2(pixels, (b"colr", b"\2\0\0" + profile), method=b"\2"))
        np.testing.assert_array_equal(image.pixels, pixels[:, :, :channels])
        assert "extra_samples_dropped" in image.warnings
    inks = (b"colr", b"\3\0\0" + cmyk_profile([0] * 48))
    assert code(jp2(noise(20, 16, 4), inks, method=b"\2")) == "unsupported_colour"
    image = read(jp2(noise(20, 16, 4), inks, method=b"\2"), colour="convert")
    assert (image.facts.mode, image.facts.channels) == ("CMYK", 3)
    for space in (1, 13):  # YCC and YCCK
        named = (b"colr", b"\1\0\0" + struct.pack(">I", space))
        with pytest.raises(ItemError, match=f"JPEG 2000's {space}") as caught:
            read(jp2(noise(20, 16, 4), named, method=b"\2"), colour="convert")
        assert caught.value.code == "unsupported_colour"


# --- Colour --------------------------------------------------------------------------------------


def cmyk_profile(nodes):
    """A printer's profile whose table (2 nodes for each ink) gives the Lab of `nodes`."""
    table = b"mft1\0\0\0\0\4\3\2\0" + struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table += bytes(range(256)) * 4 + bytes(nodes) + bytes(range(256)) * 3
    text = b"desc\0\0\0\0\0\0\0\2x\0" + bytes(80)
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags = [(b"A2B0", table), (b"A2B1", table), (b"desc", text), (b"wtpt", white)]
    start, entries, bodies = 132 + 12 * len(tags), b"", b""
    for name, body in tags:
        body += bytes(-len(body) % 4)
        entries += struct.pack(">4sII", name, start + len(bodies), len(body))
        bodies += body
    head = struct.pack(">I4sI4s4s4s", 0, b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    head = head.ljust(128, b"\0") + struct.pack(">I", len(tags))
    profile = head + entries + bodies
    return struct.pack(">I", len(profile)) + profile[4:]


def test_cmyk_ycck_and_lab_are_refused_unless_asked_for():
    rgb = picture(16, 16, 3)
    files = [saved(rgb.convert("CMYK"), kind) for kind in ("JPEG", "TIFF", "JPEG2000")]
    files += [saved(rgb.convert("LAB"), "TIFF")]
    for data in files:
        assert code(data) == "unsupported_colour"
        with pytest.raises(ItemError, match=r"policy.colour"):
            read(data)
        image = read(data, colour="convert")
        assert image.pixels.shape == (16, 16, 3)
        assert "colour_converted" in image.warnings
        assert image.metadata.icc_profile == colour.srgb_profile()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_cmyk_without_a_profile_lets_light_through(dtype):
    full = int(np.iinfo(dtype).max)
    inks = noise(8, 9, 4, dtype=dtype)
    image = decode(tiff(inks, photometric="separated"), LIMITS, Policy(colour="convert"))
    light = (full - inks.astype(float)) / full
    assert np.abs(image.pixels - full * light[:, :, :3] * light[:, :, 3:]).max() <= 0.5 + 1e-6
    if dtype == np.uint8:
        naive = PIL.Image.fromarray(inks, "CMYK").convert("RGB")
        assert np.abs(image.pixels.astype(int) - np.asarray(naive)).max() <= 1


def test_cmyk_with_a_profile_is_what_the_profile_says():
    dark, light = (255, 128, 128), (0, 128, 128)
    inverted = [value for node in range(16) for value in (dark if node & 1 else light)]
    profile = cmyk_profile(inverted)  # the last ink, black, is light
    source = PIL.Image.new("CMYK", (8, 8), (0, 0, 0, 255))
    for kind in ("TIFF", "JPEG"):
        image = read(saved(source, kind, icc_profile=profile), colour="convert")
        assert image.pixels.min() > 245
        assert "icc_unusable" not in image.warnings
    for unfit, code in ((b"no profile", "icc_broken"), (camera.icc(), "icc_unusable")):
        plain = read(saved(source, "TIFF", icc_profile=unfit), colour="convert")
        assert plain.pixels.max() == 0
        assert code in plain.warnings


def test_inks_of_16_bits_become_colours_of_16():
    profile = cmyk_profile(np.random.default_rng(3).integers(60, 200, 48).tolist())
    ramp = np.linspace(0, 65_535, 4096).round().astype(np.uint16).reshape(64, 64)
    inks = np.stack([ramp, ramp // 2, ramp[::-1], ramp // 4], 2)
    stored = {"photometric": "separated", "iccprofile": profile}
    deep = read(tiff(inks, **stored), colour="convert", depth="reject")
    assert (deep.pixels.dtype, "depth_reduced" in deep.warnings) == (np.uint16, False)
    assert len(np.unique(deep.pixels)) > 2_000
    shallow = read(tiff(eight_bit(inks), **stored), colour="convert")
    assert np.abs(deep.pixels / 257 - shallow.pixels).max() < 2
    unfit = read(tiff(inks, photometric="separated", iccprofile=camera.icc()), colour="convert")
    assert (unfit.pixels.dtype, "icc_unusable" in unfit.warnings) == (np.uint16, True)


def test_premultiplied_inks_are_divided_before_they_become_colours():
    inks = noise(6, 5, 5)
    inks[:, :, 4] |= 128
    wanted = read(
        tiff(inks, photometric="separated", extrasamples=["unassalpha"]), colour="convert"
    )
    inks[:, :, :4] = np.rint(inks[:, :, :4] * (inks[:, :, 4:] / 255))
    image = read(tiff(inks, photometric="separated", extrasamples=["assocalpha"]), colour="convert")
    assert (image.facts.mode, image.facts.alpha) == ("CMYKa", "premultiplied")
    assert np.abs(image.pixels.astype(int) - wanted.pixels).max() <= 3


def test_inks_that_adobe_inverted_and_ycck_come_out_the_right_way():
    source = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    data = saved(source, "JPEG", quality=95)
    assert b"Adobe" in data, "Pillow writes inverted inks and says so"
    red = read(data, colour="convert").pixels
    assert red[..., 0].min() > 245
    assert red[..., 1:].max() < 10
    ycck = imagecodecs.jpeg8_encode(
        255 - np.asarray(source), colorspace="CMYK", outcolorspace="YCCK", level=95
    )
    image = read(ycck, colour="convert")
    assert image.facts.colour == "ycck"
    assert np.abs(image.pixels.astype(int) - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_lab_is_what_littlecms_makes_of_it(dtype):
    rgb = PIL.Image.fromarray(noise(32, 32, 3) // 2 + 64)
    srgb, lab = PIL.ImageCms.createProfile("sRGB"), PIL.ImageCms.createProfile("LAB")
    stored = np.asarray(PIL.ImageCms.profileToProfile(rgb, srgb, lab, outputMode="LAB"))
    signed = stored.copy()
    if dtype == np.uint16:
        signed = np.dstack([stored[..., :1] * np.uint16(257), stored[..., 1:] * np.uint16(256)])
    for from_zero in (False, True):
        samples = signed.copy()
        half = 1 << (8 * samples.itemsize - 1)
        if from_zero:
            samples[..., 1:] ^= half
        made = colour.lab_to_srgb(samples, from_zero=from_zero)
        off = np.abs(made / (257 if dtype == np.uint16 else 1) - np.asarray(rgb))
        assert np.percentile(off, 99) <= 4, "Lab in 8 bits is coarse"


def test_the_srgb_profile_has_no_date_of_today():
    profile = colour.srgb_profile()
    assert profile[24:36] == bytes.fromhex("07d000010001000000000000")
    opened = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
    assert "sRGB" in PIL.ImageCms.getProfileDescription(opened)


# --- Orientation and resolution ------------------------------------------------------------------

TRANSPOSED = {
    1: [],
    2: ["FLIP_LEFT_RIGHT"],
    3: ["ROTATE_180"],
    4: ["FLIP_TOP_BOTTOM"],
    5: ["TRANSPOSE"],
    6: ["ROTATE_270"],
    7: ["TRANSVERSE"],
    8: ["ROTATE_90"],
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_out_the_right_way_up_once(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stored = picture(6, 10, 3)
    wanted = stored
    for method in TRANSPOSED[orientation]:
        wanted = wanted.transpose(PIL.Image.Transpose[method])
    for kind in ("PNG", "WEBP", "TIFF", "JPEG"):
        options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
        data = saved(stored, kind, exif=exif, dpi=(100, 200), **options.get(kind, {}))
        image = read(data)
        assert image.facts.orientation == orientation
        assert (image.facts.width, image.facts.height) == (10, 6)
        off = np.abs(image.pixels.astype(int) - np.asarray(wanted)).max()
        assert off <= (8 if kind == "JPEG" else 0)
        if kind != "WEBP":
            across, down = image.metadata.dpi
            turned = orientation > 4
            assert (round(across), round(down)) == ((200, 100) if turned else (100, 200))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bits_are_turned_like_8(orientation):
    deep = noise(6, 10, dtype=np.uint16)
    wanted = levels.upright(deep[:, :, None], orientation)
    tagged = tiff(deep, extratags=[(274, 3, 1, orientation, True)])
    exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + struct.pack("<II", orientation, 0)
    for data in (tagged, png(deep, 0, 16, (b"eXIf", exif))):
        np.testing.assert_array_equal(read(data).pixels, wanted)


def a_tag(orientation, *more):
    """EXIF of this alone, without the offset of a next directory; more: the same tag again."""
    said = [struct.pack("<HHII", 274, 3, 1, one) for one in (orientation, *more)]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(said)) + b"".join(said)


@pytest.mark.parametrize(
    "blocks",
    [[a_tag(6)], [a_tag(6), a_tag(3)], [a_tag(6, 3)], [b"II*\0broken", a_tag(3)]],
    ids=["short", "two blocks", "two tags", "broken"],
)
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_a_picture_is_turned_as_the_exif_says_that_it_keeps(kind, blocks):
    stored = picture(6, 10, 3)
    file = saved(stored, kind, **({"lossless": True} if kind == "webp" else {}))
    if kind == "jpeg":
        made = b"".join(
            b"\xff\xe1" + struct.pack(">H", 8 + len(one)) + b"Exif\0\0" + one for one in blocks
        )
        file = file[:2] + made + file[2:]
    elif kind == "png":
        file = file[:33] + b"".join(chunk(b"eXIf", one) for one in blocks) + file[33:]
    else:
        flags = b"VP8X" + struct.pack("<IB3x", 10, 8) + bytes([9, 0, 0, 5, 0, 0])
        made = b"".join(
            b"EXIF" + struct.pack("<I", len(one)) + one + bytes(len(one) % 2) for one in blocks
        )
        body = b"WEBP" + flags + file[12:] + made
        file = b"RIFF" + struct.pack("<I", len(body)) + body
    image = read(file)
    kept = image.metadata.exif
    assert image.facts.orientation == (exif.orientation(kept) if kept else 1)
    assert image.facts.orientation == (1 if blocks[0].endswith(b"broken") else 6)


def test_what_is_between_the_segments_of_a_jpeg_hides_none_of_them():
    # Decoders pass it over, and so does the orientation.
    whole = camera.jpeg(WHOLE["jpeg"], exif=camera.exif(orientation=6), icc=camera.icc())
    image = read(whole[:2] + b"\xff\xfe\0\4ab" + b"left over" + whole[2:])
    assert image.facts.orientation == exif.orientation(image.metadata.exif) == 6
    assert image.metadata.icc_profile == camera.icc()


def test_what_is_behind_the_end_of_a_png_is_not_its_own():
    image = read(WHOLE["png"] + chunk(b"eXIf", a_tag(6)))
    assert image.facts.orientation == 1
    assert image.metadata.exif is None


def test_of_a_tag_that_comes_twice_the_first_counts():
    data = bytearray(WHOLE["tiff"])
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    table = data[at + 2 : at + 2 + 12 * count]
    twice = [struct.pack("<HHII", 257, 4, 1, height) for height in (48, 7)]
    tags = [table[place : place + 12] for place in range(0, len(table), 12)]
    tags = [tag for tag in tags if tag[:2] != b"\x01\x01"]
    data[4:8] = struct.pack("<I", len(data))
    data += (
        struct.pack("<H", count + 1) + b"".join(sorted([*tags, *twice], key=number_of)) + bytes(4)
    )
    assert read(bytes(data)).pixels.shape == (48, 48, 3)


def number_of(tag):
    return struct.unpack_from("<H", tag)


def turned_tiff(name, height, width, orientation):
    """Soft colours, packed in a way that libtiff decodes."""
    rows, columns = np.mgrid[:height, :width]
    stored = np.stack([4 * rows, 4 * columns, 2 * (rows + columns)], 2).astype(np.uint8)
    if name == "old JPEG":
        return old_jpeg(stored, orientation)
    ycbcr = PIL.Image.fromarray(stored).convert("YCbCr")
    return saved(ycbcr, "TIFF", compression="tiff_lzw", tiffinfo={274: orientation})


def old_jpeg(stored, orientation):
    """Compression 6: a JPEG file within the TIFF, to which tag 513 points."""
    height, width = stored.shape[:2]
    jpeg = saved(PIL.Image.fromarray(stored), "JPEG", quality=95, subsampling=0)
    tags = {256: width, 257: height, 258: 8, 259: 6, 262: 6, 274: orientation, 277: 3}
    tags |= {278: height, 279: len(jpeg), 513: 0, 514: len(jpeg), 273: 0}
    start = 8 + 2 + 12 * len(tags) + 4
    tags |= {513: start, 273: start}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + jpeg


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(24, 40), (32, 32)])
@pytest.mark.parametrize("name", ["YCbCr", "old JPEG"])
def test_what_libtiff_decodes_is_turned_once(name, size, orientation):
    """Pillow turns such a page on its own."""
    stored = read(turned_tiff(name, *size, 1)).pixels
    image = read(turned_tiff(name, *size, orientation))
    assert image.facts.orientation == orientation
    np.testing.assert_array_equal(image.pixels, levels.upright(stored, orientation))


def test_pixels_that_are_not_square_are_turned_with_the_picture():
    data = saved(PIL.Image.new("RGB", (8, 6)), "PNG", exif=a_tag(6))
    aspect = chunk(b"pHYs", struct.pack(">IIB", 2, 1, 0))
    image = read(data[:33] + aspect + data[33:])
    assert (image.pixels.shape[:2], image.metadata.aspect) == ((8, 6), 0.5)


def test_a_tiff_is_not_turned_by_its_xmp():
    soft = gradient.resize((40, 24)).convert("YCbCr")
    said = {700: b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'}
    bare, turned = (saved(soft, "TIFF", compression="tiff_lzw", tiffinfo=i) for i in ({}, said))
    np.testing.assert_array_equal(read(turned).pixels, read(bare).pixels)


def test_what_a_file_says_beside_its_samples_comes_with_them():
    said = {"exif": camera.exif(orientation=6), "xmp": camera.XMP, "iptc": camera.IPTC}
    bare = saved(picture(30, 40, 3), "JPEG")
    data = camera.jpeg(bare, **said, icc=camera.icc())
    image = read(data)
    assert image.warnings == ()
    found = image.metadata
    assert (found.exif, found.iptc, found.icc_profile) == (
        said["exif"],
        said["iptc"],
        camera.icc(),
    )
    assert b"Scanner 3" in found.xmp
    assert found.dpi == (200, 300), "across and down as the pixels are now"
    assert read(bare).warnings == ("icc_untagged",)
    with pytest.raises(ItemError, match=r"limits.max_metadata_bytes") as caught:
        decode(data, Limits(max_metadata_bytes=1000), Policy())
    assert caught.value.code == "metadata_too_large"


# --- Animations and further pictures in a file ---------------------------------------------------


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animations_are_refused_or_give_their_first_frame(format):
    first, *more = [PIL.Image.fromarray(noise(8, 9, 3) // n) for n in (1, 2, 3)]
    lossless = {"lossless": True} if format == "WEBP" else {}
    data = saved(first, format, save_all=True, append_images=more, **lossless)
    with pytest.raises(ItemError, match=r"3 frames .*policy.animation") as caught:
        read(data)
    assert caught.value.code == "unsupported_frames"
    image = read(data, animation="first_frame")
    assert "frames_dropped" in image.warnings
    with PIL.Image.open(io.BytesIO(data)) as opened:
        np.testing.assert_array_equal(image.pixels[..., :3], np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_animated_webp_that_ends_too_soon_is_a_failure(lossless, mode):
    """Its first frame may be whole. What is blank the decoder takes for samples."""
    first, *more = [gradient.rotate(20 * turn).convert(mode) for turn in range(4)]
    whole = saved(first, "WEBP", save_all=True, append_images=more, lossless=lossless)
    wanted = read(whole, animation="first_frame")
    assert wanted.facts.frames == 4
    for share in range(1, 20):
        cut = len(whole) * share // 20
        assert code(whole[:cut], animation="first_frame") == "decode_failed", share
        blank = whole[:cut] + bytes(len(whole) - cut)
        assert code(blank, animation="first_frame") == "decode_failed", share
    image = read(blank, animation="first_frame", truncated="accept")
    assert "truncated_accepted" in image.warnings
    np.testing.assert_array_equal(image.pixels, wanted.pixels)


def test_a_blank_end_of_the_first_frame_of_a_webp_is_a_failure():
    first, *more = [gradient.rotate(20 * turn) for turn in range(3)]
    whole = saved(first, "WEBP", save_all=True, append_images=more)
    second = whole.index(b"ANMF", whole.index(b"ANMF") + 1)
    file = whole[: second - 200] + bytes(200) + whole[second:]
    assert code(file, animation="first_frame") == "decode_failed"


def test_the_previews_of_a_camera_are_left_out():
    first, more = picture(16, 16, 3), picture(8, 8, 3)
    data = saved(first, "MPO", save_all=True, append_images=[more])
    image = read(data)
    assert (image.facts.format, image.facts.frames) == ("jpeg", 2)
    assert "frames_dropped" in image.warnings
    assert image.pixels.shape == (16, 16, 3)


# --- Broken and hostile files --------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
def test_files_that_end_too_soon_are_failures(name, capfd, caplog, recwarn):
    whole = WHOLE[name]
    assert read(whole).pixels.shape[:2] in ((48, 48), (40, 40))
    last = len(whole) - (3 if name == "bmp1" else 1)  # its lines are padded
    for cut in [*(len(whole) * share // 10 for share in range(10)), last]:
        assert code(whole[:cut]) in ("not_an_image", "decode_failed"), cut
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not recwarn.list


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_what_there_is_of_a_cut_file_is_taken_if_asked_for(name):
    whole = WHOLE[name]
    cut = len(whole) * 7 // 10
    wanted = read(whole).pixels
    if name in NOTHING_LEFT:
        assert code(whole[:cut], truncated="accept") == "decode_failed"
        return
    image = read(whole[:cut], truncated="accept")
    assert "truncated_accepted" in image.warnings
    assert image.pixels.shape == wanted.shape
    upper = slice(24, 40) if name.startswith("bmp") else slice(0, 12)
    if name in ("progressive", "tiff jpeg2000", "tiff planar"):
        assert np.abs(image.pixels[upper].astype(int) - wanted[upper]).mean() < 40
    else:
        np.testing.assert_array_equal(image.pixels[upper], wanted[upper])
    assert "truncated_accepted" not in read(whole, truncated="accept").warnings


# Samples as they are, without a checksum: what is blank is black. So does zstd store noise.
RAW = {"bmp", "bmp1", "pbm", "ppm", "tiff", "tiff planar", "tiff tiled"} | {"tiff zstd noise"}
STRIPS = {
    f"tiff {kind} {name}": tiff(samples, compression=kind, rowsperstrip=16)
    for kind in ("lzw", "jpeg2000", "webp", "packbits", "zstd", "lzma")
    for name, samples in (("soft", np.asarray(gradient)), ("noise", noise(64, 64, 3)))
}


@pytest.mark.parametrize("name", sorted({*WHOLE, *STRIPS} - RAW))
def test_files_whose_end_is_blank_are_failures(name):
    """Room was made for the file and not filled: few decoders mind."""
    whole = (WHOLE | STRIPS)[name]
    read(whole)
    for share in range(1, 10):
        cut = len(whole) * share // 10
        assert code(whole[:cut] + bytes(len(whole) - cut)) == "decode_failed", share


def with_a_gap(file, part):
    """The file without a fifth of its part, which is coded samples; as long as before."""
    at, size = file.index(part), len(part)
    less = part[: size // 2] + part[size // 2 + size // 5 : -2]
    return file[:at] + less + b"\xff\xd9" + bytes(size - len(less) - 2) + file[at + size :]


@pytest.mark.parametrize("kind", ["plain", "progressive", "restarts", "cmyk", "tiff"])
def test_a_jpeg_with_a_gap_is_a_failure(kind):
    """Its end is marked, and the decoder went on in gray."""
    options = {"progressive": {"progressive": True}, "restarts": {"restart_marker_rows": 2}}
    soft = gradient.resize((200, 150)).convert("CMYK" if kind == "cmyk" else "RGB")
    if kind == "tiff":
        whole = tiff(np.asarray(soft), photometric="ycbcr", compression="jpeg", tile=(160, 208))
        with tifffile.TiffFile(io.BytesIO(whole)) as opened:
            page = opened.pages[0]
            start, size = page.dataoffsets[0], page.databytecounts[0]
        part = whole[start : start + size]
    else:
        whole = saved(soft, "JPEG", quality=90, **options.get(kind, {}))
        part = whole[whole.rindex(b"\xff\xda") if kind == "plain" else len(whole) // 3 :]
    assert read(whole, colour="convert").pixels.shape == (150, 200, 3)
    file = with_a_gap(whole, part)
    assert code(file, colour="convert") == "decode_failed"
    image = read(file, colour="convert", truncated="accept")
    assert "truncated_accepted" in image.warnings


def deep_jpeg(lossless, channels, depth=12):
    soft = np.asarray(gradient.resize((200, 150)), np.uint16)
    stored = (soft << 4) | (soft >> 4) if depth == 12 else soft.astype(np.uint8)
    stored = stored if channels == 3 else np.ascontiguousarray(stored[:, :, 0])
    return imagecodecs.jpeg8_encode(stored, bitspersample=depth, level=95, lossless=lossless)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("lossless", "depth"), [(False, 12), (True, 12), (True, 8)])
def test_a_gap_is_seen_in_what_the_strict_decoder_does_not_read(lossless, depth, channels):
    """12 bits and lossless JPEG, of which no decoder here says anything."""
    whole = deep_jpeg(lossless, channels, depth)
    assert read(whole).warnings == ("icc_untagged",)
    for share in (2, 3, 4):
        file = with_a_gap(whole, whole[len(whole) // share :])
        assert code(file) == "decode_failed"
    cut = whole[: len(whole) // 2] + b"\0\xff\xd9"
    assert "truncated_accepted" in read(cut, truncated="accept").warnings


def with_an_odd_version(file):
    """A JFIF that libjpeg does not know, of which it warns before it warns of anything else."""
    at = file.index(b"JFIF\0") + 5
    return file[:at] + b"\7" + file[at + 1 :]


@pytest.mark.parametrize("kind", [{}, {"progressive": True}, {"restart_marker_rows": 2}])
def test_a_gap_is_seen_behind_another_warning(kind):
    whole = with_an_odd_version(saved(gradient.resize((200, 150)), "JPEG", quality=90, **kind))
    assert read(whole).warnings == ("icc_untagged",)
    assert code(with_a_gap(whole, whole[len(whole) // 3 :])) == "decode_failed"


def test_bytes_left_over_at_the_end_of_a_jpeg_are_no_gap():
    """Cameras write them. They may be of damage, too."""
    whole = WHOLE["jpeg"]
    image = read(whole[:-2] + bytes(40) + whole[-2:])
    np.testing.assert_array_equal(image.pixels, read(whole).pixels)
    assert "jpeg_bytes_left_over" in image.warnings
    assert "jpeg_bytes_left_over" not in read(whole).warnings
    image = read(whole[:20] + bytes(5) + whole[20:])
    np.testing.assert_array_equal(image.pixels, read(whole).pixels)
    assert "jpeg_bytes_left_over" in image.warnings


@pytest.mark.parametrize("kind", [{"progressive": True}, {"restart_marker_rows": 2}])
def test_bytes_left_over_before_the_end_of_a_jpeg_are_damage(kind):
    whole = saved(gradient.resize((200, 150)), "JPEG", quality=90, **kind)
    at = len(whole) // 3
    assert code(whole[:at] + noise(64).tobytes().replace(b"\xff", b"") + whole[at:]) == (
        "decode_failed"
    )


def test_an_old_jpeg_in_a_tiff_that_has_a_gap_or_ends_too_soon_is_a_failure():
    whole = old_jpeg(np.asarray(gradient.resize((200, 150))), 1)
    wanted = read(whole).pixels
    at = whole.index(b"\xff\xd8")
    broken = [whole[:at] + with_a_gap(whole[at:], whole[whole.rindex(b"\xff\xda") :])]
    for share in range(2, 10):
        cut = len(whole) * share // 10
        broken += [whole[:cut], whole[:cut] + bytes(len(whole) - cut)]
    for file in broken:
        assert code(file) == "decode_failed"
    image = read(broken[-1], truncated="accept")
    assert "truncated_accepted" in image.warnings
    np.testing.assert_array_equal(image.pixels[:60], wanted[:60])


def test_what_is_blank_is_taken_if_asked_for():
    for name in ("webp", "jp2", "tiff webp soft"):
        whole = (WHOLE | STRIPS)[name]
        cut = len(whole) * 8 // 10
        image = read(whole[:cut] + bytes(len(whole) - cut), truncated="accept")
        assert "truncated_accepted" in image.warnings


@pytest.mark.parametrize(("quality", "method"), [(0, 4), (80, 4), (100, 0)])
def test_zeros_that_a_flat_picture_is_coded_in_are_not_blank(method, quality):
    flat = np.zeros((600, 500, 3), np.uint8)
    data = saved(PIL.Image.fromarray(flat), "WEBP", quality=quality, method=method)
    assert data.endswith(bytes(20))
    np.testing.assert_array_equal(read(data).pixels, flat)
    flat[300:] = noise(300, 500, 3)
    assert read(saved(PIL.Image.fromarray(flat), "WEBP", quality=quality, method=method))


def test_strips_of_lzw_may_have_room_behind_their_end_mark_or_none():
    strip = imagecodecs.lzw_encode(bytes(1000))
    for stored in (strip, strip + bytes(100), strip[:-1]):
        file = bytearray(tiff(np.zeros((20, 50), np.uint8), compression="lzw", rowsperstrip=20))
        with tifffile.TiffFile(io.BytesIO(bytes(file))) as opened:
            tags = opened.pages[0].tags
            places = {tags[273].valueoffset: len(file), tags[279].valueoffset: len(stored)}
        for place, value in places.items():
            struct.pack_into("<I", file, place, value)
        assert not read(bytes(file) + stored).pixels.any()


# The directory stands at the end, or the decoder gives nothing for a part.
NOTHING_LEFT = {"webp", "webp alpha", "webp lossless", "jp2", "j2k"} | {
    f"tiff {packing}" for packing in ("lzw", "g4", "packbits")
}


@exact
@given(st.data())
def test_no_mutation_raises_anything_but_an_item_error(data):
    file = bytearray(WHOLE[data.draw(st.sampled_from(sorted(WHOLE)))])
    for _ in range(data.draw(st.integers(1, 6))):
        file[data.draw(st.integers(0, min(len(file) - 1, 400)))] = data.draw(st.integers(0, 255))
    everything = Policy(colour="convert", animation="first_frame", truncated="accept")
    with contextlib.suppress(ItemError):
        decode(bytes(file), LIMITS, everything)


@exact
@given(st.data())
def test_the_header_is_read_without_anything_but_an_item_error(data):
    start = WHOLE[data.draw(st.sampled_from(sorted(WHOLE)))][: data.draw(st.integers(0, 64))]
    with contextlib.suppress(ItemError):
        probe(start + data.draw(st.binary(max_size=200)), LIMITS, Policy())


def test_other_files_say_what_they_are():
    assert code(b"") == code(b"<html>404</html>") == "not_an_image"
    with pytest.raises(ItemError, match="<html>"):
        read(b"<html>404</html>")
    avif = saved(picture(8, 8, 3), "AVIF")
    others = [avif, saved(picture(8, 8, 3), "ICO"), b"8BPS" + bytes(30), b"%PDF-1.4", b"P7\n"]
    assert {code(data) for data in others} == {"unsupported_format"}
    with pytest.raises(ItemError, match="AVIF is not read, PNG"):
        read(avif)


BOMBS = {
    "png": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(bytes(10**6))),
    "webp": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff",
    "gif": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;",
    "gif's frame": b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;",
    "pnm": b"P5 50000 50000 255\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_their_header(name):
    with pytest.raises(ItemError, match=r"pixels, limit 1,000,000 \(limits.max_input_pixels\)"):
        read(BOMBS[name])


def test_what_metadata_inflate_to_is_known_before_they_are_decoded():
    profile = camera.icc() + bytes(10**6)
    profile = struct.pack(">I", len(profile)) + profile[4:]
    data = saved(PIL.Image.new("RGB", (8, 8)), "PNG", icc_profile=profile)
    assert len(data) < len(profile) / 50
    assert probe(data, LIMITS, Policy()).metadata_bytes == len(profile)


def test_metadata_of_pages_are_counted_no_further_than_they_are_read():
    page = {"photometric": "rgb", "iccprofile": camera.icc()}
    data = pages(noise(8, 8, 3), noise(8, 8, 3), noise(8, 8, 3), **page)
    found = [one.metadata_bytes for one in probe_pages(data, LIMITS, Policy())]
    assert len({*found}) == 1
    assert found[0] >= len(camera.icc())
    few = Limits(max_metadata_bytes=found[0] + 1)
    assert [one.metadata_bytes for one in probe_pages(data, few, Policy())] == [*found[:2], 0]


def test_pages_are_each_checked_for_their_size():
    data = pages(noise(8, 8), noise(50, 50))
    limits = Limits(max_input_pixels=100)
    assert read(data, limits=limits).pixels.shape == (8, 8, 1)
    with pytest.raises(ItemError, match=r"50 x 50 = 2,500 pixels, limit 100 "):
        read(data, 1, limits=limits)


# --- Samples of others ---------------------------------------------------------------------------


@needs_samples
def test_photographs_in_all_orientations():
    limits = Limits()
    upright = [read(file.read_bytes(), limits=limits) for file in sorted(TRICKY.rglob("P*_?.jpg"))]
    assert {image.pixels.shape for image in upright} == {(1800, 1200, 3)}
    assert [image.facts.orientation for image in upright] == list(range(1, 9))
    first = upright[0].pixels.astype(int)
    far = [np.abs(image.pixels.astype(int) - first).mean() for image in upright]
    assert max(far) < 3  # a printed number differs


@needs_samples
def test_pngsuite(capfd):
    found = {}
    for file in sorted((TRICKY / "pngsuite").glob("*.png")):
        try:
            image = read(file.read_bytes())
        except ItemError as error:
            found[file.stem] = error.code
            continue
        found[file.stem] = (image.pixels.shape[2], image.facts.bit_depth)
        oracle = imagecodecs.png_decode(file.read_bytes()).reshape(*image.pixels.shape[:2], -1)
        np.testing.assert_array_equal(image.pixels, oracle[:, :, : image.pixels.shape[2]])
    deep = {
        "basi2c16": 3,
        "basi4a16": 2,
        "basn0g16": 1,
        "basn2c16": 3,
        "basn6a16": 4,
        "tbwn0g16": 2,
    }
    assert {name: found.pop(name) for name in deep} == {name: (n, 16) for name, n in deep.items()}
    assert found.pop("xs1n0g01") == "not_an_image"
    assert {found.pop(name) for name in ("xhdn0g08", "xdtn0g01", "xcsn0g01")} == {"decode_failed"}
    assert found.pop("basn0g01") == (1, 1)
    assert found.pop("basn4a08") == (2, 8)
    transparent = ("tbbn3p08", "tm3n3p02", "tbrn2c08", "basi6a08")
    assert {found.pop(name)[0] for name in transparent} == {4}
    assert {channels for channels, _ in found.values()} == {3}
