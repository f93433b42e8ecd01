"""SRVGGNetCompact: a plain stack of convolutions at input resolution, added to the enlarged input.

From X. Wang et al., Real-ESRGAN (release v0.2.3.0, 2021). Parameters are named as in its files:
`body.0` is a convolution, `body.1` an activation, and so on, the last one a convolution.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Literal, get_args

from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.graph import Graph, Step
from pipeline.models.steps import forward

Activation = Literal["prelu", "relu", "leakyrelu"]

# Of the activations without weights, as slopes of a leaky ReLU.
_SLOPES = {"relu": 0.0, "leakyrelu": 0.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class SRVGGShape:
    """Hyper-parameters. Raises ConfigError when they make no network.

    in_channels, out_channels: of the picture; they differ only where gray is made into colour,
    because the input is added to the result. features: channels of the stack. convs: convolutions
    besides the first and the last. scale: output pixels per input pixel, along a side.
    """

    in_channels: int = 3
    out_channels: int = 3
    features: int = 64
    convs: int = 16
    scale: int = 4
    activation: Activation = "prelu"

    def __post_init__(self) -> None:
        least = min(self.in_channels, self.out_channels, self.features)
        if least < 1 or self.convs < 0:
            raise ConfigError(
                f"channels and features start at 1, not {least}, and convs at 0, not {self.convs}"
            )
        if not 1 <= self.scale <= 16:
            raise ConfigError(f"scale {self.scale} is not between 1 and 16")
        if self.in_channels not in (1, self.out_channels):
            raise ConfigError(
                f"{self.in_channels} channels cannot be added to {self.out_channels}: "
                "in_channels must be 1 or equal to out_channels"
            )
        if self.activation not in get_args(Activation):
            raise ConfigError(
                f"activation {self.activation!r} is none of {', '.join(get_args(Activation))}"
            )

    @property
    def multiple(self) -> int:
        """Height and width of the input must be multiples of this."""
        return 1

    @property
    def radius(self) -> int:
        """How far from an output pixel, in input pixels along a side, inputs can change it."""
        return self.graph().reach(self.multiple)

    def graph(self) -> Graph:
        """The network's steps."""
        steps = [
            Step(
                conv=f"body.{2 * n}",
                reads=(n,),
                channels=self.features,
                slope=_SLOPES.get(self.activation, f"body.{2 * n + 1}.weight"),
            )
            for n in range(self.convs + 1)
        ]
        last = Step(
            conv=f"body.{2 * len(steps)}",
            reads=(len(steps),),
            channels=self.out_channels,
            shuffle=self.scale,
            adds=((0, 1.0),),
        )
        return Graph(self.in_channels, (*steps, last))


class SRVGGNetCompact(nn.Module):
    """The generator. `shape` holds its hyper-parameters."""

    def __init__(self, shape: SRVGGShape) -> None:
        super().__init__()
        self.shape = shape
        self._graph = shape.graph()
        features = shape.features
        widths = [shape.in_channels] + [features] * shape.convs
        stack = chain.from_iterable(
            (_conv3x3(width, features), _activation(shape)) for width in widths
        )
        last = _conv3x3(features, shape.out_channels * shape.scale**2)
        self.body = nn.Sequential(*stack, last)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Enlarge pictures.

        x_bchw: float32 (B, in_channels, H, W) in [0, 1], of any size.
        Returns float32 (B, out_channels, H * scale, W * scale), not clamped. The convolutions run
        in the dtype of the weights, the sum with the enlarged input in float32.
        """
        return forward(self, self._graph, x_bchw)


def _conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _activation(shape: SRVGGShape) -> nn.Module:
    match shape.activation:
        case "prelu":
            return nn.PReLU(shape.features)
        case "relu":
            return nn.ReLU(inplace=True)
        case "leakyrelu":
            return nn.LeakyReLU(_SLOPES["leakyrelu"], inplace=True)
