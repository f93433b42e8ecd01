"""Pictures as what goes through a network at once, and back: channels, gray, alpha.

Colour goes through in straight RGB, gray as three equal channels whose mean comes back, alpha as a
gray picture of its own. 8 bits come back as 8, 16 as 16.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.alpha import AlphaWay, S, bleed, keep_flat, settled
from pipeline.engine.resize import Resizer
from pipeline.errors import TooLargeError

_MEAN = (1 / 3, 1 / 3, 1 / 3)


@dataclass(frozen=True, eq=False)
class Plane:
    """A picture, or its alpha, as one input of a network; and where the result goes."""

    x_chw: Tensor
    """uint8 or uint16 (C, H, W), C as the network takes them."""
    out_hwc: Tensor
    """(H', W', c) on the host, of the same dtype: the part of the result that comes from this
    plane."""
    mix: tuple[tuple[float, ...], ...] | None
    """How the network's channels make those of the result, one row each; None: as they are."""
    alpha_hw: Tensor | None = None
    """Where the result's last channel is alpha, that of the picture."""

    @property
    def height(self) -> int:
        return self.x_chw.shape[1]

    @property
    def width(self) -> int:
        return self.x_chw.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """Of the picture and its result: uint8 or uint16."""
        return self.x_chw.dtype

    def resized(self, scale: int) -> bool:
        """Whether the result has another size than the network's own."""
        own = (self.height * scale, self.width * scale)
        return own != tuple(self.out_hwc.shape[:2])

    def keep_flat_alpha(self) -> None:
        """Once the result is there: what is opaque or transparent all around stays exactly that."""
        if self.alpha_hw is not None:
            keep_flat(self.alpha_hw.numpy(), self.out_hwc[:, :, -1].numpy())

    def columns(self, start: int, stop: int, scale: int) -> "Plane":
        """Some of its columns, as a plane of their own that is not resized."""
        out = self.out_hwc[:, start * scale : stop * scale]
        return Plane(self.x_chw[..., start:stop], out, self.mix)


def split(
    pixels: S, size: tuple[int, int], channels: int, alpha: AlphaWay = "network"
) -> tuple[list[Plane], S]:
    """The planes of a picture, and the result that they will fill.

    pixels: uint8 or uint16 (H, W, 1 to 4). size: (width, height) of the result. channels: 1, 3 or
    4, that the network takes and makes. alpha: what enlarges it.
    Raises TooLargeError out of the host's memory.
    """
    shape = (size[1], size[0], pixels.shape[2])
    gray, has_alpha = shape[2] < 3, shape[2] in (2, 4)
    try:
        result = cast(S, np.empty(shape, dtype=pixels.dtype))
        if has_alpha:
            pixels = bleed(pixels)
            by_network = not settled(pixels[:, :, -1], result[:, :, -1], alpha)
        else:
            by_network = False
        x_chw = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    except MemoryError as error:
        message = (
            f"no memory for a result of {size[0]} x {size[1]} pixels (workers.in_flight_bytes)"
        )
        raise TooLargeError("device_memory", message) from error
    out = torch.from_numpy(result)
    alpha_hw = x_chw[-1] if by_network else None
    shown = 1 if gray else 3
    if channels == 1:
        count = shown + by_network
        parts = [Plane(x_chw[c : c + 1], out[:, :, c : c + 1], None) for c in range(count)]
        if by_network:
            parts[-1] = replace(parts[-1], alpha_hw=alpha_hw)
        return parts, result
    colour = x_chw[:1].expand(3, -1, -1) if gray else x_chw[:3]
    if channels == 4:
        full = torch.iinfo(x_chw.dtype).max
        fed = torch.cat([colour, x_chw[-1:] if has_alpha else torch.full_like(x_chw[:1], full)])
        mix = _mix_of_four(gray=gray, alpha=by_network)
        return [Plane(fed, out[:, :, : len(mix)], mix, alpha_hw)], result
    planes = [Plane(colour, out[:, :, :shown], (_MEAN,) if gray else None)]
    if by_network:
        planes.append(Plane(x_chw[-1:].expand(3, -1, -1), out[:, :, -1:], (_MEAN,), alpha_hw))
    return planes, result


