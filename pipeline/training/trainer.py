"""One worker's part of a training: networks, optimizers, pools, and a step of them.

The steps of X. Wang et al., "Real-ESRGAN" (2021): the first stage learns by L1 alone, the second
by L1, a perceptual loss and a discriminator.
"""

import copy
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.models.layouts import Generator
from pipeline.training import losses
from pipeline.training.config import TrainConfig
from pipeline.training.crops import Crops
from pipeline.training.degradation import apply, draw, to_levels
from pipeline.training.discriminator import UNetDiscriminator
from pipeline.training.pool import Pool
from pipeline.training.sharpen import sharpen

_Network = TypeVar("_Network", bound=nn.Module)

# Apart, so that what is drawn for one purpose does not shift what is drawn for another; not 0,
# which numpy pads seeds with.
_DEGRADED, _CUT, _POOLED = range(1, 4)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker stands among all."""

    device: torch.device
    rank: int = 0
    world: int = 1


@dataclass(frozen=True, slots=True)
class Critics:
    """What the second stage has beside the generator."""

    discriminator: UNetDiscriminator
    perceptual: losses.Perceptual | None


class Trainer:
    """Holds all that a checkpoint has to hold; `advance` is one step of it."""

    def __init__(
        self,
        config: TrainConfig,
        generator: Generator,
        place: Place,
        critics: Critics | None = None,
    ) -> None:
        self.config, self.place, self.step = config, place, 0
        self.waited_s = 0.0
        """For crops that were not read yet."""
        self.generator = _laid_out(generator, place).train().requires_grad_(True)
        self.averaged = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.adam = _adam(config, self.generator)
        self.critics = critics
        if critics is not None:
            _laid_out(critics.discriminator, place)
            if critics.perceptual is not None:
                _laid_out(critics.perceptual, place)
            self.adam_d = _adam(config, critics.discriminator)
        lanes = range(place.rank, config.lanes, place.world)
        self.pools = {lane: Pool(config.pool) for lane in lanes}

    def advance(
        self, crops: Iterator[Crops], *, stop: bool = False
    ) -> tuple[dict[str, Tensor], bool]:
        """One step of the optimizers.

        crops: of this worker's lanes, in their order. stop: this worker's wish. Returns the losses,
        means over its lanes, and whether any worker wants to stop.
        """
        pairs = self.pairs(crops)
        self._set_rate()
        said, made, stop = self._improve_generator(pairs, stop)
        if self.critics is not None:
            real = [gt for gt, _ in pairs]
            said |= self._improve_discriminator(self.critics.discriminator, real, made)
        self.step += 1
        return said, stop

    # ------------------------------------------------------------------------------------- data

    def pairs(self, crops: Iterator[Crops]) -> list[tuple[Tensor, Tensor]]:
        """Targets and inputs of each of this worker's lanes, out of their pools.

        Both float32 in [0, 1]: (n, 3, H, W) and (n, 3, H / scale, W / scale).
        """
        return [self._pair(lane, self._next(crops)) for lane in self.pools]

    def _next(self, crops: Iterator[Crops]) -> Crops:
        start = time.monotonic()
        lane = next(crops)
        self.waited_s += time.monotonic() - start
        return lane

    def _pair(self, lane: int, crops: Crops) -> tuple[Tensor, Tensor]:
        """float32 targets (n, 3, H, W) and inputs (n, 3, H / scale, W / scale) in [0, 1]."""
        targets = self._on_device(crops.targets)
        x_bchw = targets.float() / 255
        if self.config.losses.sharpen:
            x_bchw = sharpen(x_bchw)
            # The discriminator is shown targets that are not sharpened.
            targets = targets if self.critics else to_levels(x_bchw)
        if crops.inputs is not None:
            inputs = self._on_device(crops.inputs)
        else:
            inputs = self._degraded(lane, x_bchw)
        targets, inputs = self._cut(lane, targets, inputs)
        targets, inputs = self.pools[lane].exchange(self._rng(lane, _POOLED), targets, inputs)
        layout = torch.channels_last
        gt, lq = ((x.float() / 255).contiguous(memory_format=layout) for x in (targets, inputs))
        return gt, lq

    def _degraded(self, lane: int, x_bchw: Tensor) -> Tensor:
        """uint8 inputs of targets in [0, 1]."""
        count, _, height, width = x_bchw.shape
        params = draw(
            self._rng(lane, _DEGRADED),
            self.config.degradation,
            count=count,
            height=height,
            width=width,
            scale=self.generator.shape.scale,
        )
        return to_levels(apply(x_bchw, params))

    def _cut(self, lane: int, targets: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The same window of all pairs of a lane."""
        scale = self.generator.shape.scale
        side = self.config.crops.target // scale
        spare = inputs.shape[-1] - side
        top, left = self._rng(lane, _CUT).integers(0, spare + 1, size=2).tolist()
        window = slice(top, top + side), slice(left, left + side)
        wide = tuple(slice(part.start * scale, part.stop * scale) for part in window)
        return targets[..., *wide], inputs[..., *window]

    def _on_device(self, pixels: np.ndarray) -> Tensor:
        """uint8 (n, 3, H, W) of uint8 (n, H, W, 3)."""
        return torch.from_numpy(pixels).to(self.place.device).permute(0, 3, 1, 2)

    def _rng(self, lane: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, self.step, lane, purpose])

    # ----------------------------------------------------------------------------------- learning

    def _improve_generator(
        self, pairs: Sequence[tuple[Tensor, Tensor]], stop: bool
    ) -> tuple[dict[str, Tensor], list[Tensor], bool]:
        """Losses, what it made of each lane before it changed, and whether any worker stops."""
        if self.critics is not None:
            self.critics.discriminator.iterate()
        said, made = zip(*(self._learn(*pair) for pair in pairs), strict=True)
        stop = self._agree(self.generator, stop)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self._average()
        return _mean(said), list(made), stop

    def _improve_discriminator(
        self, discriminator: UNetDiscriminator, real: Sequence[Tensor], made: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Real and made pictures in passes of their own, whose gradients are summed."""
        discriminator.requires_grad_(True)
        said = self._judge(discriminator, real, "real") + self._judge(discriminator, made, "fake")
        self._agree(discriminator, False)
        self.adam_d.step()
        self.adam_d.zero_grad(set_to_none=True)
        return _mean(said)

    def _learn(self, gt: Tensor, lq: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Adds a lane's gradients to the generator's. Returns its losses, and what it made."""
        weights = self.config.losses
        wanted = sharpen(gt) if weights.sharpen and self.critics is not None else gt
        with self._autocast():
            made = self.generator(lq)
        said = {"l1": losses.l1(made, wanted)}
        total = said["l1"] * weights.l1
        if self.critics is not None:
            discriminator, perceptual = self.critics.discriminator, self.critics.perceptual
            discriminator.requires_grad_(False)
            with self._autocast():
                said["gan"] = losses.generator_loss(discriminator(made))
                if perceptual is not None:
                    said["perceptual"] = perceptual(made, wanted)
            total = total + said["gan"] * weights.gan
            if perceptual is not None:
                assert weights.perceptual != "off"
                total = total + said["perceptual"] * weights.perceptual
        (total / len(self.pools)).backward()
        return {name: value.detach() for name, value in said.items()}, made.detach()

    def _judge(
        self, discriminator: UNetDiscriminator, pictures: Sequence[Tensor], name: str
    ) -> list[dict[str, Tensor]]:
        """Adds the gradients of each lane's pictures, `real` or `fake`, to the discriminator's."""
        discriminator.iterate()
        said = list[dict[str, Tensor]]()
        for x_bchw in pictures:
            with self._autocast():
                logits = discriminator(x_bchw)
                loss = losses.discriminator_loss(logits, real=name == "real")
            (loss / len(pictures)).backward()
            said.append({f"d_{name}": loss.detach(), f"out_d_{name}": logits.detach().mean()})
        return said

    def _agree(self, network: nn.Module, stop: bool) -> bool:
        """The mean of all workers' gradients, in one message that carries their wishes, too."""
        if self.place.world == 1:
            return stop
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        wish = torch.full((1,), float(stop), device=self.place.device)
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), wish])
        torch.distributed.all_reduce(flat)
        flat /= self.place.world
        parts = flat[:-1].split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return bool(flat[-1] > 0)

    @torch.no_grad()
    def _average(self) -> None:
        pairs = zip(self.averaged.parameters(), self.generator.parameters(), strict=True)
        for mean, now in pairs:
            mean.lerp_(now, 1 - self.config.ema)

    def _set_rate(self) -> None:
        adam = self.config.adam
        rate = adam.rate * adam.gamma ** sum(self.step >= step for step in adam.milestones)
        optimizers = [self.adam] if self.critics is None else [self.adam, self.adam_d]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def _autocast(self) -> torch.autocast:
        kind = self.place.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=precision(self.config, kind) == "bf16")


def precision(config: TrainConfig, device: str) -> str:
    """Of the convolutions: bf16 needs no scaled losses, and sums stay in fp32."""
    if config.precision != "auto":
        return config.precision
    # Older GPUs only emulate it.
    native = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"


def peak_bytes(device: torch.device) -> int:
    """Of the device, as torch allocated them; of this process's memory where that is a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _laid_out(network: _Network, place: Place) -> _Network:
    """On the device, in the layout that its convolutions are fastest in."""
    return network.to(place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _adam(config: TrainConfig, network: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=config.adam.rate, betas=config.adam.betas)


def _mean(said: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Of each name's values."""
    names = dict.fromkeys(name for values in said for name in values)
    return {
        name: torch.stack([values[name] for values in said if name in values]).mean()
        for name in names
    }
