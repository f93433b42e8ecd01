"""The discriminator: a U-Net that says of every pixel how real its surroundings look.

X. Wang et al., "Real-ESRGAN" (2021); the spectral normalisation is from T. Miyato et
al., "Spectral Normalization for Generative Adversarial Networks" (2018). Parameters are named as in
the released *_netD files.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ConfigError
from pipeline.models import formats
from pipeline.models.formats import Contents

_SLOPE = 0.2  # of the leaky ReLUs
_FIRST_ITERATIONS = 15  # of the power method, from a random vector
_MAX_DEPTH = 8  # of dicts in a file
_SHOWN = 3  # names that an error message lists


class _SpectralConv2d(nn.Module):
    """A convolution without bias, its weight divided by its greatest singular value.

    That value is estimated by the singular vectors u and v, which follow the weight by the power
    method. They are state, and only `iterate` changes them.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, inputs: int, outputs: int, *, side: int, stride: int = 1) -> None:
        super().__init__()
        self._stride = stride
        self.weight_orig = nn.Parameter(torch.empty(outputs, inputs, side, side))
        self.register_buffer("weight_u", torch.empty(outputs))
        self.register_buffer("weight_v", torch.empty(inputs * side * side))

    def forward(self, x_bchw: Tensor) -> Tensor:
        return functional.conv2d(x_bchw, self._normalised(), stride=self._stride, padding=1)

    def _normalised(self) -> Tensor:
        """The weight over its norm, in float32 whatever the convolutions run in."""
        # Copies, because autograd keeps what it multiplies with, and `iterate` may come before it.
        u, v = self.weight_u.clone(), self.weight_v.clone()
        with torch.autocast(self.weight_orig.device.type, enabled=False):
            return self.weight_orig / (u @ (self.weight_orig.flatten(1) @ v))

    @torch.no_grad()
    def iterate(self) -> None:
        """One iteration of the power method."""
        with torch.autocast(self.weight_orig.device.type, enabled=False):
            matrix = self.weight_orig.flatten(1)
            self.weight_v.copy_(functional.normalize(matrix.T @ self.weight_u, dim=0))
            self.weight_u.copy_(functional.normalize(matrix @ self.weight_v, dim=0))


