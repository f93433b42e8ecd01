"""The pool against a list of pairs."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.training.pool import Pool

exact = settings(deadline=None, derandomize=True, max_examples=60)


def pairs(numbers):
    """Targets (n, 3, 4, 4) and inputs (n, 3, 2, 2) that hold their numbers."""
    values = torch.tensor(numbers, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return values.expand(-1, 3, 4, 4).clone(), values.expand(-1, 3, 2, 2).clone()


def numbers_of(targets, inputs):
    """The numbers of whole pairs of the right form."""
    count = len(targets)
    assert targets.shape == (count, 3, 4, 4)
    assert inputs.shape == (count, 3, 2, 2)
    assert targets.dtype == inputs.dtype == torch.uint8
    held = torch.cat([targets.reshape(count, -1), inputs.reshape(count, -1)], 1)
    assert (held == held[:, :1]).all()
    return held[:, 0].tolist()


def batches(count, steps):
    return [list(range(step * count, (step + 1) * count)) for step in range(steps)]


@exact
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 12), st.integers(0, 9))
def test_it_hands_out_what_a_list_would(count, multiple, steps, seed):
    pool, rng, model_rng = Pool(count * multiple), *(np.random.default_rng(seed) for _ in "ab")
    model = list[int]()
    for batch in batches(count, steps):
        handed = numbers_of(*pool.exchange(rng, *pairs(batch)))
        if len(model) < count * multiple:
            assert handed == batch
            model += batch
            continue
        places = model_rng.choice(len(model), count, replace=False)
        assert handed == [model[place] for place in places]
        for place, new in zip(places, batch, strict=True):
            model[place] = new
    assert steps == 0 or sorted(numbers_of(*held(pool))) == sorted(model)


def held(pool):
    state = pool.state_dict()
    return state["targets"], state["inputs"]


@exact
@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 8), st.integers(0, 8))
def test_a_resumed_pool_goes_on_as_if_it_had_not_stopped(count, multiple, before, after):
    unbroken, rng = Pool(count * multiple), np.random.default_rng(0)
    todo = batches(count, before + after)
    for batch in todo[:before]:
        unbroken.exchange(rng, *pairs(batch))
    file = io.BytesIO()
    torch.save(unbroken.state_dict(), file)
    file.seek(0)
    resumed, resumed_rng = Pool(count * multiple), np.random.default_rng(0)
    resumed_rng.bit_generator.state = rng.bit_generator.state
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for batch in todo[before:]:
        expected = numbers_of(*unbroken.exchange(rng, *pairs(batch)))
        assert numbers_of(*resumed.exchange(resumed_rng, *pairs(batch))) == expected


def test_every_pair_held_is_equally_likely_to_be_handed_out():
    rng, ages = np.random.default_rng(0), list[int]()
    pool, count = Pool(20), 4
    for step in range(2000):
        number = step % 250
        targets, inputs = pool.exchange(rng, *pairs([number] * count))
        if step >= 100:
            ages += [(number - age) % 250 for age in numbers_of(targets, inputs)]
    # A pair leaves with probability 1/5 in every step after its own.
    shares = np.bincount(ages, minlength=4)[1:4] / len(ages)
    np.testing.assert_allclose(shares, [1 / 5, 4 / 25, 16 / 125], atol=0.012)


def test_a_pool_without_room_hands_everything_through():
    pool, (targets, inputs) = Pool(0), pairs([1, 2])
    handed = pool.exchange(np.random.default_rng(0), targets, inputs)
    assert handed[0] is targets
    assert handed[1] is inputs
    assert pool.state_dict() == {"fill": 0}


def test_what_was_handed_out_and_what_was_saved_stay_as_they_are():
    pool, rng = Pool(2), np.random.default_rng(0)
    pool.exchange(rng, *pairs([1, 2]))
    saved = pool.state_dict()
    handed = pool.exchange(rng, *pairs([3, 4]))
    pool.exchange(rng, *pairs([5, 6]))
    assert sorted(numbers_of(*handed)) == [1, 2]
    assert numbers_of(saved["targets"], saved["inputs"]) == [1, 2]


def test_a_saved_state_holds_the_pairs_and_not_the_room_for_more():
    pool = Pool(400)
    pool.exchange(np.random.default_rng(0), *pairs([1]))
    file = io.BytesIO()
    torch.save(pool.state_dict(), file)
    assert len(file.getvalue()) < 400 * 3 * 4 * 4


def test_a_checkpoint_with_more_pairs_than_room_is_refused():
    full = Pool(4)
    full.exchange(np.random.default_rng(0), *pairs([1, 2, 3, 4]))
    with pytest.raises(ConfigError, match=r"holds 4 pairs, there is room for 2 \(pool\)"):
        Pool(2).load_state_dict(full.state_dict())


def test_a_batch_that_does_not_divide_the_room_is_refused():
    with pytest.raises(ValueError, match="a pool of 5 is no multiple of a batch of 2"):
        Pool(5).exchange(np.random.default_rng(0), *pairs([1, 2]))
