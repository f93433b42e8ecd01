"""Carries out the steps of a graph on tensors."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.graph import Graph, Step


def forward(network: nn.Module, graph: Graph, x_bchw: Tensor) -> Tensor:
    """All steps on whole pictures, with gradients where they are wanted.

    x_bchw: value 0, float32. Convolutions run in the dtype of their weights, or in autocast's where
    that is on, residuals in float32. Returns float32.
    """
    weights = dict(network.named_parameters())
    cast = _autocast(x_bchw.device.type)
    values: list[Tensor | None] = [x_bchw]
    for step, level, spent in zip(graph.steps, graph.levels[1:], graph.spent, strict=True):
        dtype = cast or weights[f"{step.conv}.weight"].dtype
        read = [_at(values[value], step.level // graph.levels[value]) for value in step.reads]
        y = convolve(step, weights, concatenated(read, dtype), padding=(step.radius, step.radius))
        addends = [_at(values[value], level // graph.levels[value]) for value, _ in step.adds]
        values.append(add_residuals(step, y, addends))
        for value in spent:
            values[value] = None
    result = values[-1]
    assert result is not None
    return result.float()


def _autocast(kind: str) -> torch.dtype | None:
    """The dtype that convolutions are cast to on this kind of device; None where they are not."""
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def concatenated(values: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Along the channels; a single value is not copied."""
    cast = [value.to(dtype) for value in values]
    return cast[0] if len(cast) == 1 else torch.cat(cast, dim=1)


def convolve(
    step: Step, weights: Mapping[str, Tensor], x_bchw: Tensor, *, padding: tuple[int, int]
) -> Tensor:
    """The step's convolution, activation and pixel shuffle.

    x_bchw: what it reads, concatenated, in the dtype of its weights. padding: zeros above and
    below, and at both sides.
    """
    bias = weights.get(f"{step.conv}.bias")
    y = functional.conv2d(x_bchw, weights[f"{step.conv}.weight"], bias, padding=padding)
    if isinstance(step.slope, str):
        y = functional.prelu(y, weights[step.slope])
    elif step.slope is not None:
        y = functional.leaky_relu(y, step.slope, inplace=True)
    return functional.pixel_shuffle(y, step.shuffle) if step.shuffle > 1 else y


def add_residuals(step: Step, y: Tensor, addends: Sequence[Tensor]) -> Tensor:
    """In float32: sums of many blocks in half precision drift."""
    if not step.adds:
        return y
    y = y.float()
    for (_, gain), addend in zip(step.adds, addends, strict=True):
        if step.slope is not None:  # not in place: the activation's gradient needs its result
            y = y * gain + addend
        else:
            y = (y if gain == 1 else y.mul_(gain)).add_(addend)
    return y


def enlarge(x_bchw: Tensor, factor: int) -> Tensor:
    """Nearest neighbour."""
    if factor == 1:
        return x_bchw
    return functional.interpolate(x_bchw, scale_factor=float(factor), mode="nearest")


def _at(value: Tensor | None, factor: int) -> Tensor:
    assert value is not None  # dropped after its last use, not before
    return enlarge(value, factor)
