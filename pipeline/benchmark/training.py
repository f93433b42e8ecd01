"""What a step of a training takes: time, memory, and the part of it that makes the pictures."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch

from pipeline.benchmark.survey import flop_per_pixel
from pipeline.models.layouts import Generator
from pipeline.training.config import TrainConfig
from pipeline.training.crops import Crops
from pipeline.training.discriminator import new_discriminator
from pipeline.training.losses import Perceptual
from pipeline.training.trainer import Critics, Place, Trainer, peak_bytes, precision

# The recipe degrades more than it learns from: 400 pixels for 256.
_AROUND = 400 / 256
# Channels of VGG19's convolutions, by their numbers in torchvision's file. Their values do not
# matter here, and the file is large.
_WIDTHS = {
    0: 64,
    2: 64,
    5: 128,
    7: 128,
    **dict.fromkeys((10, 12, 14, 16), 256),
    **dict.fromkeys((19, 21, 23, 25, 28, 30, 32, 34), 512),
}


def measure(
    network: Generator, *, device: str, asked: str | None, lane: int, side: int, steps: int
) -> dict[str, Any]:
    """Steps of both stages on drawn pictures in memory, one lane each, after one that is not timed.

    asked: precision; None: as trainings choose it. lane: pictures in a step. side: of the targets.
    Returns what was measured as in the JSON: seconds are medians; flop_per_s counts the generator's
    convolutions alone, three times for a step.
    """
    rows = [
        _stage(network, stage, device=device, asked=asked, lane=lane, side=side, steps=steps)
        for stage in ("net", "gan")
    ]
    for row in rows:
        print(
            f"{row['stage']}: {row['steps_per_s']:.3g} steps/s ({row['precision']}), "
            f"{row['data_s'] / row['step_s']:.0%} of it in degradation and pool, "
            f"{row['flop_per_s'] / 1e12:.3g} TFLOP/s in the generator, "
            f"peak {row['peak_bytes'] / 1e6:,.0f} MB"
        )
    return {"lane": lane, "target": side, "steps": steps, "trainings": rows}


def _stage(
    network: Generator,
    stage: str,
    *,
    device: str,
    asked: str | None,
    lane: int,
    side: int,
    steps: int,
) -> dict[str, Any]:
    config = TrainConfig.load(
        None,
        {
            "images": "",
            "output": "",
            "stage": stage,
            "batch": lane,
            "lane": lane,
            "pool": lane,
            "precision": asked or "auto",
            "crops": {"side": round(side * _AROUND), "target": side},
        },
    )
    critics = _critics() if stage == "gan" else None
    trainer = Trainer(config, network, Place(torch.device(device)), critics)
    crops = _drawn(config)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.advance(iter([crops]))
    data, whole = list[float](), list[float]()
    for _ in range(steps):
        data.append(_seconds(lambda: trainer.pairs(iter([crops])), device))
        whole.append(_seconds(lambda: trainer.advance(iter([crops])), device))
    pixels = lane * (side // network.shape.scale) ** 2
    step_s = median(whole)
    return {
        "stage": stage,
        "precision": precision(config, device),
        "step_s": step_s,
        "steps_per_s": 1 / step_s,
        "data_s": median(data),
        "flop_per_s": 3 * pixels * flop_per_pixel(network.shape) / step_s,
        "peak_bytes": peak_bytes(torch.device(device)),
    }


def _drawn(config: TrainConfig) -> Crops:
    side = config.crops.side
    noise = np.random.default_rng(0).integers(0, 256, (config.lane, side, side, 3), dtype=np.uint8)
    return Crops(noise, None)


def _critics() -> Critics:
    rng, tensors, channels = np.random.default_rng(0), dict[str, torch.Tensor](), 3
    for number, width in _WIDTHS.items():
        mean = torch.full((width, channels, 3, 3), 1 / (9 * channels))
        tensors[f"features.{number}.weight"] = mean
        tensors[f"features.{number}.bias"] = torch.zeros(width)
        channels = width
    return Critics(new_discriminator(rng), Perceptual(tensors))


def _seconds(call: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
