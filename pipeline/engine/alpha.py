"""Transparency: colours under what is transparent, and an enlargement of its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.images.image import Samples

AlphaWay = Literal["network", "lanczos"]
"""What enlarges alpha: the network, as a gray picture of its own, or a Lanczos filter."""

S = TypeVar("S", bound=Samples)
_Floats = NDArray[np.float32]

# Of the picture, even; what is held in floats beside it goes by it, not by the picture's height.
_STRIP_ROWS = 64
_LOBES = 3
_NEARBY = 2  # pixels of the source that a result pixel certainly depends on


def bleed(pixels: S) -> S:
    """The picture with the colours of what is visible nearby where it is fully transparent.

    Files have anything there, most often black, and a network that sees it draws its edge into
    what is visible: a halo. What is partly transparent keeps its colour. Pull and push through a
    pyramid: S. J. Gortler et al., "The Lumigraph" (1996), with a filter as wide as linear
    interpolation needs it, so that a colour comes from as near as it can.

    pixels: (H, W, 2 or 4), straight alpha last. Returns them as they are where nothing is hidden,
    or everything.
    """
    hidden = pixels[:, :, -1] == 0
    if not hidden.any() or hidden.all():
        return pixels
    halves = [
        _halved(_weighted(pixels[rows]))[inside] for rows, inside in _strips(len(pixels), above=2)
    ]
    colours = _everywhere(np.concatenate(halves))
    filled = pixels.copy()
    for top in range(0, len(pixels), _STRIP_ROWS):
        under = hidden[top : top + _STRIP_ROWS]
        if under.any():
            first = max(0, top // 2 - 1)
            near = _doubled(colours[first : (top + _STRIP_ROWS) // 2 + 1])[top - 2 * first :]
            rows = filled[top : top + _STRIP_ROWS, :, :-1]
            rows[under] = np.rint(near[: len(under), : under.shape[1]][under])
    return filled


def settled(alpha_hw: Samples, out_hw: Samples, way: AlphaWay) -> bool:
    """Fills the result's alpha where that takes no network; whether it did.

    Opaque and transparent pictures stay exactly that: a network would ring at the borders.
    """
    least, most = alpha_hw.min(), alpha_hw.max()
    if least == most and most in (0, np.iinfo(alpha_hw.dtype).max):
        out_hw[:] = most
    elif way == "lanczos":
        _lanczos(alpha_hw, out_hw)
    else:
        return False
    return True


def keep_flat(alpha_hw: Samples, out_hw: Samples) -> None:
    """Puts the result's alpha at 0 or full again wherever all of the source's nearby is.

    A network is off by a level now and then: a disc that has an edge would not be opaque within.
    """
    down, across = (
        ((np.arange(target) + 0.5) * size / target).astype(np.intp)
        for size, target in zip(alpha_hw.shape, out_hw.shape, strict=True)
    )
    for level in (0, np.iinfo(out_hw.dtype).max):
        flat = _eroded(alpha_hw == level)
        for top in range(0, len(out_hw), _STRIP_ROWS):
            rows = slice(top, top + _STRIP_ROWS)
            out_hw[rows][flat[down[rows]][:, across]] = level


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where all holds within so many pixels; nothing beyond the borders speaks against it."""
    for axis in (0, 1):
        x = np.moveaxis(mask, axis, 0)
        eroded = x.copy()
        for step in range(1, _NEARBY + 1):
            eroded[step:] &= x[:-step]
            eroded[:-step] &= x[step:]
        mask = np.moveaxis(eroded, 0, axis)
    return mask


