"""Many small pictures on one canvas: pure integers.

A convolution with zero padding cannot tell the border of a picture from a pixel of zeros. So the
pictures of a canvas lie at least one pixel apart, and that gutter is kept at zero through all
layers; see `network.Gutter`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

GUTTER = 1


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a picture lies."""

    index: int
    """Among those that were offered."""
    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Packing:
    """What lies on one canvas."""

    width: int
    height: int
    """Rows down to the lowest picture; the canvas may have more."""
    placements: tuple[Placement, ...]

    @property
    def occupancy(self) -> float:
        """Share of the pixels that are pictures'."""
        taken = sum(placement.width * placement.height for placement in self.placements)
        return taken / (self.width * self.height)


def pack(sizes: Sequence[tuple[int, int]], width: int, height: int) -> Packing:
    """Packs a canvas of `width` x `height`; what finds no room is left for the next one.

    sizes: (width, height) of the pictures, in the order of their arrival, none larger than the
    canvas. The first one is always packed, so nobody waits for ever; then come those of which
    there is room by area alone, and what lies behind them in the line fills the gaps.

    The lowest gap gets the widest picture that fits it: E. K. Burke, G. Kendall, G. Whitwell, "A
    New Placement Heuristic for the Orthogonal Stock-Cutting Problem", Operations Research 52(4),
    2004.
    """
    waiting = {index: (w + GUTTER, h + GUTTER) for index, (w, h) in enumerate(sizes)}
    room = (width + GUTTER) * (height + GUTTER)
    areas = accumulate(w * h for w, h in waiting.values())
    turn = sum(area <= room for area in areas)  # the first so many have their turn
    skyline = [_Segment(0, width + GUTTER, 0)]
    placements = list[Placement]()
    while waiting:
        number = min(range(len(skyline)), key=lambda i: (skyline[i].top, skyline[i].left))
        gap = skyline[number]
        index = 0 if not placements else _widest(waiting, turn, gap, height + GUTTER)
        if index is not None:
            w, h = waiting.pop(index)
            placements.append(Placement(index, gap.left, gap.top, w - GUTTER, h - GUTTER))
            skyline[number : number + 1] = gap.under(w, h)
        elif len(skyline) > 1:
            _raise(skyline, number)
        else:
            break
    lowest = max(placement.top + placement.height for placement in placements)
    return Packing(width, lowest, tuple(placements))


@dataclass(frozen=True, slots=True)
class _Segment:
    """A stretch of the skyline: from `top` on, all rows below are free."""

    left: int
    width: int
    top: int

    def under(self, width: int, height: int) -> list["_Segment"]:
        """What is left of it when a rectangle has been put at its left."""
        rest = _Segment(self.left + width, self.width - width, self.top)
        return [_Segment(self.left, width, self.top + height), *([rest] if rest.width else [])]


def _widest(
    waiting: dict[int, tuple[int, int]], turn: int, gap: _Segment, height: int
) -> int | None:
    """The widest rectangle that fits, then the highest, then the first in the line.

    turn: those before have precedence.
    """
    best: tuple[bool, int, int, int] | None = None
    for index, (w, h) in waiting.items():
        if w <= gap.width and gap.top + h <= height:
            rank = (index < turn, w, h, -index)
            best = rank if best is None else max(best, rank)
    return -best[3] if best else None


def _raise(skyline: list[_Segment], number: int) -> None:
    """Gives a gap up: it joins the lower of its neighbours."""
    sides = [i for i in (number - 1, number + 1) if 0 <= i < len(skyline)]
    side = min(sides, key=lambda i: skyline[i].top)
    gap, neighbour = skyline[number], skyline[side]
    joined = _Segment(min(gap.left, neighbour.left), gap.width + neighbour.width, neighbour.top)
    skyline[min(number, side) : max(number, side) + 1] = [joined]
