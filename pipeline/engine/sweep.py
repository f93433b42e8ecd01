"""Which rows go through the network together: pure integers.

A convolution with zero padding is local: a row of the result depends on the `radius` rows above and
below it. So an image is cut into strips, each is fed with that much of its surroundings (the halo),
and what the network makes of the halo is thrown away. At the image's own border there is no halo:
there the strip sees the very zero padding that the whole image would see.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Strip:
    """Rows of the input, half open: those that are fed, and those of them whose result is kept."""

    top: int
    start: int
    stop: int
    bottom: int


def plan(height: int, *, rows: int, radius: int, multiple: int = 1) -> list[Strip]:
    """Strips whose kept rows cover the image once, in order.

    height: rows of the image, a multiple of `multiple`. rows: most rows that may be fed at once, at
    least `least_rows`. radius: the network's receptive radius. multiple: what starts and ends of
    fed rows are multiples of (pixel-unshuffle).
    """
    if height <= rows:
        return [Strip(0, 0, height, height)]
    halo = up(radius, multiple)
    kept = (rows - 2 * halo) // multiple * multiple
    starts = range(0, height, kept)
    stops = [min(start + kept, height) for start in starts]
    return [
        Strip(max(0, start - halo), start, stop, min(height, stop + halo))
        for start, stop in zip(starts, stops, strict=True)
    ]


def least_rows(height: int, radius: int, multiple: int = 1) -> int:
    """Rows that must be feedable at once for an image of this height.

    A third of them is kept: smaller strips would compute every row more than three times, up to
    several hundred times for a deep network.
    """
    return min(height, 3 * max(up(radius, multiple), multiple))


def up(value: int, multiple: int) -> int:
    """The least multiple that is not below the value."""
    return -(-value // multiple) * multiple
