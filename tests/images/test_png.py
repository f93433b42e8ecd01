"""The PNG writer, read back by Pillow, libpng and a strict reader that knows nothing of it."""

import io
import struct
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import get_args

import imagecodecs
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.config import PngEffort
from pipeline.images.png import EFFORTS, encode

CHANNELS = {0: 1, 4: 2, 2: 3, 6: 4}  # by colour type
NONE, SUB, UP, AVERAGE, PAETH = range(5)
exact = settings(deadline=None, derandomize=True, max_examples=60)
efforts = pytest.mark.parametrize("effort", EFFORTS)
depths = pytest.mark.parametrize("depth", [np.uint8, np.uint16])

pictures = st.tuples(st.sampled_from([np.uint8, np.uint16]), st.integers(1, 4)).flatmap(
    lambda kind: hnp.arrays(
        kind[0], st.tuples(st.integers(1, 40), st.integers(1, 20), st.just(kind[1]))
    )
)


@dataclass
class Contents:
    pixels: np.ndarray
    filters: set
    chunks: list


def chunks(file):
    """(kind, data) of each, to the last byte of the file."""
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    place = 8
    while place < len(file):
        (size,) = struct.unpack_from(">I", file, place)
        kind, data = file[place + 4 : place + 8], file[place + 8 : place + 8 + size]
        assert len(data) == size
        assert struct.unpack_from(">I", file, place + 8 + size) == (zlib.crc32(kind + data),)
        yield kind, data
        place += 12 + size
    assert place == len(file)


def inflated(parts):
    stream = zlib.decompressobj()
    data = stream.decompress(b"".join(parts))
    assert stream.eof
    assert stream.unused_data == b""
    return data


