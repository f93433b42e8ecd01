"""From the configuration to a trainer: which networks, and the weights that they start from."""

import os
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.models import layouts, zoo
from pipeline.models.files import fetch
from pipeline.models.layouts import Generator, Shape
from pipeline.models.rrdbnet import RRDBNet, RRDBNetShape
from pipeline.models.srvgg import SRVGGNetCompact
from pipeline.storage import Store
from pipeline.training.config import TrainConfig
from pipeline.training.discriminator import (
    UNetDiscriminator,
    load_discriminator,
    new_discriminator,
)
from pipeline.training.losses import Perceptual
from pipeline.training.trainer import Critics, Place, Trainer
from pipeline.uris import redact

# He's initialisation is too strong for sums of many blocks (X. Wang et al., "ESRGAN", 2018), and
# for a network that begins as an enlargement of its input.
_GAIN = 0.1
_PRELU = 0.25  # torch's first slope
_DISCRIMINATOR = 0x64  # sets its first weights apart from others of the same seed


def build(config: TrainConfig, place: Place) -> Trainer:
    """A trainer at its first step.

    Raises ConfigError for weights that cannot be had, and for crops that the generator cannot take.
    """
    network = generator(config)
    _check_crops(config, network.shape)
    critics = _critics(config) if config.stage == "gan" else None
    return Trainer(config, network, place, critics)


def generator(config: TrainConfig) -> Generator:
    """The network that is trained, with the weights that it starts from, on the CPU.

    Raises ConfigError when neither `generator` nor `start` says what it is.
    """
    started = _started(config)
    shape = _shape(config, started)
    if started is not None and started.shape == shape:
        return started
    network = _initialised(shape, config.seed)
    if isinstance(network, SRVGGNetCompact) and isinstance(started, SRVGGNetCompact):
        _grow(network, started)
    elif started is not None:
        _take_over(network, started)
    return network


def _check_crops(config: TrainConfig, shape: Shape) -> None:
    if (shape.in_channels, shape.out_channels) != (3, 3):
        raise ConfigError(
            f"the generator makes {shape.out_channels} channels of {shape.in_channels}; training "
            "is on RGB, 3 of 3 (generator, start)"
        )
    sides = {"target": shape.scale * shape.multiple, "side": shape.scale}
    for name, factor in sides.items():
        side: int = getattr(config.crops, name)
        if side % factor:
            raise ConfigError(
                f"crops.{name} {side} is no multiple of {factor}, of which the generator (x"
                f"{shape.scale}, inputs in multiples of {shape.multiple}) makes its inputs"
            )


def _shape(config: TrainConfig, started: Generator | None) -> Shape:
    if config.generator:
        return layouts.shape_from_dict(config.generator)
    if started is None:
        raise ConfigError(
            "what is to be trained? generator names the architecture and its hyper-parameters, "
            "start a checkpoint to start from"
        )
    return started.shape


def _started(config: TrainConfig) -> Generator | None:
    if config.start is None:
        return None
    store = Store(config.storage.models.fsspec_options())
    models_uri = os.environ.get("REMASTER_MODELS")
    spec = zoo.resolve(config.start, store=store, models_uri=models_uri)
    return zoo.load_generator(spec, store=store, cache_dir=zoo.default_cache_dir())


def _initialised(shape: Shape, seed: int) -> Generator:
    """The same weights for the same seed; torch's own randomness is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(shape, RRDBNetShape):
            network = RRDBNet(shape)
            _he(_convolutions(network.body), slope=0, gain=_GAIN)
            return network
        compact = SRVGGNetCompact(shape)
        # With torch's own, a plain stack of 14 lets a thousandth of its input through: in 500 steps
        # it learnt nothing.
        *stack, last = _convolutions(compact.body)
        _he(stack, slope=_PRELU)
        _he([last], slope=1, gain=_GAIN)
        return compact


def _convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def _he(convolutions: Iterable[nn.Conv2d], *, slope: float, gain: float = 1) -> None:
    """K. He et al., "Delving Deep into Rectifiers" (2015)."""
    for convolution in convolutions:
        nn.init.kaiming_normal_(convolution.weight, a=slope)
        convolution.weight.data.mul_(gain)
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)


def _take_over(network: Generator, started: Generator) -> None:
    """What fits of another shape's weights: all of x4plus but its first convolution for x2plus."""
    theirs, ours = started.state_dict(), network.state_dict()
    fitting = {
        name: tensor
        for name, tensor in theirs.items()
        if name in ours and ours[name].shape == tensor.shape
    }
    if len(fitting) < len(ours) / 2:
        raise ConfigError(
            f"only {len(fitting)} of the {len(ours)} tensors of the generator are in the "
            "checkpoint to start from with this shape: another architecture (generator, start)"
        )
    network.load_state_dict({**ours, **fitting})


@torch.no_grad()
def _grow(network: SRVGGNetCompact, started: SRVGGNetCompact) -> None:
    """Makes it compute what the smaller one does, to learn on from there.

    New features are computed as at any start, but nothing listens to them yet; new convolutions
    hand on what they get. T. Chen et al., "Net2Net" (2016).
    """
    ours, theirs = network.shape, started.shape
    least = replace(theirs, features=ours.features, convs=ours.convs)
    if ours != least or ours.features < theirs.features or ours.convs < theirs.convs:
        raise ConfigError(
            f"{ours} does not grow out of {theirs}, the checkpoint to start from: features and "
            "convs may become more, nothing else may change (generator, start)"
        )
    if ours.convs > theirs.convs and ours.activation == "leakyrelu":
        raise ConfigError("more convs hand nothing on through leakyrelu (generator, start)")
    *stack, last = network.body
    *old_stack, old_last = started.body
    for old, new in zip(old_stack, stack, strict=False):
        _widen(old, new)
    _widen(old_last, last)
    for added in stack[len(old_stack) :]:
        if isinstance(added, nn.Conv2d):
            nn.init.dirac_(added.weight)
        elif isinstance(added, nn.PReLU):
            nn.init.ones_(added.weight)


def _widen(old: nn.Module, new: nn.Module) -> None:
    """Puts the weights of a convolution or a PReLU into one of more channels."""
    for name, tensor in old.named_parameters():
        wide = new.get_parameter(name)
        if tensor.ndim > 1:
            wide[: len(tensor)] = 0  # of the features that are new
            wide[: len(tensor), : tensor.shape[1]] = tensor
        else:
            wide[: len(tensor)] = tensor


def _critics(config: TrainConfig) -> Critics:
    store = Store(config.storage.models.fsspec_options())
    if config.start_discriminator is None:
        discriminator = new_discriminator(np.random.default_rng([config.seed, _DISCRIMINATOR]))
    else:
        discriminator = _discriminator(config.start_discriminator, store)
    perceptual = None
    if config.losses.perceptual != "off":
        cache = zoo.default_cache_dir()
        models_uri = os.environ.get("REMASTER_MODELS")
        perceptual = Perceptual.load(
            config.losses.vgg19, cache_dir=cache, store=store, models_uri=models_uri
        )
    return Critics(discriminator, perceptual)


def _discriminator(uri: str, store: Store) -> UNetDiscriminator:
    data = fetch(uri, store, None)
    if data is None:
        raise ConfigError(f"no discriminator at {redact(uri)} (start_discriminator)")
    try:
        return load_discriminator(data)
    except ConfigError as error:
        raise ConfigError(f"{redact(uri)}: {error} (start_discriminator)") from error
