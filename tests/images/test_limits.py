"""What a format cannot hold is refused by numbers alone, and the message says what to do."""

import platform
import subprocess
import sys
from dataclasses import replace

import pytest

from pipeline.errors import ItemError
from pipeline.images.encode import CONTENT_TYPES
from pipeline.images.image import Facts
from pipeline.images.limits import (
    check_kind,
    check_pages,
    check_size,
    decoder_bytes,
    encoder_bytes,
    held_bytes,
)


def test_sizes_over_a_limit_name_both_numbers_and_the_knob():
    with pytest.raises(ItemError, match=r"65501 x 1 .*jpeg holds 65,500 a side"):
        check_size("jpeg", 65_501, 1, max_pixels=10**9)
    with pytest.raises(ItemError, match=r"webp holds 16,383 a side \(format"):
        check_size("webp", 1, 16_384, max_pixels=10**9)
    with pytest.raises(ItemError, match=r"limit 99 \(limits.max_output_pixels"):
        check_size("png", 10, 10, max_pixels=99)
    check_size("png", 70_000, 10, max_pixels=10**9)
    check_size("jpeg", 65_500, 1, max_pixels=10**9)
    check_size("webp", 16_383, 16_383, max_pixels=10**9)


@pytest.mark.parametrize("format", CONTENT_TYPES)
def test_only_a_tiff_has_pages(format):
    check_kind(format, pages=1, bit_depth=8, depth_policy="reject")
    if format == "tiff":
        check_kind(format, pages=1000, bit_depth=16, depth_policy="reject")
        return
    with pytest.raises(ItemError, match=rf"3 pages, {format} holds 1 \(format: tiff\)") as caught:
        check_kind(format, pages=3, bit_depth=8, depth_policy="reduce")
    assert (caught.value.code, caught.value.stage) == ("output_pages", "encode")


@pytest.mark.parametrize("format", CONTENT_TYPES)
def test_16_bits_are_refused_where_8_are_held_and_that_is_asked_for(format):
    check_kind(format, pages=1, bit_depth=16, depth_policy="reduce")
    if format in ("png", "tiff"):
        check_kind(format, pages=1, bit_depth=16, depth_policy="reject")
        return
    with pytest.raises(ItemError, match=rf"16 bits a sample, {format} holds 8 .*policy.depth"):
        check_kind(format, pages=1, bit_depth=16, depth_policy="reject")


def test_pages_count_together():
    check_pages([(10, 10), (20, 5)], max_pixels=200)
    with pytest.raises(ItemError, match=r"2 pages of 200 pixels together, limit 199 \(limits.max_"):
        check_pages([(10, 10), (20, 5)], max_pixels=199)


def test_one_source_at_a_time_and_all_results_are_counted():
    small, large = (Facts("tiff", "", 8, 2, side, side, 3) for side in (10, 20))
    deep = replace(large, bit_depth=16)
    sizes = [(40, 40), (80, 80)]
    fixed = encoder_bytes("tiff", 1, 1, channels=3, lossless=False)
    source = 3 * 20**2 + decoder_bytes(large)
    both = held_bytes(1000, [small, large], sizes, "tiff", lossless=False)
    assert both == 2 * 1000 + source + 2 * 3 * (40**2 + 80**2) + fixed
    one = held_bytes(1000, [large], sizes[1:], "png", lossless=False)
    assert one == 2 * 1000 + source + 3 * 3 * 80**2 + fixed
    more = held_bytes(1000, [deep], sizes[1:], "png", lossless=False) - one
    assert more == 3 * 20**2 + decoder_bytes(deep) - decoder_bytes(large) + 3 * 3 * 80**2
    webp = [held_bytes(0, [large], sizes[1:], "webp", lossless=way) for way in (False, True)]
    assert webp[1] - webp[0] == (44 - 16) * 80**2


def test_metadata_of_all_pages_are_counted():
    """A profile of 60 KB inflates to 64 MB, of which there are copies."""
    page = Facts("tiff", "", 8, 2, 10, 10, 3)
    sizes = [(40, 40)] * 2
    bare = held_bytes(1000, [page] * 2, sizes, "tiff", lossless=False)
    said = [replace(page, metadata_bytes=count) for count in (2**26, 2**20)]
    assert held_bytes(1000, said, sizes, "tiff", lossless=False) - bare == 10 * (2**26 + 2**20)


