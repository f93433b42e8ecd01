"""A generator on its device: carries out what `sweep` has planned, on tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.engine import sweep
from pipeline.models.graph import Graph, Step
from pipeline.models.steps import add_residuals, concatenated, convolve, enlarge

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Network:
    """A generator's weights in one precision, ready to run. Keeps nothing between pictures."""

    def __init__(
        self, model: nn.Module, graph: Graph, *, fold: int, device: torch.device, precision: str
    ) -> None:
        """model: in fp32. graph: its steps. fold: pixels along a side that value 0 takes as one.

        precision: fp32, fp16 or bf16, of the convolutions. Sums are in fp32 always. In bf16 the
        first and the last convolution are in fp32, too: one of its steps is a whole level of 255,
        and the two cost little.
        """
        self.graph = graph
        self._fold = fold
        weights = {
            name: p.detach().to(device, memory_format=_layout(p))
            for name, p in model.named_parameters()
        }
        kept_full = [graph.steps[0], graph.steps[-1]] if precision == "bf16" else []
        full = {name for step in kept_full for name in _names(step)}
        dtype = DTYPES[precision]
        self._weights = {n: w if n in full else w.to(dtype) for n, w in weights.items()}
        self._copies = self._needed_copies()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of one element of each value, in all the precisions in which it is kept."""
        kept = [sum(dtype.itemsize for dtype in copies) for copies in self._copies]
        return (*kept[:-1], torch.float32.itemsize)

    def run(self, x_bchw: Tensor, rows: int, gutter: "Gutter | None" = None) -> Iterator[Tensor]:
        """The results of some pictures, from top to bottom in pieces of any height.

        x_bchw: uint8 or uint16 (B, C, H, W) on the device, sides multiples of the fold. rows: of
        value 0 in a turn. gutter: where the picture is a canvas of many.
        Yields float32 (B, C, rows, W * scale), not clamped.
        """
        values = [_Value(copies) for copies in self._copies]
        height, fold = x_bchw.shape[2] // self._fold, self._fold
        full = torch.iinfo(x_bchw.dtype).max
        for turn in sweep.turns(self.graph, height, rows):
            if turn.stop > turn.start:
                x = x_bchw[:, :, turn.start * fold : turn.stop * fold].float().div_(full)
                x = functional.pixel_unshuffle(x, fold)
                values[0].append(x.contiguous(memory_format=torch.channels_last))
            for task in turn.tasks:
                y = self._make(task, values, height, gutter)
                if task.step == len(self.graph.steps) - 1:
                    yield y.float()
                else:
                    values[task.step + 1].append(y)
                for value, row in task.spent:
                    values[value].drop(row)

    def _make(
        self, task: sweep.Task, values: Sequence["_Value"], height: int, gutter: "Gutter | None"
    ) -> Tensor:
        """The rows of a task, from those of earlier values."""
        step, levels = self.graph.steps[task.step], self.graph.levels
        dtype = self._weights[f"{step.conv}.weight"].dtype
        start, stop = task.start - step.radius, task.stop + step.radius
        above, below = max(0, -start), max(0, stop - height * step.level)
        seen = [
            _enlarged(values[v], dtype, start + above, stop - below, step.level // levels[v])
            for v in step.reads
        ]
        x = concatenated(seen, dtype)
        if above != below:  # zeros on one side only
            x = functional.pad(x, (0, 0, above, below))
        padding = (above if above == below else 0, step.radius)
        y = convolve(step, self._weights, x, padding=padding)
        if gutter is not None and task.step < len(self.graph.steps) - 1:  # nobody reads the last
            gutter.clear(y, task.start * step.shuffle, step.level * step.shuffle)
        made, level = (task.start * step.shuffle, task.stop * step.shuffle), levels[task.step + 1]
        addends = [_enlarged(values[v], None, *made, level // levels[v]) for v, _ in step.adds]
        return add_residuals(step, y, addends)

    def _needed_copies(self) -> list[tuple[torch.dtype, ...]]:
        """For each value, the precisions in which later steps want it; its own comes first."""
        dtypes = [self._weights[f"{step.conv}.weight"].dtype for step in self.graph.steps]
        own = [torch.float32] + [
            torch.float32 if step.adds else dtype
            for step, dtype in zip(self.graph.steps, dtypes, strict=True)
        ]
        copies: list[dict[torch.dtype, None]] = [{} for _ in own]
        for step, dtype in zip(self.graph.steps, dtypes, strict=True):
            for value, _ in step.adds:
                copies[value] = {own[value]: None} | copies[value]
            for value in step.reads:
                copies[value][dtype] = None
        return [tuple(wanted) for wanted in copies]


class Gutter:
    """The pixels between the pictures of a canvas, which every convolution has to find at zero."""

    def __init__(self, taken: Tensor) -> None:
        """taken: bool (H, W) of value 0, on the device: true where pictures are."""
        self._taken = taken
        self._levels = dict[int, tuple[Tensor, list[int]]]()

    def clear(self, y_bchw: Tensor, first_row: int, level: int) -> None:
        """Zeroes the gutter in some rows of one canvas (B is 1), in place.

        Written, not multiplied: a picture that overflowed would give NaN to its neighbours. By
        index, because few pixels are gutter: a masked pass over all of them takes three times as
        long.
        """
        rows, width = y_bchw.shape[2:]
        free, starts = self._at(level)
        index = free[starts[first_row] : starts[first_row + rows]] - first_row * width
        # Channels last: the pixels of one picture are rows of a matrix.
        pixels = y_bchw.permute(0, 2, 3, 1).view(rows * width, -1)
        pixels.index_fill_(0, index, 0)

    def _at(self, level: int) -> tuple[Tensor, list[int]]:
        """Numbers of the free pixels in order, and how many are before each row."""
        if level not in self._levels:
            free = ~self._taken
            free = free.repeat_interleave(level, 0).repeat_interleave(level, 1)
            counts = free.sum(dim=1).cumsum(0).tolist()
            self._levels[level] = free.flatten().nonzero()[:, 0], [0, *counts]
        return self._levels[level]


@dataclass(slots=True)
class _Value:
    """The rows of a value that are at hand, in each precision that is wanted."""

    dtypes: tuple[torch.dtype, ...]
    first: int = 0
    pieces: dict[torch.dtype, Tensor] = field(default_factory=dict[torch.dtype, Tensor])

    def append(self, rows_bchw: Tensor) -> None:
        for dtype in self.dtypes:
            rows, held = rows_bchw.to(dtype), self.pieces.get(dtype)
            if held is not None and held.shape[2]:
                rows = torch.cat((held, rows), dim=2)
            self.pieces[dtype] = rows

    def take(self, dtype: torch.dtype | None, start: int, stop: int) -> Tensor:
        """Rows in this precision, or in its own."""
        held = self.pieces[dtype or self.dtypes[0]]
        return held[:, :, start - self.first : stop - self.first]

    def drop(self, row: int) -> None:
        """Forgets all rows before this one."""
        if row > self.first:
            for dtype, held in self.pieces.items():
                # Copied: a view would hold on to all of it.
                self.pieces[dtype] = held[:, :, row - self.first :].clone()
            self.first = row


def _enlarged(
    value: _Value, dtype: torch.dtype | None, start: int, stop: int, factor: int
) -> Tensor:
    """Rows of a value after its enlargement, half open."""
    first = start // factor
    rows = enlarge(value.take(dtype, first, -(-stop // factor)), factor)
    return rows[:, :, start - first * factor : stop - first * factor]


def _names(step: Step) -> Iterator[str]:
    """The parameters that a step uses."""
    yield from (f"{step.conv}.weight", f"{step.conv}.bias")
    if isinstance(step.slope, str):
        yield step.slope


def _layout(parameter: Tensor) -> torch.memory_format:
    return torch.channels_last if parameter.dim() == 4 else torch.contiguous_format
