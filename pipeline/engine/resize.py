"""Bicubic resizing with antialiasing, of a picture that arrives row by row.

R. G. Keys, "Cubic Convolution Interpolation for Digital Image Processing", IEEE Transactions on
Acoustics, Speech, and Signal Processing 29(6), 1981, with a = -0.5; made wider where the picture
shrinks, as Pillow and torch do it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

_SUPPORT = 2.0  # rows on both sides that the kernel covers at scale 1


class Resizer:
    """One picture on its way to another size. Rows go in from the top and come out as soon as all
    that they depend on has gone in: the picture is never held whole."""

    def __init__(self, size: tuple[int, int], target: tuple[int, int]) -> None:
        """size, target: (height, width) before and after."""
        self._height = size[0]
        self._target = target
        self._ratio = size[0] / target[0]
        self._held: Tensor | None = None
        self._first = 0  # row of the first that is held
        self._made = 0

    def __call__(self, rows_chw: Tensor) -> Tensor:
        """Resized rows: float32 (C, any number, W'), in order.

        rows_chw: float32 (C, rows, W), the next ones.
        """
        shape = (rows_chw.shape[1], self._target[1])
        # At equal height this leaves the rows as they are.
        narrow = functional.interpolate(rows_chw[None], shape, mode="bicubic", antialias=True)[0]
        held = narrow if self._held is None else torch.cat((self._held, narrow), dim=1)
        arrived = self._first + held.shape[1]
        windows = list(self._ready(arrived))
        matrix = torch.zeros(len(windows), held.shape[1], dtype=held.dtype)
        for index, (start, weights) in enumerate(windows):
            start -= self._first
            matrix[index, start : start + len(weights)] = weights
        made = torch.einsum("oi,ciw->cow", matrix.to(held.device), held)
        self._made += len(windows)
        start = (
            min(self._window(self._made)[0], arrived) if self._made < self._target[0] else arrived
        )
        self._held, self._first = held[:, start - self._first :], start
        return made

    def _ready(self, arrived: int) -> Iterator[tuple[int, Tensor]]:
        """First row and weights of each resized row whose rows have arrived."""
        for row in range(self._made, self._target[0]):
            start, stop = self._window(row)
            if stop > arrived:
                return
            widening = max(1.0, self._ratio)
            centres = torch.arange(start, stop, dtype=torch.float64) + 0.5
            weights = _kernel((centres - self._centre(row)) / widening)
            yield start, (weights / weights.sum()).float()

    def _window(self, row: int) -> tuple[int, int]:
        """The rows that a resized row depends on."""
        reach = _SUPPORT * max(1.0, self._ratio)
        centre = self._centre(row)
        return max(0, int(centre - reach + 0.5)), min(self._height, int(centre + reach + 0.5))

    def _centre(self, row: int) -> float:
        return (row + 0.5) * self._ratio


def _kernel(x: Tensor) -> Tensor:
    """Keys' cubic at distances x."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
