"""RRDBNet: residual in residual dense blocks, then nearest-neighbour enlargement.

X. Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks" (2018); the
pixel-unshuffle in front is from X. Wang et al., "Real-ESRGAN" (2021); the 1x1 path from
N. C. Rakotonirina and A. Rasoanaivo, "ESRGAN+" (2020), without its noise.
Parameters are named as in the released Real-ESRGAN files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ConfigError

_SLOPE = 0.2  # of the leaky ReLUs
_RESIDUAL = 0.2  # share of a block's result that is added to its input
_BLOCK_RADIUS = 15  # three dense blocks of five 3x3 convolutions


@dataclass(frozen=True, slots=True, kw_only=True)
class RRDBNetShape:
    """Hyper-parameters. Raises ConfigError when they make no network.

    in_channels, out_channels: of the picture. features: channels between the blocks. growth:
    channels that each convolution of a dense block adds. upsampling: factors of the enlargements
    behind the blocks, one convolution each. unshuffle: side of the squares of input pixels that
    are folded into channels before the first convolution. plus: with ESRGAN+'s 1x1 convolutions.
    """

    in_channels: int = 3
    out_channels: int = 3
    features: int = 64
    blocks: int = 23
    growth: int = 32
    upsampling: tuple[int, ...] = (2, 2)
    unshuffle: int = 1
    plus: bool = False

    def __post_init__(self) -> None:
        least = min(self.in_channels, self.out_channels, self.features, self.blocks, self.growth)
        if least < 1:
            raise ConfigError(f"channels, features, blocks and growth start at 1, not {least}")
        if self.unshuffle < 1 or not all(2 <= factor <= 4 for factor in self.upsampling):
            raise ConfigError(
                f"unshuffle {self.unshuffle} must be at least 1 and the upsampling factors "
                f"{list(self.upsampling)} between 2 and 4"
            )
        if prod(self.upsampling) % self.unshuffle:
            raise ConfigError(
                f"upsampling {list(self.upsampling)} behind unshuffle {self.unshuffle} "
                "gives no whole scale"
            )

    @property
    def scale(self) -> int:
        """Output pixels per input pixel, along a side."""
        return prod(self.upsampling) // self.unshuffle

    @property
    def multiple(self) -> int:
        """Height and width of the input must be multiples of this."""
        return self.unshuffle

    @property
    def radius(self) -> int:
        """How far from an output pixel, in input pixels along a side, inputs can change it."""
        return max(self._reach(phase) for phase in range(prod(self.upsampling)))

    @property
    def peak_values(self) -> int:
        """Values that `forward` holds at once without gradients, per input pixel.

        In units of the weights' dtype, for half precision; single precision needs a little less.
        """
        block = 5 * self.features + 8 * self.growth  # what the last convolution sees comes twice
        tail = self.features + max(self.features, 3 * self.out_channels)
        peak = max(block, tail * prod(self.upsampling) ** 2)
        return -(-peak // self.unshuffle**2) + 3 * self.in_channels

    def _reach(self, phase: int) -> int:
        """The radius for one of the output pixels made from the first pixel between the blocks."""
        low, high = phase - 2, phase + 2  # conv_hr and conv_last
        for factor in reversed(self.upsampling):
            low, high = (low - 1) // factor, (high + 1) // factor
        low -= _BLOCK_RADIUS * self.blocks + 2  # conv_first and conv_body
        high += _BLOCK_RADIUS * self.blocks + 2
        own = phase // self.scale
        last = high * self.unshuffle + self.unshuffle - 1
        return max(own - low * self.unshuffle, last - own)


class RRDBNet(nn.Module):
    """The generator. `shape` holds its hyper-parameters."""

    def __init__(self, shape: RRDBNetShape) -> None:
        super().__init__()
        self.shape = shape
        features = shape.features
        self.conv_first = _conv3x3(shape.in_channels * shape.unshuffle**2, features)
        self.body = nn.Sequential(*(_Block(shape) for _ in range(shape.blocks)))
        self.conv_body = _conv3x3(features, features)
        for index in range(1, len(shape.upsampling) + 1):
            self.add_module(f"conv_up{index}", _conv3x3(features, features))
        self.conv_hr = _conv3x3(features, features)
        self.conv_last = _conv3x3(features, shape.out_channels)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Enlarge pictures.

        x_bchw: float32 (B, in_channels, H, W) in [0, 1], H and W multiples of `shape.multiple`.
        Returns float32 (B, out_channels, H * scale, W * scale), not clamped. The convolutions run
        in the dtype of the weights.
        """
        features = self._trunk(x_bchw.to(self.conv_first.weight.dtype))
        for factor, conv in self._enlargements():
            features = functional.interpolate(features, scale_factor=factor, mode="nearest")
            features = _activate(conv(features))
        features = _activate(self.conv_hr(features))
        return self.conv_last(features).float()

    def _trunk(self, x: Tensor) -> Tensor:
        first = self.conv_first(functional.pixel_unshuffle(x, self.shape.unshuffle))
        return self.conv_body(self.body(first)).add_(first)

    def _enlargements(self) -> Iterator[tuple[float, nn.Module]]:
        for index, factor in enumerate(self.shape.upsampling, start=1):
            yield float(factor), cast(nn.Module, getattr(self, f"conv_up{index}"))


class _Block(nn.Module):
    """Residual in residual: three dense blocks in a row."""

    def __init__(self, shape: RRDBNetShape) -> None:
        super().__init__()
        self.rdb1 = _DenseBlock(shape)
        self.rdb2 = _DenseBlock(shape)
        self.rdb3 = _DenseBlock(shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.rdb3(self.rdb2(self.rdb1(x))).mul_(_RESIDUAL).add_(x)


class _DenseBlock(nn.Module):
    """Five convolutions, each of which sees what all before it made."""

    def __init__(self, shape: RRDBNetShape) -> None:
        super().__init__()
        features, growth = shape.features, shape.growth
        self.conv1 = _conv3x3(features, growth)
        self.conv2 = _conv3x3(features + growth, growth)
        self.conv3 = _conv3x3(features + 2 * growth, growth)
        self.conv4 = _conv3x3(features + 3 * growth, growth)
        self.conv5 = _conv3x3(features + 4 * growth, features)
        self.conv1x1 = nn.Conv2d(features, growth, 1, bias=False) if shape.plus else None

    def forward(self, x: Tensor) -> Tensor:
        x1 = _activate(self.conv1(x))
        x2 = _activate(self.conv2(torch.cat((x, x1), 1)))
        if self.conv1x1 is not None:
            x2 = x2 + self.conv1x1(x)  # not in place: the activation's gradient needs its result
        x3 = _activate(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = _activate(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        if self.conv1x1 is not None:
            x4 = x4 + x2
        return self.conv5(torch.cat((x, x1, x2, x3, x4), 1)).mul_(_RESIDUAL).add_(x)


def _conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _activate(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, _SLOPE, inplace=True)
