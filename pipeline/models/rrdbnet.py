"""RRDBNet: residual in residual dense blocks, then nearest-neighbour enlargement.

X. Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks" (2018); the
pixel-unshuffle in front is from X. Wang et al., "Real-ESRGAN" (2021); the 1x1 path from
N. C. Rakotonirina and A. Rasoanaivo, "ESRGAN+" (2020), without its noise.
Parameters are named as in the released Real-ESRGAN files.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ConfigError
from pipeline.models.graph import Graph, Step
from pipeline.models.steps import forward

_SLOPE = 0.2  # of the leaky ReLUs
_RESIDUAL = 0.2  # share of a block's result that is added to its input


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
        return self.graph().reach(self.unshuffle)

    def graph(self) -> Graph:
        """The network's steps; value 0 is the input with its pixels folded."""
        written = _Written(self)
        first = x = written.conv("conv_first", 0)
        for block in range(self.blocks):
            x = written.block(f"body.{block}", x)
        x = written.conv("conv_body", x, adds=((first, 1.0),))
        level = 1
        for index, factor in enumerate(self.upsampling, start=1):
            level *= factor
            x = written.conv(f"conv_up{index}", x, level=level, slope=_SLOPE)
        x = written.conv("conv_hr", x, level=level, slope=_SLOPE)
        written.conv("conv_last", x, level=level, channels=self.out_channels)
        return Graph(self.in_channels * self.unshuffle**2, tuple(written.steps))


class _Written:
    """A network being written down, step by step."""

    def __init__(self, shape: RRDBNetShape) -> None:
        self.steps: list[Step] = []
        self._shape = shape

    def conv(self, name: str, *reads: int, **more: Any) -> int:
        """The number of the value that the new step makes."""
        channels = more.pop("channels", self._shape.features)
        self.steps.append(Step(conv=name, reads=reads, channels=channels, **more))
        return len(self.steps)

    def block(self, name: str, x: int) -> int:
        """Residual in residual: three dense blocks in a row."""
        second = self._dense(f"{name}.rdb2", self._dense(f"{name}.rdb1", x))
        return self._dense(f"{name}.rdb3", second, (x, _RESIDUAL))

    def _dense(self, name: str, x: int, *outer: tuple[int, float]) -> int:
        """Five convolutions, each of which sees what all before it made."""
        grow: dict[str, Any] = {"channels": self._shape.growth, "slope": _SLOPE}
        plus = self._shape.plus
        x1 = self.conv(f"{name}.conv1", x, **grow)
        beside: tuple[tuple[int, float], ...] = ()
        if plus:
            narrow = self.conv(f"{name}.conv1x1", x, channels=self._shape.growth, radius=0)
            beside = ((narrow, 1.0),)
        x2 = self.conv(f"{name}.conv2", x, x1, **grow, adds=beside)
        x3 = self.conv(f"{name}.conv3", x, x1, x2, **grow)
        beside = ((x2, 1.0),) if plus else ()
        x4 = self.conv(f"{name}.conv4", x, x1, x2, x3, **grow, adds=beside)
        return self.conv(f"{name}.conv5", x, x1, x2, x3, x4, adds=((x, _RESIDUAL), *outer))


class RRDBNet(nn.Module):
    """The generator. `shape` holds its hyper-parameters."""

    def __init__(self, shape: RRDBNetShape) -> None:
        super().__init__()
        self.shape = shape
        self._graph = shape.graph()
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
        folded = functional.pixel_unshuffle(x_bchw, self.shape.unshuffle)
        return forward(self, self._graph, folded)


class _Block(nn.Module):
    """Weights of three dense blocks in a row."""

    def __init__(self, shape: RRDBNetShape) -> None:
        super().__init__()
        self.rdb1 = _DenseBlock(shape)
        self.rdb2 = _DenseBlock(shape)
        self.rdb3 = _DenseBlock(shape)


class _DenseBlock(nn.Module):
    """Weights of five convolutions, and of ESRGAN+'s 1x1 path."""

    def __init__(self, shape: RRDBNetShape) -> None:
        super().__init__()
        features, growth = shape.features, shape.growth
        self.conv1 = _conv3x3(features, growth)
        self.conv2 = _conv3x3(features + growth, growth)
        self.conv3 = _conv3x3(features + 2 * growth, growth)
        self.conv4 = _conv3x3(features + 3 * growth, growth)
        self.conv5 = _conv3x3(features + 4 * growth, features)
        self.conv1x1 = nn.Conv2d(features, growth, 1, bias=False) if shape.plus else None


def _conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
