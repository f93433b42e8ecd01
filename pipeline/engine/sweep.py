"""Which rows of which value are computed when: pure integers.

A convolution is local: a row of its result needs the rows beside it and no others. So a picture
goes through the whole network a few rows at a time. Each step makes the rows whose neighbours have
arrived and keeps of its operands only those that it will need again, two for a 3x3 convolution. No
row is computed twice, and what is held does not grow with the height of the picture: for a deep
network far less than its widest layer, for any network little enough to stay in a CPU's caches.

Very wide pictures, whose kept rows do not fit the memory, are cut into bands of columns, each with
as many columns beside it as the network can see (the halo), computed and thrown away.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from pipeline.models.graph import Graph

# Below, the rows that are kept from turn to turn cost more to carry along than they save.
LEAST_ROWS = 4
# Of a tensor that a kernel reads or writes: many count in 32 bits with a sign.
_MOST_ELEMENTS = 2**31 - 1
# A band computes at most this many times the columns that it keeps.
_MOST_RECOMPUTED = 3


@dataclass(frozen=True, slots=True)
class Task:
    """Rows that a step convolves, half open, at its own resolution."""

    step: int
    """Index among the graph's steps; what it makes is value `step + 1`."""
    start: int
    stop: int
    spent: tuple[tuple[int, int], ...]
    """Pairs (value, row): rows of the value before this one are not needed any more."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What happens with some further rows of the picture."""

    start: int
    """Rows of value 0 that come in, half open."""
    stop: int
    tasks: tuple[Task, ...]


def turns(graph: Graph, height: int, rows: int) -> Iterator[Turn]:
    """The way of a picture through the network, from top to bottom.

    height: rows of value 0. rows: of them in a turn. After the last of them the turns go on with
    the same steps' shares until all has come out; a picture that fits one turn is done in one.
    """
    ends = [height * level for level in graph.levels]
    made = [0] * len(ends)
    # What would be made of a picture without an end: steps go by it, so that no turn does more
    # than any other, also where the rows that all steps together are behind come out at the end.
    endless = [0] * len(ends)
    while made[-1] < ends[-1]:
        endless[0] += rows if rows < height else height + graph.halo
        start, made[0] = made[0], min(endless[0], height)
        tasks = list[Task]()
        for index, step in enumerate(graph.steps):
            reads = (endless[v] * (step.level // graph.levels[v]) for v in step.reads)
            last = max(0, min(reads) - step.radius)
            endless[index + 1] = last * step.shuffle
            first, last = made[index + 1] // step.shuffle, min(last, height * step.level)
            if last > first:
                made[index + 1] = last * step.shuffle
                spent = tuple((v, _first_needed(graph, v, made)) for v in graph.spent[index])
                tasks.append(Task(index, first, last, spent))
        yield Turn(start, made[0], tuple(tasks))


def _first_needed(graph: Graph, value: int, made: list[int]) -> int:
    """The first row of a value that some step will read again."""
    needed = made[value]
    for index in graph.readers[value]:
        step, done = graph.steps[index], made[index + 1]
        if value in step.reads:
            row = max(0, done // step.shuffle - step.radius)
            needed = min(needed, row // (step.level // graph.levels[value]))
        if any(value == addend for addend, _ in step.adds):
            needed = min(needed, done // (graph.levels[index + 1] // graph.levels[value]))
    return needed


@lru_cache(maxsize=256)
def peak_bytes(graph: Graph, rows: int, sizes: tuple[int, ...]) -> int:
    """Bytes that are held at once for each column of value 0, for a picture of any height.

    rows: of value 0 in a turn. sizes: bytes of one element of each value, all its copies together.
    """
    # Lags add up to the network's radius: from there on, all turns are alike.
    height = graph.halo + 3 * rows
    row_bytes = [
        size * channels * level
        for size, channels, level in zip(sizes, graph.channels, graph.levels, strict=True)
    ]
    low = [0] * len(sizes)
    high = [0] * len(sizes)
    held = peak = 0
    for turn in turns(graph, height, rows):
        held += row_bytes[0] * (turn.stop - high[0])
        high[0] = turn.stop
        for task in turn.tasks:
            step, value = graph.steps[task.step], task.step + 1
            fresh = (task.stop - task.start) * step.shuffle * row_bytes[value]
            seen = (task.stop - task.start + 2 * step.radius) * step.level
            seen *= sum(sizes[v] * graph.channels[v] for v in step.reads)
            # The operands gathered, and once more with a border or enlarged; then what convolution,
            # activation, shuffle and residuals make of them, each anew; or, copied into one piece,
            # the rows held so far and the new ones.
            made = (2 + (step.shuffle > 1) + 2 * len(step.adds)) * fresh
            kept = row_bytes[value] * (high[value] - low[value])
            peak = max(peak, held + 2 * seen + made, held + 2 * fresh + kept)
            held += fresh
            high[value] = task.stop * step.shuffle
            for spent, row in task.spent:
                held -= row_bytes[spent] * (row - low[spent])
                low[spent] = row
    return peak


@dataclass(frozen=True, slots=True)
class Band:
    """Columns, half open: those that are fed, and those of them whose result is kept."""

    left: int
    start: int
    stop: int
    right: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How a picture goes through a network."""

    rows: int
    bands: tuple[Band, ...]
    bytes: int
    """Held at once."""


def fit(
    graph: Graph,
    *,
    height: int,
    width: int,
    sizes: tuple[int, ...],
    budget: int,
    pixels: int,
    pictures: int = 1,
    in_bands: bool = True,
) -> Plan:
    """The plan that computes as little as possible twice within the budget.

    height, width: of value 0. sizes: as of `peak_bytes`. budget: bytes that may be held at once.
    pixels: of value 0 that a turn should have, for speed; fewer where the budget is small, or where
    a kernel would see 2^31 elements. pictures: of one size, side by side in a batch. in_bands:
    whether bands of columns will do. The plan of the least memory is the answer where none fits:
    compare its `bytes`.
    """
    least = min(LEAST_ROWS, height)
    most = _MOST_ELEMENTS // (graph.widest * width * pictures) - 2
    wanted = max(least, min(height, pixels // (width * pictures), most))
    plan = None
    for bands in islice(_bandings(width, graph.halo), None if in_bands else 1):
        widest = max(band.right - band.left for band in bands)
        for rows in _descending(wanted, least):
            plan = Plan(rows, bands, peak_bytes(graph, rows, sizes) * widest * pictures)
            if plan.bytes <= budget:
                return plan
    assert plan is not None  # the whole width is always among the bandings
    return plan


def _descending(most: int, least: int) -> Iterator[int]:
    rows = most
    while rows > least:
        yield rows
        rows //= 2
    yield least


def _bandings(width: int, halo: int) -> Iterator[tuple[Band, ...]]:
    """The whole width first, then ever narrower bands."""
    count = 1
    while True:
        kept = -(-width // count)
        if count > 1 and kept + 2 * halo > _MOST_RECOMPUTED * kept:
            return
        starts = range(0, width, kept)
        stops = [min(start + kept, width) for start in starts]
        yield tuple(
            Band(max(0, start - halo), start, stop, min(width, stop + halo))
            for start, stop in zip(starts, stops, strict=True)
        )
        count *= 2