def _strips(height: int, *, above: int) -> Iterator[tuple[slice, slice]]:
    """Rows of the picture with so many more around them; which of their halves are the strip's."""
    for top in range(0, height, _STRIP_ROWS):
        first = max(0, top - above)
        start = (top - first) // 2
        rows = min(height - top, _STRIP_ROWS)
        yield slice(first, top + rows + above), slice(start, start + -(-rows // 2))


def _weighted(pixels: Samples) -> _Floats:
    """(H, W, C): colours times their weight, 1 where they are visible, and the weight itself."""
    weighted = pixels.astype(np.float32)
    weighted[:, :, -1:] = pixels[:, :, -1:] > 0
    weighted[:, :, :-1] *= weighted[:, :, -1:]
    return weighted


def _everywhere(weighted_hwc: _Floats) -> _Floats:
    """Colours, of coarser pixels where no weight is: (H, W, C - 1)."""
    weight = weighted_hwc[:, :, -1:]
    known = weight > 0
    colours = weighted_hwc[:, :, :-1].copy()
    colours /= np.where(known, weight, 1)
    if known.all():
        return colours
    height, width = known.shape[:2]
    coarser = _doubled(_everywhere(_halved(weighted_hwc)))
    return np.where(known, colours, coarser[:height, :width])


def _halved(x_hwc: _Floats) -> _Floats:
    """Half as high and wide, rounded up, by 1 3 3 1; zeros lie beyond the borders."""
    for axis in (0, 1):
        x = np.moveaxis(x_hwc, axis, 0)
        padded: _Floats = np.zeros((len(x) + 2 + len(x) % 2, *x.shape[1:]), np.float32)
        padded[1 : len(x) + 1] = x
        halved = np.float32(0.375) * (padded[1:-2:2] + padded[2:-1:2])
        halved += np.float32(0.125) * (padded[:-3:2] + padded[3::2])
        x_hwc = np.moveaxis(halved, 0, axis)
    return x_hwc


def _doubled(x_hwc: _Floats) -> _Floats:
    """Twice as high and wide, by linear interpolation; the borders go on."""
    for axis in (0, 1):
        x = np.moveaxis(x_hwc, axis, 0)
        doubled = np.repeat(x * np.float32(0.75), 2, axis=0)
        quarter = x * np.float32(0.25)
        doubled[2::2] += quarter[:-1]
        doubled[1:-1:2] += quarter[1:]
        doubled[0] += quarter[0]
        doubled[-1] += quarter[-1]
        x_hwc = np.moveaxis(doubled, 0, axis)
    return x_hwc


def _lanczos(alpha_hw: Samples, out_hw: Samples) -> None:
    """Lanczos with three lobes, rounded once."""
    down = _Taps.of(alpha_hw.shape[0], out_hw.shape[0])
    across = _Taps.of(alpha_hw.shape[1], out_hw.shape[1])
    full = np.iinfo(out_hw.dtype).max
    for top in range(0, len(out_hw), _STRIP_ROWS):
        tall = down.part(slice(top, top + _STRIP_ROWS)).applied(alpha_hw)
        wide = across.applied(np.ascontiguousarray(tall.T)).T
        out_hw[top : top + _STRIP_ROWS] = np.rint(wide).clip(0, full)


@dataclass(frozen=True, slots=True, eq=False)
class _Taps:
    """Along one axis, which samples make each of the target's; wider where the picture shrinks."""

    index: NDArray[np.intp]
    """(taps, target)."""
    weights: _Floats
    """Of the same shape; 0 beyond the borders."""
    beside: NDArray[np.intp] | None
    """(2, target): the samples on both sides, which bound the result. The filter overshoots, and
    around a logo its second lobe would leave a ring of 8 % where nothing is. None where the
    picture shrinks."""

    @classmethod
    def of(cls, size: int, target: int) -> "_Taps":
        ratio = size / target
        widening = max(1.0, ratio)
        centres = (np.arange(target) + 0.5) * ratio
        first = np.floor(centres - _LOBES * widening).astype(np.intp)
        index = first + np.arange(int(np.ceil(2 * _LOBES * widening)) + 1)[:, None]
        distance = (index + 0.5 - centres) / widening
        weights = np.sinc(distance) * np.sinc(distance / _LOBES)
        weights[(np.abs(distance) >= _LOBES) | (index < 0) | (index >= size)] = 0
        weights /= weights.sum(axis=0)
        beside = np.floor(centres - 0.5).astype(np.intp) + np.array([[0], [1]])
        last = size - 1
        return cls(
            index.clip(0, last),
            weights.astype(np.float32),
            beside.clip(0, last) if target >= size else None,
        )

    def part(self, some: slice) -> "_Taps":
        """For some of the target's samples."""
        beside = None if self.beside is None else self.beside[:, some]
        return _Taps(self.index[:, some], self.weights[:, some], beside)

    def applied(self, x: Samples | _Floats) -> _Floats:
        """(size, any) to (target, any)."""
        made = np.zeros((self.index.shape[1], x.shape[1]), np.float32)
        for index, weights in zip(self.index, self.weights, strict=True):
            made += x[index] * weights[:, None]
        if self.beside is not None:
            before, after = x[self.beside[0]], x[self.beside[1]]
            made = made.clip(np.minimum(before, after), np.maximum(before, after))
        return made
