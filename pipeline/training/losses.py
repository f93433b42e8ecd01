"""What generator and discriminator are trained to lower.

X. Wang et al., "Real-ESRGAN" (2021), with the weights of its released YAML files; the perceptual
loss is from J. Johnson et al., "Perceptual Losses for Real-Time Style Transfer and
Super-Resolution" (2016), on features before their activation as in "ESRGAN" (2018). All losses are
float32 scalars, whatever precision the networks run in.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ConfigError
from pipeline.models import formats
from pipeline.models.files import ModelFile, fetch, local_path
from pipeline.storage import Store
from pipeline.uris import absolute, redact

# torchvision's release; its name holds the first digits of the hash. Size and whole hash agree
# over five public projects that pin it.
VGG19 = ModelFile(
    name="vgg19-dcbb9e9d.pth",
    uris=("https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",),
    sha256="dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
    bytes=574_673_361,
)

# The convolutions between VGG19's poolings, by their numbers in its file, and the weight of what
# the last of each makes: conv1_2, conv2_2, conv3_4, conv4_4 and conv5_4.
_BLOCKS = (
    ((0, 2), 0.1),
    ((5, 7), 0.1),
    ((10, 12, 14, 16), 1.0),
    ((19, 21, 23, 25), 1.0),
    ((28, 30, 32, 34), 1.0),
)
# Of ImageNet's pictures, RGB in [0, 1].
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def l1(x: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of two tensors of one shape."""
    return functional.l1_loss(x.float(), target.float())


def generator_loss(logits_fake: Tensor) -> Tensor:
    """How far the discriminator is from taking the generator's pictures for real.

    logits_fake: its logits for them, of any shape. Returns the mean binary cross-entropy against 1.
    """
    return discriminator_loss(logits_fake, real=True)


def discriminator_loss(logits: Tensor, *, real: bool) -> Tensor:
    """How far the discriminator is from the truth about pictures of one kind.

    logits: of any shape. Returns the mean binary cross-entropy against 1 for real pictures, against
    0 for the generator's. The recipe takes the sum of both, not their mean, as two backward passes.
    """
    return functional.binary_cross_entropy_with_logits(
        logits.float(), torch.full_like(logits, float(real), dtype=torch.float32)
    )


class Perceptual(nn.Module):
    """Mean absolute differences of VGG19's features, weighted and summed.

    Its own weights get no gradients. tensors: by their names in torchvision's file,
    `features.0.weight` and so on; what lies behind conv5_4 is left out. How many channels each
    convolution has is read from them.
    Raises ConfigError when one is missing or does not fit the one before.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        super().__init__()
        self._blocks = nn.ModuleList()
        channels = len(_MEAN)
        for numbers, _ in _BLOCKS:
            block = nn.Sequential()
            for number in numbers:
                conv = _convolution(tensors, number, channels)
                block.extend((conv,) if number == numbers[0] else (nn.ReLU(), conv))
                channels = conv.out_channels
            self._blocks.append(block)
        self.register_buffer("_mean", torch.tensor(_MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(_STD).view(-1, 1, 1), persistent=False)
        self.requires_grad_(requires_grad=False)

    @classmethod
    def load(
        cls,
        file: str | None,
        *,
        cache_dir: Path,
        store: Store,
        models_uri: str | None = None,
        released: ModelFile = VGG19,
    ) -> "Perceptual":
        """With the weights of a file, or of torchvision's release.

        file: path or URI of it (losses.vgg19), with torchvision's names; nothing is known of its
        hash. None: the released file, verified, from `models_uri` (REMASTER_MODELS) if it is there,
        from `cache_dir`, or downloaded into that once per node.
        Raises ConfigError, with what to do, when the weights cannot be had or are others.
        """
        try:
            if file is None:
                if models_uri:
                    first = f"{absolute(models_uri)}/{released.name}"
                    released = replace(released, uris=(first, *released.uris))
                file = str(local_path(released, store, cache_dir))
            return cls(_read(file, store))
        except ConfigError as error:
            raise ConfigError(
                f"no VGG19 for the perceptual loss: {error}; name a file with torchvision's "
                "weights (losses.vgg19: FILE) or train without it (losses.perceptual: off)"
            ) from error

    def forward(self, x_bchw: Tensor, target_bchw: Tensor) -> Tensor:
        """Compare pictures.

        x_bchw, target_bchw: float32 (B, 3, H, W), RGB in [0, 1], H and W at least 16. Only `x_bchw`
        gets gradients.
        """
        with torch.no_grad():
            wanted = list(self._features(target_bchw))
        found = self._features(x_bchw)
        weights = (weight for _, weight in _BLOCKS)
        terms = (w * l1(x, t) for w, x, t in zip(weights, found, wanted, strict=True))
        return torch.stack(list(terms)).sum()

    def _features(self, x_bchw: Tensor) -> Iterator[Tensor]:
        """What the last convolution of each block makes, before its activation."""
        x = (x_bchw - self._mean) / self._std
        for number, block in enumerate(self._blocks):
            if number:
                x = functional.max_pool2d(functional.relu(x), 2)
            x = block(x)
            yield x


def _read(file: str, store: Store) -> Mapping[str, Any]:
    data = fetch(file, store, None)
    if data is None:
        raise ConfigError(f"nothing at {redact(file)}")
    tree = formats.parse(data).tree
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{redact(file)} holds no dict of tensors but {type(tree).__name__}")
    return cast(Mapping[str, Any], tree)


def _convolution(tensors: Mapping[str, Any], number: int, channels: int) -> nn.Conv2d:
    """One of VGG19's, with its weights; channels: of its input."""
    weight = _tensor(tensors, f"features.{number}.weight")
    bias = _tensor(tensors, f"features.{number}.bias")
    outputs = len(bias)
    for name, tensor, wanted in (
        ("weight", weight, (outputs, channels, 3, 3)),
        ("bias", bias, (outputs,)),
    ):
        if tuple(tensor.shape) != wanted:
            raise ConfigError(
                f"features.{number}.{name} has shape {tuple(tensor.shape)}, wanted is {wanted}"
            )
    with torch.device("meta"):
        conv = nn.Conv2d(channels, outputs, 3, padding=1)
    conv.load_state_dict({"weight": weight, "bias": bias}, assign=True)
    return conv


def _tensor(tensors: Mapping[str, Any], name: str) -> Tensor:
    tensor = tensors.get(name)
    if not isinstance(tensor, Tensor) or tensor.ndim < 1 or not tensor.is_floating_point():
        raise ConfigError(f"there is no {name} in it, as there is in torchvision's VGG19")
    return tensor.detach().to(torch.float32).clone()
