"""Trainings that take seconds: a thin network, little pictures."""

import numpy as np
import torch
from test_losses import tensors_of, vgg19

from pipeline.training import assembly, state
from pipeline.training.config import TrainConfig
from pipeline.training.crops import Crops
from pipeline.training.discriminator import new_discriminator
from pipeline.training.losses import Perceptual
from pipeline.training.trainer import Critics, Place, Trainer

GENERATOR = {"architecture": "SRVGGNetCompact", "features": 8, "convs": 2, "scale": 2}


def config(**values) -> TrainConfig:
    """Lanes of two crops of 48 pixels."""
    small = {
        "images": "in",
        "output": "out",
        "generator": GENERATOR,
        "batch": 4,
        "lane": 2,
        "pool": 4,
        "iterations": 10,
        "crops": {"side": 48, "target": 32},
    }
    return TrainConfig.load(None, small | values)


def trainer(settings: TrainConfig, place: Place | None = None) -> Trainer:
    place = place or Place(torch.device("cpu"))
    critics = None
    if settings.stage == "gan":
        discriminator = new_discriminator(np.random.default_rng(1), features=4)
        critics = Critics(discriminator, Perceptual(tensors_of(vgg19())))
    return Trainer(settings, assembly.generator(settings), place, critics)


def crops(settings: TrainConfig, step: int, lane: int) -> Crops:
    """Blobs: smooth, and every lane of every step has others."""
    rng = np.random.default_rng([step, lane, 7])
    coarse = rng.integers(0, 256, (settings.lane, 3, 7, 7)).astype(np.float32)
    side = settings.crops.side
    smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse), (side, side), mode="bicubic")
    return Crops(smooth.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy(), None)


def advance(trained: Trainer, steps: int) -> None:
    for _ in range(steps):
        lanes = [crops(trained.config, trained.step, lane) for lane in trained.pools]
        trained.advance(iter(lanes))


def everything(trained: Trainer) -> dict[str, torch.Tensor]:
    """All that a checkpoint has to hold, by name."""
    held = state.networks(trained) | state.pools(trained)
    return {name: tensor.clone() for name, tensor in held.items()}
