"""Netpbm's pictures in words take little memory beside their samples, however they are laid out."""

import tracemalloc

import numpy as np
import pytest

from pipeline.images import pnm

STEP = 2**24  # what some words take as objects


def words(levels, between):
    return between.join(b"%d" % level for level in levels.ravel().tolist())


@pytest.mark.parametrize("between", [b" ", b"\n", b" # a\tcomment 1 2 3\n"])
@pytest.mark.parametrize("highest", [1, 255, 65_535])
def test_words_are_numbers_wherever_they_are_cut(highest, between):
    wanted = np.random.default_rng(0).integers(0, highest + 1, (210, 150, 3), dtype=np.uint16)
    data = b"P3 150 210 %d\n" % highest + words(wanted, between)
    found, truncated = pnm.samples(data, accept_truncated=False)
    assert not truncated
    assert np.array_equal(found, wanted * (255 if highest == 1 else 1))


@pytest.mark.parametrize("between", [b"", b"\n"])
def test_bits_need_no_space(between):
    wanted = np.random.default_rng(0).integers(0, 2, (400, 300, 1), dtype=np.uint8)
    found, _ = pnm.samples(b"P1 300 400\n" + words(wanted, between), accept_truncated=False)
    assert np.array_equal(found, 255 - wanted * 255)


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5])
def test_little_is_taken_beside_the_samples(kind):
    side = 1000
    levels = np.random.default_rng(0).integers(0, 2, (side, side), dtype=np.uint8)
    head, text = b"P%d %d %d" % (kind, side, side), words(levels, b" ")
    data = {
        1: lambda: head + b"\n" + text,
        2: lambda: head + b" 255\n" + text,
        3: lambda: head + b" 255\n" + b" ".join([text] * 3),
        4: lambda: head + b"\n" + np.packbits(levels, axis=1).tobytes(),
        5: lambda: head + b" 200\n" + levels.tobytes(),
    }[kind]()
    tracemalloc.start()
    try:
        found, _ = pnm.samples(data, accept_truncated=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * found.nbytes + STEP  # plain ones are 16 bits first, bits are unpacked


@pytest.mark.parametrize("kind", [4, 5, 6])
def test_a_line_that_ends_in_two_bytes_shifts_no_sample(kind):
    """As Windows' programs write it. By Netpbm's documents one byte follows the header."""
    samples = bytes(range(40, 40 + {4: 3, 5: 12, 6: 36}[kind]))
    head = b"P%d\r\n4 3" % kind + (b"" if kind == 4 else b"\r\n255")
    usual, truncated = pnm.samples(head + b"\n" + samples, accept_truncated=False)
    data = head + b"\r\n" + samples
    assert not truncated
    assert np.array_equal(pnm.samples(data, accept_truncated=False)[0], usual)
    assert pnm.rest(data) == b""


def test_a_first_sample_that_is_a_line_feed_is_one():
    wanted = np.arange(10, 22, dtype=np.uint8).reshape(3, 4, 1)
    for data in (b"P5 4 3 255\r" + wanted.tobytes(), b"P5 4 3 255\r" + wanted.tobytes() + b"P5"):
        assert np.array_equal(pnm.samples(data, accept_truncated=False)[0], wanted)
