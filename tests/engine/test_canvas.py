"""Packing, in integers: nothing overlaps, the gutter is kept, little stays empty."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import canvas

exact = settings(deadline=None, derandomize=True, max_examples=150)
sides = st.integers(1, 60)


@exact
@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=60), st.integers(60, 150), st.data())
def test_nothing_overlaps_and_a_gutter_lies_between_all(sizes, width, data):
    height = data.draw(st.integers(60, 150))
    packing = canvas.pack(sizes, width, height)
    taken = set()
    for place in packing.placements:
        assert (place.width, place.height) == sizes[place.index]
        assert 0 <= place.left <= place.left + place.width <= width
        assert 0 <= place.top <= place.top + place.height <= packing.height <= height
        # With the gutter on two sides, disjoint rectangles are disjoint pictures with one between.
        cells = {
            (x, y)
            for x in range(place.left, place.left + place.width + canvas.GUTTER)
            for y in range(place.top, place.top + place.height + canvas.GUTTER)
        }
        assert not cells & taken
        taken |= cells
    indices = [place.index for place in packing.placements]
    assert len(set(indices)) == len(indices)
    assert 0 in indices  # the first in the line is never passed over
    area = sum(place.width * place.height for place in packing.placements)
    assert packing.occupancy == area / (width * packing.height) <= 1


@exact
@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=120))
def test_all_are_packed_in_the_end(sizes):
    canvases = 0
    while sizes:
        packed = {place.index for place in canvas.pack(sizes, 100, 100).placements}
        assert packed
        sizes = [size for index, size in enumerate(sizes) if index not in packed]
        canvases += 1
    assert canvases <= 120


@pytest.mark.parametrize("seed", range(3))
def test_ragged_pictures_fill_nine_tenths(seed):
    """1,000 pictures between 24 and 200 pixels, 260 waiting at a time."""
    rng = random.Random(seed)
    coming = [(rng.randint(24, 200), rng.randint(24, 200)) for _ in range(1000)]
    line, taken, all_pixels = [], 0, 0
    while coming or line:
        while coming and len(line) < 260:
            line.append(coming.pop())
        packing = canvas.pack(line, 1040, 1040)
        packed = {place.index for place in packing.placements}
        line = [size for index, size in enumerate(line) if index not in packed]
        taken += packing.occupancy * packing.width * packing.height
        all_pixels += packing.width * packing.height
    assert taken / all_pixels >= 0.9


@pytest.mark.parametrize("side", [32, 64, 100, 128, 256])
def test_common_sizes_fill_a_canvas(side):
    packing = canvas.pack([(side, side)] * 1100, 1040, 1040)
    assert packing.occupancy >= 0.92
    assert len(packing.placements) == (1041 // (side + 1)) ** 2