def test_the_plan_needs_no_codec_for_it():
    code = (
        "import sys, pipeline.images.limits;"
        "sys.exit(bool({'PIL', 'tifffile', 'numpy', 'isal'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


PEAKS = """
import sys
from dataclasses import replace
import numpy as np
from pipeline.config import Encode, Policy
from pipeline.images.encode import encode
from pipeline.images.page import Page

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

for format, side, channels, depth, lossless in [
    ("png", 1500, 3, 16, False), ("tiff", 1500, 4, 16, False), ("jpeg", 2000, 4, 16, False),
    ("webp", 1200, 3, 16, False), ("webp", 800, 4, 8, False), ("webp", 800, 3, 8, True),
]:
    waves = np.sin(np.arange(side) / 17)[:, None] * np.cos(np.arange(side) / 23)
    grain = np.random.default_rng(0).normal(0, 0.01, (side, side))
    levels = (0.5 + 0.4 * waves + grain).clip(0, 1) * (2**depth - 1)
    samples = np.repeat(levels.astype(f"u{depth // 8}")[..., None], channels, axis=2)
    settings = Encode(webp_lossless=lossless)
    encode([Page(samples[:9, :9].copy())], format, settings, Policy())
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS:")
    file, _ = encode([Page(samples)], format, settings, Policy())
    taken = status("VmHWM:") - before - len(file) * (1 if format == "tiff" else 2)
    print(format, side, channels, int(lossless), taken)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_encoders_take_no_more_memory_than_they_say():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PEAKS], capture_output=True)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.decode().splitlines():
        kind, *numbers = line.split()
        side, channels, lossless, taken = map(int, numbers)
        said = encoder_bytes(kind, side, side, channels=channels, lossless=bool(lossless))
        assert taken <= said, line


DECODERS = """
import ctypes
import gc
import io
import imagecodecs
import numpy as np
import PIL.Image
import tifffile
from pipeline.config import Limits, Policy
from pipeline.images.decode import decode
from pipeline.images.limits import decoder_bytes

SIDE = 1000
POLICY = Policy(colour="convert")

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def picture(channels, kind="u1", side=SIDE):
    waves = np.sin(np.arange(side) / 17)[:, None] * np.cos(np.arange(side) / 23)
    grain = np.random.default_rng(0).normal(0, 0.01, (side, side, channels))
    levels = (0.5 + 0.4 * waves[..., None] + grain).clip(0, 1) * np.iinfo(kind).max
    return levels.astype(kind).squeeze()

def saved(kind, channels, side, mode=None, **said):
    file = io.BytesIO()
    opened = PIL.Image.fromarray(picture(channels, side=side), mode)
    (opened.quantize(99) if mode == "RGB" else opened).save(file, kind, **said)
    return file.getvalue()

def tiff(channels, kind, side, planes=False, **said):
    file = io.BytesIO()
    pixels = picture(channels, kind, side)
    if planes:
        pixels, said["planarconfig"] = np.moveaxis(pixels, 2, 0), "separate"
    tifffile.imwrite(file, pixels, **said)
    return file.getvalue()

turned = PIL.Image.Exif()
turned[274] = 6
rgb, premultiplied = {"photometric": "rgb"}, {"photometric": "rgb", "extrasamples": ["assocalpha"]}
premultiplied["extratags"] = [(274, 3, 1, 6, True)]
one_strip = {"compression": "lzw", "rowsperstrip": SIDE}
for make in (
    lambda side: imagecodecs.png_encode(picture(3, "u1", side)),
    lambda side: imagecodecs.png_encode(picture(4, "u2", side)),
    lambda side: saved("PNG", 3, side, exif=turned),
    lambda side: saved("PNG", 3, side, "RGB", transparency=1),
    lambda side: saved("JPEG", 3, side, exif=turned),
    lambda side: saved("JPEG", 1, side),
    lambda side: saved("JPEG", 4, side, "CMYK"),
    lambda side: saved("WEBP", 3, side),
    lambda side: saved("WEBP", 4, side, lossless=True),
    lambda side: saved("BMP", 3, side),
    lambda side: saved("BMP", 4, side),
    lambda side: saved("GIF", 3, side, "RGB"),
    lambda side: saved("JPEG2000", 1, side),
    lambda side: imagecodecs.jpeg2k_encode(picture(4, "u1", side), level=0),
    lambda side: imagecodecs.jpeg2k_encode(picture(3, "u2", side), level=0),
    lambda side: tiff(4, "u1", side, **premultiplied),
    lambda side: tiff(4, "u2", side, **premultiplied),
    lambda side: tiff(3, "u1", side, **rgb, **one_strip),
    lambda side: tiff(4, "u1", side, photometric="separated", **one_strip),
    lambda side: tiff(4, "u2", side, photometric="separated"),
    lambda side: tiff(3, "u2", side, photometric="cielab"),
    lambda side: tiff(16, "u1", side, photometric="minisblack", planarconfig="contig"),
    lambda side: tiff(16, "u2", side, **rgb, **one_strip),
    lambda side: tiff(16, "u2", side, planes=True, **rgb),
    lambda side: tiff(9, "u1", side, **rgb, extrasamples=["unspecified"] * 5 + ["assocalpha"]),
    lambda side: b"P2 %d %d 9 " % (side, side) + b"7 " * side**2,
    lambda side: b"P6 %d %d 200 " % (side, side) + bytes(3 * side**2),
):
    decode(make(40), Limits(), POLICY)
    data = make(SIDE)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before would be taken again, unseen
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS:")
    facts = decode(data, Limits(), POLICY).facts
    print(status("VmHWM:") - before, decoder_bytes(facts), facts)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="measured by what glibc gives back")
def test_decoders_take_no_more_memory_than_they_say():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", DECODERS], capture_output=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 27
    for line in lines:
        taken, said, _ = line.split(maxsplit=2)
        assert int(said) / 20 < int(taken) <= int(said), line