def _mix_of_four(*, gray: bool, alpha: bool) -> tuple[tuple[float, ...], ...]:
    colours = [(*_MEAN, 0.0)] if gray else [(1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 1.0, 0)]
    return (*colours, *([(0.0, 0, 0, 1.0)] if alpha else []))


def pad(x_chw: Tensor, multiple: int) -> Tensor:
    """Reflected at the right and the bottom; where it is too small for that, its first row or
    column goes on."""
    for axis in (1, 2):
        side = x_chw.shape[axis]
        more = [max(0, side - 2 - index) for index in range(-side % multiple)]
        if more:
            index = torch.tensor([*range(side), *more])
            x_chw = x_chw.index_select(axis, index)
    return x_chw


class Result:
    """The result of a plane while its rows arrive: mixed, resized, rounded to whole levels."""

    def __init__(self, plane: Plane, scale: int) -> None:
        self._out = plane.out_hwc
        self._mix = plane.mix
        own = (plane.height * scale, plane.width * scale)
        target = (self._out.shape[0], self._out.shape[1])
        self._resize = Resizer(own, target) if plane.resized(scale) else None
        self._rows_left = own[0]
        self._width = own[1]
        self._made = 0
        self._largest: Tensor | None = None
        self._download = _Download()

    def add(self, y_chw: Tensor) -> None:
        """The next rows, float32 on the device; what exceeds the plane is left out."""
        y_chw = y_chw[:, : self._rows_left, : self._width]
        self._rows_left -= y_chw.shape[1]
        if not y_chw.numel():
            return
        self._note_largest(y_chw)
        if self._mix is not None:
            y_chw = _mixed(y_chw, self._mix)
        if self._resize is not None:
            y_chw = self._resize(y_chw)
        rows = self._out[self._made : self._made + y_chw.shape[1]]
        self._download.start(_quantise(y_chw, rows.dtype).permute(1, 2, 0), rows)
        self._made += len(rows)

    def finite(self) -> bool:
        """Whether all rows were, without NaN and infinity. Then all have arrived on the host."""
        self._download.finish(0)
        return self._largest is not None and bool(torch.isfinite(self._largest).all())

    def _note_largest(self, y_chw: Tensor) -> None:
        """Keeps one pair of extremes: thousands of small tensors that live as long as the picture
        would lie scattered between the large ones, whose memory could not be used again."""
        extremes = torch.stack(torch.aminmax(y_chw)).abs_()
        seen = self._largest
        self._largest = extremes if seen is None else torch.maximum(seen, extremes, out=seen)


class _Download:
    """Copies to the host: from CUDA through pinned memory, beside the device's further work."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._under_way = deque[tuple[torch.cuda.Event, Tensor, Tensor]]()

    def start(self, source: Tensor, target: Tensor) -> None:
        if source.device.type != "cuda":
            target.copy_(source)
            return
        self._stream = self._stream or torch.cuda.Stream(source.device)
        self._stream.wait_stream(torch.cuda.current_stream(source.device))
        pinned = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        with torch.cuda.stream(self._stream):
            pinned.copy_(source, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        source.record_stream(self._stream)
        self._under_way.append((copied, pinned, target))
        self.finish(1)  # two buffers: one is filled while the other is emptied

    def finish(self, left: int) -> None:
        """Waits until no more than so many are under way."""
        while len(self._under_way) > left:
            copied, pinned, target = self._under_way.popleft()
            copied.synchronize()
            target.copy_(pinned)


def _mixed(y_chw: Tensor, mix: Sequence[Sequence[float]]) -> Tensor:
    """Pixel by pixel, in one order: a matrix product would round by the number of pixels."""
    sums = [sum(gain * y_hw for gain, y_hw in zip(row, y_chw, strict=True) if gain) for row in mix]
    return torch.stack(cast(list[Tensor], sums))


def _quantise(x_chw: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 around [0, 1] to uint8 or uint16, rounded to nearest."""
    full = torch.iinfo(dtype).max
    return x_chw.mul(full).round_().clamp_(0, full).to(dtype)
