"""Resizing row by row against torch's own, on the whole picture."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine.resize import Resizer

sides = st.integers(1, 60)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.tuples(sides, sides), st.tuples(sides, sides), st.integers(1, 70))
def test_rows_in_any_pieces_give_what_the_whole_picture_gives(size, target, piece):
    x_chw = torch.rand(2, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    resizer = Resizer(size, target)
    pieces = [resizer(x_chw[:, top : top + piece]) for top in range(0, size[0], piece)]
    # In double precision: in single, torch places the kernel up to 2e-5 beside its centre.
    wanted = torch.nn.functional.interpolate(
        x_chw[None], size=target, mode="bicubic", antialias=True
    )[0]
    got = torch.cat(pieces, dim=1)
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= 1e-6
