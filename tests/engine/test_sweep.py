"""The plan of a sweep, in integers: every row once, from operands that are at hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import SHAPES

from pipeline.engine import sweep
from pipeline.models.rrdbnet import RRDBNetShape
from pipeline.models.srvgg import SRVGGShape

exact = settings(deadline=None, derandomize=True, max_examples=60)


@pytest.mark.parametrize("name", SHAPES)
@exact
@given(height=st.integers(1, 120), rows=st.integers(1, 130))
def test_every_row_is_made_once_from_rows_that_are_held(name, height, rows):
    graph = SHAPES[name].graph()
    first = [0] * len(graph.levels)  # of the rows that are held
    made = [0] * len(graph.levels)
    for turn in sweep.turns(graph, height, rows):
        assert turn.start == made[0] <= turn.stop <= height
        assert turn.stop - turn.start <= rows
        made[0] = turn.stop
        for task in turn.tasks:
            step = graph.steps[task.step]
            assert task.start * step.shuffle == made[task.step + 1]
            assert task.start < task.stop <= height * step.level
            if rows < height:
                assert task.stop - task.start <= rows * step.level
            for value in step.reads:
                factor = step.level // graph.levels[value]
                assert first[value] * factor <= max(0, task.start - step.radius)
                seen = min(task.stop + step.radius, height * step.level)
                assert seen <= made[value] * factor
            made[task.step + 1] = task.stop * step.shuffle
            for value, _ in step.adds:
                factor = graph.levels[task.step + 1] // graph.levels[value]
                assert first[value] * factor <= task.start * step.shuffle
                assert task.stop * step.shuffle <= made[value] * factor
            for value, row in task.spent:
                assert first[value] <= row <= made[value]
                first[value] = row
    assert made == [height * level for level in graph.levels]


def test_what_is_held_does_not_grow_with_the_height_of_the_picture():
    graph = SRVGGShape().graph()
    held = []
    for height in (200, 2000):
        first, made, most = [0] * len(graph.levels), [0] * len(graph.levels), 0
        for turn in sweep.turns(graph, height, 16):
            made[0] = turn.stop
            for task in turn.tasks:
                made[task.step + 1] = task.stop * graph.steps[task.step].shuffle
                rows = [at - start for at, start in zip(made[:-1], first[:-1], strict=True)]
                most = max(most, sum(rows))
                for value, row in task.spent:
                    first[value] = row
        held.append(most)
    # Two rows between any two steps, the picture's own as long as the last step needs them.
    assert held[0] == held[1] == 2 * 17 + (18 + 16) + 2 * 16


@pytest.mark.parametrize(
    ("shape", "least"),
    [(SRVGGShape(), 30e3), (SRVGGShape(convs=32), 55e3), (RRDBNetShape(), 0.66e6)],
    ids=["animevideov3", "general-x4v3", "x4plus"],
)
def test_memory_of_the_released_networks_in_bytes_for_a_column(shape, least):
    """Figures that the README and the messages rely on, in fp32."""
    graph = shape.graph()
    assert sweep.peak_bytes(graph, 4, (4,) * len(graph.levels)) <= least


@exact
@given(
    width=st.integers(1, 4000),
    height=st.integers(1, 4000),
    budget=st.integers(10**5, 10**9),
    name=st.sampled_from(list(SHAPES)),
)
def test_a_plan_covers_the_width_and_keeps_to_the_budget_where_any_can(width, height, budget, name):
    graph = SHAPES[name].graph()
    sizes = (4,) * len(graph.levels)
    plan = sweep.fit(graph, height=height, width=width, sizes=sizes, budget=budget, pixels=12_288)
    halo = graph.reach(1)
    assert [band.start for band in plan.bands] == [0, *(band.stop for band in plan.bands[:-1])]
    assert plan.bands[-1].stop == width
    for band in plan.bands:
        assert 0 <= band.left <= band.start < band.stop <= band.right <= width
        assert band.left == 0 or band.start - band.left >= halo
        assert band.right == width or band.right - band.stop >= halo
    assert sum(band.right - band.left for band in plan.bands) <= 3 * width
    assert 1 <= plan.rows <= height
    widest = max(band.right - band.left for band in plan.bands)
    assert plan.bytes == sweep.peak_bytes(graph, plan.rows, sizes) * widest
    if plan.bytes > budget:  # then nothing less is possible: the fewest rows, the narrowest bands
        assert plan.rows == min(4, height)
        assert width == 1 or 2 * halo + -(-width // (2 * len(plan.bands))) > 3 * -(
            -width // (2 * len(plan.bands))
        )


def test_bands_come_only_after_fewer_rows():
    graph = SHAPES["compact"].graph()
    sizes = (4,) * len(graph.levels)
    for rows in (64, 32, 16, 8, 4):
        budget = sweep.peak_bytes(graph, rows, sizes) * 100
        plan = sweep.fit(graph, height=500, width=100, sizes=sizes, budget=budget, pixels=6400)
        assert (plan.rows, len(plan.bands)) == (rows, 1)
    plan = sweep.fit(graph, height=500, width=100, sizes=sizes, budget=budget // 2, pixels=6400)
    assert len(plan.bands) > 1