class UNetDiscriminator(nn.Module):
    """The discriminator. `new_discriminator` and `load_discriminator` make one with weights.

    Its normalisation has a state, which `forward` leaves alone, in training mode too: torch's own
    spectral norm changes it at each pass, so that the result would depend on how many passes a
    batch is cut into. The training loop calls `iterate` instead, before each phase that uses the
    discriminator, however many lanes or workers that has. The state is part of `state_dict`, and
    follows from the weights alone: workers with the same weights agree without talking.

    features: channels of the outermost layers. channels: of the pictures. Its tensors are
    uninitialised, and below `torch.device("meta")` without memory.
    """

    def __init__(self, features: int = 64, channels: int = 3) -> None:
        super().__init__()
        n = features
        self.conv0 = nn.Conv2d(channels, n, 3, padding=1)
        self.conv1 = _SpectralConv2d(n, 2 * n, side=4, stride=2)
        self.conv2 = _SpectralConv2d(2 * n, 4 * n, side=4, stride=2)
        self.conv3 = _SpectralConv2d(4 * n, 8 * n, side=4, stride=2)
        self.conv4 = _SpectralConv2d(8 * n, 4 * n, side=3)
        self.conv5 = _SpectralConv2d(4 * n, 2 * n, side=3)
        self.conv6 = _SpectralConv2d(2 * n, n, side=3)
        self.conv7 = _SpectralConv2d(n, n, side=3)
        self.conv8 = _SpectralConv2d(n, n, side=3)
        self.conv9 = nn.Conv2d(n, 1, 3, padding=1)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Judge pictures.

        x_bchw: float32 (B, channels, H, W) in [0, 1], H and W at least 8. Where a side is odd on
        the way down, its enlargement on the way up is to the odd side, not to its double.
        Returns logits (B, 1, H, W), above 0 for what looks real.
        """
        x0 = _leaky_relu(self.conv0(x_bchw))
        x1 = _leaky_relu(self.conv1(x0))
        x2 = _leaky_relu(self.conv2(x1))
        x = _leaky_relu(self.conv3(x2))
        x = _leaky_relu(self.conv4(_upsampled(x, x2))) + x2
        x = _leaky_relu(self.conv5(_upsampled(x, x1))) + x1
        x = _leaky_relu(self.conv6(_upsampled(x, x0))) + x0
        return self.conv9(_leaky_relu(self.conv8(_leaky_relu(self.conv7(x)))))

    def iterate(self) -> None:
        """Let the normalisation follow the weights: one power iteration of each layer."""
        for layer in self.children():
            if isinstance(layer, _SpectralConv2d):
                layer.iterate()


def _leaky_relu(x_bchw: Tensor) -> Tensor:
    return functional.leaky_relu(x_bchw, _SLOPE)


def _upsampled(x_bchw: Tensor, like_bchw: Tensor) -> Tensor:
    size = like_bchw.shape[-2:]
    return functional.interpolate(x_bchw, size=size, mode="bilinear", align_corners=False)


def new_discriminator(
    rng: np.random.Generator, *, features: int = 64, channels: int = 3
) -> UNetDiscriminator:
    """A discriminator that has learned nothing: float32, on the CPU.

    Weights and biases are uniform up to 1 / sqrt(fan in), which is what torch's convolutions, and
    so the reference, begin with. The singular vectors have settled, unlike the reference's.
    """
    network = _empty(features, channels).to_empty(device="cpu")
    with torch.no_grad():
        for layer in network.children():
            spectral = isinstance(layer, _SpectralConv2d)
            weight = layer.get_parameter("weight_orig" if spectral else "weight")
            bound = weight[0].numel() ** -0.5
            for values in layer.parameters():
                values.copy_(torch.from_numpy(rng.uniform(-bound, bound, tuple(values.shape))))
            if spectral:
                layer.weight_u.copy_(torch.from_numpy(rng.standard_normal(len(layer.weight_u))))
                for _ in range(_FIRST_ITERATIONS):
                    layer.iterate()
    return network


def _empty(features: int, channels: int) -> UNetDiscriminator:
    with torch.device("meta"):
        return UNetDiscriminator(features, channels)


# ------------------------------------------------------------------------------------ checkpoints

# A file's own name of one of our tensors, below whatever dicts and prefixes; mmagic has conv_0.
_NAME = re.compile(r"(?P<prefix>(?:.*\.)?)conv_?(?P<layer>\d)\.(?P<tensor>weight\w*|bias)")


def load_discriminator(source: bytes | Path) -> UNetDiscriminator:
    """The discriminator in a checkpoint of the official code, of mmagic or of our own.

    source: a file's bytes or its path. It may be below `params`, `discriminator`, `module` or any
    other dict or prefix; where there are several, an averaged one (`params_ema`) comes last.
    Returns it float32, on the CPU; features and channels are those of the file.
    Raises ConfigError for whatever is no such checkpoint, and says what was found.
    """
    name = "the discriminator" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        return _recognise(formats.parse(data))
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror or type(error).__name__}") from error
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _recognise(contents: Contents) -> UNetDiscriminator:
    tensors = _find(contents.tree)
    features, channels = _widths(tensors["conv0.weight"])
    network = _empty(features, channels)
    for name, wanted in network.state_dict().items():
        _check(name, tensors[name], tuple(wanted.shape))
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > contents.held_bytes:  # views that repeat values
        raise ConfigError(
            f"its tensors claim {claimed:,} bytes, the file has {contents.held_bytes:,}"
        )
    network.to_empty(device="cpu").load_state_dict(tensors)
    return network


def _find(tree: Any) -> dict[str, Tensor]:
    """The tensors of a whole discriminator, by our names."""
    leaves = dict(_leaves(tree, "", _MAX_DEPTH))
    found: dict[str, dict[str, Tensor]] = {}
    for path, value in leaves.items():
        named = _NAME.fullmatch(path)
        if named is not None and isinstance(value, Tensor):
            ours = f"conv{named['layer']}.{named['tensor']}"
            found.setdefault(named["prefix"], {})[ours] = value
    names = _empty(1, 1).state_dict().keys()
    whole = [prefix for prefix, tensors in found.items() if tensors.keys() == names]
    if not whole:
        inside = ", ".join(list(leaves)[:_SHOWN]) or f"nothing but {type(tree).__name__}"
        raise ConfigError(
            f"no U-Net discriminator with spectral norm (conv0 to conv9) in it, but {inside}"
        )
    return found[min(whole, key=lambda prefix: "ema" in prefix)]


def _leaves(tree: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    """What is in nested dicts, by dotted paths."""
    if not isinstance(tree, Mapping):
        return
    for key, value in cast(Mapping[Any, Any], tree).items():
        if isinstance(value, Mapping) and depth:
            yield from _leaves(value, f"{prefix}{key}.", depth - 1)
        else:
            yield f"{prefix}{key}", value


def _widths(weight: Tensor) -> tuple[int, int]:
    """Features and channels, by the first convolution."""
    sizes = tuple(weight.shape)
    if len(sizes) != 4 or min(sizes) < 1:
        raise ConfigError(f"conv0.weight has shape {sizes}, wanted is (features, channels, 3, 3)")
    return sizes[0], sizes[1]


def _check(name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != wanted:
        raise ConfigError(f"{name} has shape {tuple(tensor.shape)}, wanted is {wanted}")
    if tensor.layout is not torch.strided or not tensor.is_floating_point():
        raise ConfigError(f"{name} is {tensor.dtype}, {tensor.layout}: no plain floats")
    if not torch.isfinite(tensor).all():
        raise ConfigError(f"{name} holds NaN or infinity: its training diverged, or it is broken")
