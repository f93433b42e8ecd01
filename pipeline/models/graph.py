"""A network as a list of steps: integers for whoever plans, names of weights for whoever computes.

The generators are chains of convolutions with stride 1 whose results are kept, concatenated and
added up. Written down as data, one description serves the plain forward pass (training, and the
oracle of the tests) as well as the engine, which runs the same steps row by row or on a canvas of
many pictures.
"""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A convolution of earlier values, and what is done to its result.

    Values are numbered: 0 is what goes in, n is what the n-th step makes. In this order: what is
    read is enlarged to the step's resolution (nearest neighbour), concatenated and convolved with
    zero padding; then come the activation, the pixel shuffle and the residuals.
    """

    conv: str
    """Name of the nn.Conv2d."""
    reads: tuple[int, ...]
    """Values, concatenated along their channels."""
    channels: int
    """Of the result."""
    radius: int = 1
    """Half the kernel: 1 for 3x3."""
    level: int = 1
    """Pixels along a side where it convolves, for one pixel of value 0."""
    slope: float | str | None = None
    """Of a leaky ReLU; or the name of a parameter with one slope per channel (PReLU)."""
    shuffle: int = 1
    """Factor by which channels are unfolded into pixels."""
    adds: tuple[tuple[int, float], ...] = ()
    """Pairs (value, gain), in order: result = gain * result + value."""


@dataclass(frozen=True)
class Graph:
    """All steps of a network; the last one makes the result."""

    in_channels: int
    """Of value 0."""
    steps: tuple[Step, ...]

    @cached_property
    def channels(self) -> tuple[int, ...]:
        """Of each value."""
        return (self.in_channels, *(step.channels for step in self.steps))

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Of each value: its pixels along a side for one pixel of value 0."""
        return (1, *(step.level * step.shuffle for step in self.steps))

    @cached_property
    def widest(self) -> int:
        """Elements that a convolution reads or makes for a pixel of value 0, at most."""
        read = (sum(self.channels[value] for value in step.reads) for step in self.steps)
        made = (step.channels * step.shuffle**2 for step in self.steps)
        pairs = zip(read, made, self.steps, strict=True)
        return max(max(r, m) * step.level**2 for r, m, step in pairs)

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """Of each value: the indices of the steps that need it."""
        readers: list[list[int]] = [[] for _ in self.channels]
        for index, step in enumerate(self.steps):
            for value in {*step.reads, *(value for value, _ in step.adds)}:
                readers[value].append(index)
        return tuple(map(tuple, readers))

    @cached_property
    def spent(self) -> tuple[tuple[int, ...], ...]:
        """For each step, the values that no later one needs."""
        spent: list[list[int]] = [[] for _ in self.steps]
        for value, readers in enumerate(self.readers[:-1]):
            spent[readers[-1]].append(value)
        return tuple(map(tuple, spent))

    @cached_property
    def halo(self) -> int:
        """How far from a pixel of the result, in pixels of value 0, others can change it."""
        return self.reach(1)

    def reach(self, multiple: int) -> int:
        """How far from an output pixel, in input pixels along a side, inputs can change it.

        multiple: input pixels along a side that are folded into one pixel of value 0.
        """
        scale = self.levels[-1] // multiple
        farthest = 0
        for phase in range(self.levels[-1]):
            low, high = self._seen(phase)
            own = phase // scale
            ends = (own - low * multiple, high * multiple + multiple - 1 - own)
            farthest = max(farthest, *ends)
        return farthest

    def _seen(self, row: int) -> tuple[int, int]:
        """The first and the last row of value 0 that can change a row of the result."""
        seen: dict[int, tuple[int, int]] = {len(self.steps): (row, row)}
        for number in range(len(self.steps), 0, -1):
            step, (low, high) = self.steps[number - 1], seen[number]
            for value, _ in step.adds:
                self._widen(seen, value, self.levels[number], low, high)
            low, high = low // step.shuffle - step.radius, high // step.shuffle + step.radius
            for value in step.reads:
                self._widen(seen, value, step.level, low, high)
        return seen[0]

    def _widen(
        self, seen: dict[int, tuple[int, int]], value: int, level: int, low: int, high: int
    ) -> None:
        factor = level // self.levels[value]
        low, high = low // factor, high // factor
        before = seen.get(value, (low, high))
        seen[value] = (min(low, before[0]), max(high, before[1]))
