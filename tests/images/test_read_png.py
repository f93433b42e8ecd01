"""PNG in bands: filters go on from band to band, and memory holds little but the result."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from pipeline.config import Limits, Policy
from pipeline.errors import DecodeError
from pipeline.images import read_png
from pipeline.images.decode import decode
from pipeline.images.walk import PNG_SIGNATURE

STEP = 2**23  # what a band may take on its way
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def png(kind, depth, rows, *chunks, piece=2**16, spoil=0):
    """rows: (height, bytes) of samples. Each line is filtered by the one after its neighbour's."""
    bpp = max(1, CHANNELS[kind] * depth // 8)
    left = np.pad(rows, ((0, 0), (bpp, 0)))[:, :-bpp].astype(np.int16)
    up = np.pad(rows, ((1, 0), (0, 0)))[:-1].astype(np.int16)
    corner = np.pad(left.astype(np.uint8), ((1, 0), (0, 0)))[:-1].astype(np.int16)
    near = [np.abs(left + up - corner - one) for one in (left, up, corner)]
    paeth = np.where(near[1] <= near[2], up, corner)
    paeth = np.where((near[0] <= near[1]) & (near[0] <= near[2]), left, paeth)
    guesses = (np.zeros_like(left), left, up, (left + up) // 2, paeth)
    kinds = np.arange(len(rows)) % 5
    guess = np.choose(kinds[:, None], guesses)
    lines = np.hstack([kinds[:, None], rows - guess & 255]).astype(np.uint8)
    packed = zlib.compress(lines.tobytes(), 1)
    packed = packed[:-1] + bytes([packed[-1] ^ spoil])  # the last byte of its checksum
    width = rows.shape[1] * 8 // (CHANNELS[kind] * depth)
    ihdr = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    data = [(b"IDAT", packed[at : at + piece]) for at in range(0, len(packed), piece)]
    parts = [(b"IHDR", ihdr), *chunks, *data, (b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


def noise(height, row_bytes):
    return np.random.default_rng(0).integers(0, 256, (height, row_bytes), dtype=np.uint8)


@pytest.mark.parametrize(
    ("kind", "depth"),
    [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (4, 8), (4, 16), (6, 8), (6, 16)],
)
def test_filters_go_on_over_the_bands(kind, depth):
    rows = noise(2600, 1200)  # three bands
    found, truncated = read_png.samples(png(kind, depth, rows), accept_truncated=False)
    assert not truncated
    if depth < 8:
        bits = np.unpackbits(rows, axis=1).reshape(-1, depth)
        weights = 2 ** np.arange(depth - 1, -1, -1)
        wanted = bits @ weights * 255 // (2**depth - 1)
    else:
        wanted = rows.view(f">u{depth // 8}")
    assert np.array_equal(found, wanted.reshape(found.shape))
    assert found.shape[2] == CHANNELS[kind]


@pytest.mark.parametrize("kind", ["rgb", "deep", "palette", "keyed", "shallow"])
def test_little_is_taken_beside_the_result(kind):
    palette = (b"PLTE", bytes(range(256)) * 3), (b"tRNS", b"\0")
    data = {
        "rgb": lambda: png(2, 8, noise(2000, 3000)),
        "deep": lambda: png(6, 16, noise(1000, 8000)),
        "palette": lambda: png(3, 8, noise(2000, 2000), *palette),
        "keyed": lambda: png(2, 8, noise(2000, 3000), (b"tRNS", bytes(6))),
        "shallow": lambda: png(0, 1, noise(4000, 250)),
    }[kind]()
    tracemalloc.start()
    try:
        found, _ = read_png.samples(data, accept_truncated=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < found.nbytes + STEP


@pytest.mark.parametrize("piece", [3, 2**16])
def test_the_checksum_is_compared_whatever_chunk_it_is_in(piece):
    rows = noise(20, 30)
    assert pixels_of(png(0, 8, rows, piece=piece)).shape == (20, 30, 1)
    with pytest.raises(DecodeError, match="IsalError"):
        pixels_of(png(0, 8, rows, piece=piece, spoil=1))


def pixels_of(data):
    return decode(data, Limits(), Policy()).pixels
