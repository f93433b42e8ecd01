"""A part of a reduction is what the whole reduction shows there."""

import numpy as np
import PIL.Image
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.images.reduce import reduce


@st.composite
def windows(draw):
    """A size, a smaller one, and a window inside that."""
    rows, columns = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    height, width = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    down, across = draw(st.integers(1, height)), draw(st.integers(1, width))
    left, top = draw(st.integers(0, width - across)), draw(st.integers(0, height - down))
    return (rows, columns), (width, height), (left, top, across, down)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(windows())
def test_a_window_is_cut_out_of_the_whole_reduction(case):
    shape, size, (left, top, across, down) = case
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    lanczos, picture = PIL.Image.Resampling.LANCZOS, PIL.Image.fromarray(pixels)
    whole = picture.resize((size[0], shape[0]), lanczos).resize(size, lanczos)
    expected = np.asarray(whole)[top : top + down, left : left + across].astype(int)
    part = reduce(pixels, *size, (left, top, across, down))
    assert part.dtype == np.uint8
    assert part.shape == (down, across, 3)
    assert np.abs(part - expected).max() <= 1
    assert (part != expected).sum() <= 1 + part.size / 50