def unfiltered(kind, row, above, step):
    """One row's bytes, byte for byte as the specification has it."""
    row = bytearray(row)
    for i, value in enumerate(row):
        a = row[i - step] if i >= step else 0
        b = above[i]
        c = above[i - step] if i >= step else 0
        nearest = min((a, b, c), key=lambda neighbour: abs(a + b - c - neighbour))
        row[i] = (value + (0, a, b, (a + b) // 2, nearest)[kind]) & 255
    return row


def read(file):
    """Everything that the file holds; fails where it is not strictly a PNG of this writer's."""
    found = list(chunks(file))
    kinds = [kind for kind, _ in found]
    idat = kinds.count(b"IDAT")
    assert kinds == [b"IHDR", *[b"IDAT"] * idat, b"IEND"]
    assert all(0 < len(data) <= 2**20 for kind, data in found if kind == b"IDAT")
    assert found[-1] == (b"IEND", b"")
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", found[0][1])
    assert rest == [0, 0, 0]
    channels = CHANNELS[colour]
    step = channels * depth // 8
    data = inflated(data for kind, data in found if kind == b"IDAT")
    lines = np.frombuffer(data, np.uint8).reshape(height, 1 + width * step)
    rows, above = [], bytes(width * step)
    for kind, *line in lines.tolist():
        above = unfiltered(kind, line, above, step)
        rows.append(bytes(above))
    pixels = np.frombuffer(b"".join(rows), {8: ">u1", 16: ">u2"}[depth])
    return Contents(pixels.reshape(height, width, channels), set(lines[:, 0].tolist()), found)


def opened(file):
    """As Pillow reads it; its CRC checks are on."""
    picture = PIL.Image.open(io.BytesIO(file))
    samples = np.asarray(picture)
    return samples.reshape(picture.height, picture.width, -1)


def noise(*shape, depth=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(depth).max, shape, depth, endpoint=True)


def photograph(height, width):
    """Soft shapes under a little noise."""
    y, x = np.mgrid[:height, :width]
    soft = 128 + 60 * np.sin(x / 17) * np.cos(y / 23) + 40 * np.sin((x + 2 * y) / 61)
    grain = np.random.default_rng(0).normal(0, 1.5, (height, width, 3))
    return np.rint(soft[..., None] + [0, 10, -10] + grain).astype(np.uint8)


def text(height, width):
    """Black strokes on white, the same few again and again."""
    letters = np.random.default_rng(0).integers(0, 2, (8, 12, 8, 1), np.uint8)
    chosen = np.random.default_rng(1).integers(0, 8, (height // 12, width // 8))
    lines = np.concatenate(np.concatenate(letters[chosen], axis=1), axis=1)
    return 255 * lines.repeat(3, axis=2)


@exact
@given(pictures, st.sampled_from(sorted(EFFORTS)))
def test_every_sample_comes_back(pixels, effort):
    file = encode(pixels, EFFORTS[effort])
    np.testing.assert_array_equal(read(file).pixels, pixels)
    by_libpng = imagecodecs.png_decode(file)
    assert by_libpng.dtype == pixels.dtype
    np.testing.assert_array_equal(by_libpng.reshape(pixels.shape), pixels)
    if pixels.dtype == np.uint8 or pixels.shape[2] == 1:  # Pillow has no deep colours
        np.testing.assert_array_equal(opened(file), pixels)


@pytest.mark.parametrize("kind", [NONE, SUB, UP, AVERAGE, PAETH])
@depths
def test_each_filter_is_what_the_specification_says(kind, depth):
    only = replace(EFFORTS["balanced"], filters=(kind,))
    for channels in (1, 2, 3, 4):
        for shape in ((1, 1), (1, 9), (9, 1), (13, 11)):
            pixels = noise(*shape, channels, depth=depth)
            contents = read(encode(pixels, only))
            np.testing.assert_array_equal(contents.pixels, pixels)
            assert contents.filters == {kind}


@efforts
@pytest.mark.parametrize("height", [1, 511, 512, 513, 1024, 1025])
def test_the_edges_of_bands_leave_no_trace(effort, height):
    """1,024 bytes a row make bands of 512 rows."""
    pixels = np.cumsum(noise(height, 1024, 1) & 3, axis=0, dtype=np.uint8)
    np.testing.assert_array_equal(opened(encode(pixels, EFFORTS[effort])), pixels)


@pytest.mark.parametrize("value", [0, 255])
def test_flat_pictures_are_next_to_nothing(value):
    pixels = np.full((1001, 999, 4), value, np.uint8)
    file = encode(pixels, EFFORTS["fast"])
    np.testing.assert_array_equal(opened(file), pixels)
    assert len(file) < pixels.nbytes / 200


def test_wide_rows_are_split_into_chunks_of_bounded_size():
    pixels = noise(70, 30_000, 3)
    file = encode(pixels, EFFORTS["fast"])
    np.testing.assert_array_equal(opened(file), pixels)
    sizes = [len(data) for kind, data in chunks(file) if kind == b"IDAT"]
    assert max(sizes) == 2**20
    assert len(file) < 1.001 * pixels.nbytes


@depths
def test_the_layout_in_memory_changes_nothing(depth):
    whole = noise(60, 40, 4, depth=depth)
    views = (
        whole[::-1],
        whole[:, ::-1],
        whole.transpose(1, 0, 2),
        whole[5:50:3, 3:30:2, :3],
        whole[..., ::-1],
        np.asfortranarray(whole),
        whole.astype(whole.dtype.newbyteorder(">")),
    )
    for view in views:
        packed = np.ascontiguousarray(view, dtype=depth)
        assert encode(view, EFFORTS["fast"]) == encode(packed, EFFORTS["fast"])
        np.testing.assert_array_equal(read(encode(view, EFFORTS["fast"])).pixels, packed)


def test_each_band_is_filtered_as_suits_it():
    """1,536 bytes a row make bands of 341 rows: one photograph, one text."""
    pixels = np.concatenate([photograph(341, 512), text(348, 512)])
    contents = read(encode(pixels, EFFORTS["fast"]))
    np.testing.assert_array_equal(contents.pixels, pixels)
    assert contents.filters == {AVERAGE, NONE}


@pytest.mark.parametrize("draw", [photograph, text])
def test_more_effort_makes_smaller_files(draw):
    pixels = draw(360, 512)
    fast, balanced, most = (len(encode(pixels, EFFORTS[name])) for name in get_args(PngEffort))
    assert most <= balanced < fast
    by_pillow = io.BytesIO()
    PIL.Image.fromarray(pixels).save(by_pillow, "PNG", compress_level=9)
    assert most < by_pillow.tell()


def test_every_effort_that_may_be_asked_for_exists():
    assert set(get_args(PngEffort)) == set(EFFORTS)


def test_threads_write_the_same_bytes():
    many = [photograph(200, 300 + 10 * number) for number in range(8)]
    alone = [encode(pixels, EFFORTS["fast"]) for pixels in many]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda pixels: encode(pixels, EFFORTS["fast"]), many * 3)
    assert list(together) == alone * 3


def test_memory_holds_one_copy_of_the_file_and_a_few_bands():
    pixels = noise(2000, 3000, 3)
    tracemalloc.start()
    try:
        file = encode(pixels, EFFORTS["fast"])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1.125 * len(file) + 12 * 2**19
