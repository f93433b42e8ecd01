"""Computations over whole pictures: as much memory as their result, and the same in any pieces."""

import tracemalloc

import numpy as np
import pytest
from test_decode import cmyk_profile

from pipeline.images import colour, levels

PROFILE = cmyk_profile(np.random.default_rng(0).integers(0, 256, 48).tolist())
STEP = 2**24  # what a band may take on its way
COMPUTATIONS = {
    "full_range": (1, lambda samples: levels.full_range(samples, 200)),
    "straight": (4, levels.straight),
    "cmyk": (4, lambda samples: colour.cmyk_to_srgb(samples, None)[0]),
    "cmyk by its profile": (4, lambda samples: colour.cmyk_to_srgb(samples, PROFILE)[0]),
    "lab": (3, lambda samples: colour.lab_to_srgb(samples, from_zero=False)),
}


def noise(*shape, dtype):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1100, 1000), (2, 600_000)])
@pytest.mark.parametrize("name", COMPUTATIONS)
def test_little_is_taken_beside_the_result(name, shape, dtype):
    channels, compute = COMPUTATIONS[name]
    samples = noise(*shape, channels, dtype=dtype)
    compute(samples[:9, :9])
    tracemalloc.start()
    try:
        made = compute(samples)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < made.nbytes + STEP


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", COMPUTATIONS)
def test_pieces_are_what_the_whole_is(name, dtype):
    channels, compute = COMPUTATIONS[name]
    samples = noise(777, 501, channels, dtype=dtype)
    made = compute(samples)
    for wide in (samples, samples.reshape(3, -1, channels)):
        rows = [compute(rows) for rows in np.split(wide, [1, 2])]
        np.testing.assert_array_equal(np.concatenate(rows).reshape(made.shape), made)
