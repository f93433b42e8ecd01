"""One generator on one device: samples in, samples of as many bits and the final size out.

What comes out is what the network computes on the whole picture, up to the rounding of sums,
whatever the way: row by row (`sweep`), as one of many on a canvas, or as one of a batch.
"""

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, cast

import torch
from torch import Tensor, nn

from pipeline.engine import canvas, planes, sweep
from pipeline.engine.alpha import AlphaWay, S
from pipeline.engine.network import Gutter, Network
from pipeline.engine.planes import Plane, Result
from pipeline.errors import ConfigError, TooLargeError, UpscaleError
from pipeline.models.graph import Graph
from pipeline.turns import Budget

# Of all the memory there is, not of what happens to be free: the way, and with it the rounding of
# sums, is the same on every worker and every night.
_SHARE_OF_DEVICE, _SHARE_OF_HOST = 0.6, 0.5
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

# Pixels of a turn. A CPU is fastest while what a convolution reads and writes stays in the caches
# (measured: 8 to 24 thousand), CUDA needs enough for all its multiprocessors.
_TURN_PIXELS = {"cpu": 2**14, "cuda": 2**20}

# (width, height) of a canvas: 4 x 4 pictures of 256 pixels, 8 x 8 of 128, 16 x 16 of 64 with their
# gutters; on a CPU half of that, because each of its lanes has one under way and the pictures on it
# are not there to choose from.
_CANVAS = {"cpu": (520, 1040), "cuda": (1040, 1040)}
# What is larger has pixels enough for a launch of its own, and packs badly.
_PACKED_SIDE = 256


class Shape(Protocol):
    """What the engine needs to know of a network."""

    @property
    def in_channels(self) -> int: ...
    @property
    def out_channels(self) -> int: ...
    @property
    def scale(self) -> int: ...
    @property
    def multiple(self) -> int: ...
    def graph(self) -> Graph: ...


Ended = tuple[str, ...] | UpscaleError
"""How a plane's way through the network ended: the codes of its warnings, or why it failed."""


@dataclass(frozen=True, slots=True)
class Upscaled(Generic[S]):
    """The result, and the codes of what had to be done for it."""

    pixels: S
    warnings: tuple[str, ...]


class Upscaler:
    """Holds one generator on its device. May be called from several threads."""

    def __init__(
        self,
        model: nn.Module,
        *,
        device: str,
        precision: str,
        budget_bytes: int | None = None,
        alpha: AlphaWay = "network",
    ) -> None:
        """model: a generator in fp32, in evaluation mode.

        precision: fp32, fp16 or bf16, of the convolutions; pictures of 16 bits go in fp32 whatever
        it is. budget_bytes: activations that may be held at once; default 60 % of the device's
        memory on CUDA, half of the host's on the CPU. alpha: what enlarges transparency.
        Raises ConfigError for a network that cannot be applied to pictures.
        """
        self._shape = cast(Shape, model.shape)
        channels = (self._shape.in_channels, self._shape.out_channels)
        if channels not in ((1, 1), (3, 3), (4, 4)):
            raise ConfigError(
                f"the model maps {channels[0]} channels to {channels[1]}: "
                "only 1 to 1, 3 to 3 and 4 to 4 can upscale pictures"
            )
        self._device = torch.device(device)
        graph = self._shape.graph()
        self._alpha: AlphaWay = alpha
        # The fp32 weights stay for repeats and 16 bits: fp16 has 11 significant bits, bf16 has 8.
        self._networks = [
            Network(model, graph, fold=self._shape.multiple, device=self._device, precision=name)
            for name in dict.fromkeys((precision, "fp32"))
        ]
        self._memory = Budget(budget_bytes or _default_budget(self._device))
        # Both become less when memory runs out; nothing is tried twice that did not fit.
        self._turn_pixels = _TURN_PIXELS[self._device.type]
        self._canvas = _CANVAS[self._device.type]
        _exact_kernels()

    @property
    def scale(self) -> int:
        """The network's own factor."""
        return self._shape.scale

    def __call__(self, pixels: S, size: tuple[int, int] | None = None) -> Upscaled[S]:
        """The picture at its final size.

        pixels: (H, W, 1 to 4) uint8 or uint16, like the result. size: final (width, height),
        default the network's own.
        Raises UpscaleError for a non-finite result, TooLargeError out of device memory.
        """
        parts, out = self.split(pixels, size)
        warnings = list[str]()
        for part in parts:
            launch = self.choose([part]) if self.packable(part) else Launch((part,))
            (ended,) = self.run(launch)
            if isinstance(ended, UpscaleError):
                raise ended
            warnings += ended
        return Upscaled(out, tuple(dict.fromkeys(warnings)))

    def split(self, pixels: S, size: tuple[int, int] | None = None) -> tuple[list[Plane], S]:
        """What of a picture goes through the network, for `run`, and the result that it fills."""
        height, width = pixels.shape[:2]
        size = size or (width * self.scale, height * self.scale)
        return planes.split(pixels, size, self._shape.in_channels, self._alpha)

    def packable(self, plane: Plane) -> bool:
        """Whether the plane may share a launch with others."""
        return max(self._folded(plane)) <= _PACKED_SIDE

    @property
    def canvas_pixels(self) -> int:
        """Pixels of packable planes that fill a launch."""
        return self._canvas[0] * self._canvas[1] * self._shape.multiple**2

    def choose(self, waiting: Sequence[Plane]) -> "Launch":
        """Which of some packable planes to run together, always with the first.

        waiting: in the order of their arrival. 8 and 16 bits never go together.
        """
        waiting = [plane for plane in waiting if plane.dtype == waiting[0].dtype]
        sizes = [self._folded(plane) for plane in waiting]
        same = [plane for plane, size in zip(waiting, sizes, strict=True) if size == sizes[0]]
        width, height = self._canvas
        count = width * height // (sizes[0][0] * sizes[0][1])
        if len(same) >= count:
            return Launch(tuple(same[:count]))
        if len(waiting) == 1 and self._device.type == "cpu":
            return Launch((waiting[0],))  # CUDA has one shape for all small pictures, a CPU no need
        packing = canvas.pack(sizes, width, height)
        return Launch(tuple(waiting[place.index] for place in packing.placements), packing)

    @torch.inference_mode()
    def run(self, launch: "Launch") -> list[Ended]:
        """Fills the results of the launch's planes. Returns the warnings of each.

        A plane whose result is not finite is repeated in fp32, on its own; where that does not
        help, its error stands in place of the warnings.
        Raises TooLargeError out of device memory.
        """
        exact = self._networks[-1]
        fast = exact if launch.planes[0].dtype == torch.uint16 else self._networks[0]
        ended = list[Ended]()
        for plane, finite in zip(launch.planes, self._finite(fast, launch), strict=True):
            if finite:
                ended.append(())
            elif fast is not exact and self._finite(exact, Launch((plane,)))[0]:
                ended.append(("repeated_in_fp32",))
            else:
                message = "the network yields NaN or infinity in fp32"
                ended.append(UpscaleError("non_finite", message))
                continue
            plane.keep_flat_alpha()
        return ended

    def _finite(self, network: Network, launch: "Launch") -> list[bool]:
        """Fills the results; whether each is finite. Out of memory, again with less at once."""
        while True:
            plan = self._plan(network, launch)
            try:
                with self._memory.held(plan.bytes):
                    return self._filled(network, launch, plan)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            self._fit_less(plan, launch)

    def _fit_less(self, plan: sweep.Plan, launch: "Launch") -> None:
        """Remembers that so many rows at once were too many. Raises TooLargeError at the fewest."""
        self._narrow(launch)
        width, height = self._launched_size(launch)
        if plan.rows <= min(sweep.LEAST_ROWS, height):
            raise TooLargeError(
                "device_memory",
                f"{width} x {height} pixels ran out of memory, at {plan.rows} rows at once with "
                f"{plan.bytes / 1e9:.3f} GB of activations (limits.device_bytes)",
            )
        self._turn_pixels = plan.rows * width // 2

    def _narrow(self, launch: "Launch") -> None:
        """Where a canvas was too large, the next ones are half as wide: memory goes by columns."""
        if launch.packing is not None:
            self._canvas = max(_PACKED_SIDE, launch.packing.width // 2), self._canvas[1]

    def _arranged(self, launch: "Launch") -> tuple[Tensor, Gutter | None]:
        """The launch's planes on the device: (B, C, H, W); and what lies between them."""
        fold, packing = self._shape.multiple, launch.packing
        parts = [planes.pad(plane.x_chw, fold) for plane in launch.planes]
        if packing is None:
            return torch.stack(parts).to(self._device), None
        _, height = self._launched_size(launch)
        taken = torch.zeros(height, packing.width, dtype=torch.bool)
        x_bchw = parts[0].new_zeros(1, len(parts[0]), height * fold, packing.width * fold)
        for place, part in zip(packing.placements, parts, strict=True):
            x_bchw[0, :, place.top * fold :, place.left * fold :][
                :, : part.shape[1], : part.shape[2]
            ] = part
            taken[place.top :, place.left :][: place.height, : place.width] = True
        return x_bchw.to(self._device), Gutter(taken.to(self._device))

    def _filled(self, network: Network, launch: "Launch", plan: sweep.Plan) -> list[bool]:
        """Fills the results; whether each is finite."""
        if len(plan.bands) > 1:
            return [self._in_bands(network, plan, launch.planes[0])]
        x_bchw, gutter = self._arranged(launch)
        results = [Result(plane, self.scale) for plane in launch.planes]
        level, bottom = network.graph.levels[-1], 0
        for y_bchw in network.run(x_bchw, plan.rows, gutter):
            top, bottom = bottom, bottom + y_bchw.shape[2]
            if launch.packing is None:
                for result, y_chw in zip(results, y_bchw, strict=True):
                    result.add(y_chw)
                continue
            for place, result in zip(launch.packing.placements, results, strict=True):
                start = max(place.top * level, top)
                stop = min((place.top + place.height) * level, bottom)
                if start < stop:
                    left, right = place.left * level, (place.left + place.width) * level
                    result.add(y_bchw[0, :, start - top : stop - top, left:right])
        return [result.finite() for result in results]

    def _in_bands(self, network: Network, plan: sweep.Plan, plane: Plane) -> bool:
        """One picture in bands of columns. What has to be resized is gathered before."""
        fold, level = self._shape.multiple, network.graph.levels[-1]
        x_bchw = planes.pad(plane.x_chw, fold)[None].to(self._device)
        gathered = plane.resized(self.scale)
        finite, wide = True, list[Tensor]()
        for band in plan.bands:
            kept = slice((band.start - band.left) * level, (band.stop - band.left) * level)
            run = network.run(x_bchw[..., band.left * fold : band.right * fold], plan.rows)
            pieces = (y_bchw[0, :, :, kept] for y_bchw in run)
            if gathered:
                wide.append(torch.cat([y_chw.cpu() for y_chw in pieces], dim=1))
            else:
                part = plane.columns(band.start * fold, band.stop * fold, self.scale)
                finite &= _complete(Result(part, self.scale), pieces)
        if not gathered:
            return finite
        tops = range(0, wide[0].shape[1], plan.rows)
        rows = (torch.cat([band[:, top : top + plan.rows] for band in wide], dim=2) for top in tops)
        return _complete(Result(plane, self.scale), rows)

    def _plan(self, network: Network, launch: "Launch") -> sweep.Plan:
        """Raises TooLargeError where the budget is too small for any."""
        width, height = self._launched_size(launch)
        count = 1 if launch.packing is not None else len(launch.planes)
        plan = sweep.fit(
            network.graph,
            height=height,
            width=width,
            sizes=network.sizes,
            budget=self._memory.limit,
            pixels=self._turn_pixels,
            pictures=count,
            in_bands=len(launch.planes) == 1 and launch.packing is None,
        )
        if plan.bytes > self._memory.limit:
            self._narrow(launch)
            raise TooLargeError(
                "device_memory",
                f"{width} x {height} pixels need {plan.bytes / 1e9:.3f} GB at {plan.rows} rows at "
                f"once, {self._memory.limit / 1e9:.3f} GB are allowed (limits.device_bytes)",
            )
        return plan

    def _launched_size(self, launch: "Launch") -> tuple[int, int]:
        """(width, height) of value 0."""
        if launch.packing is None:
            return self._folded(launch.planes[0])
        # One shape for all on CUDA, where it decides on the kernels; on a CPU it does not.
        on_cpu = self._device.type == "cpu"
        return launch.packing.width, launch.packing.height if on_cpu else self._canvas[1]

    def _folded(self, plane: Plane) -> tuple[int, int]:
        """(width, height) of the plane as value 0 of the network."""
        fold = self._shape.multiple
        return -(-plane.width // fold), -(-plane.height // fold)


@dataclass(frozen=True, slots=True)
class Launch:
    """Planes that go through the network together: one, some of one size, or a packed canvas.
    All of 8 bits or all of 16."""

    planes: tuple[Plane, ...]
    packing: canvas.Packing | None = None


def _default_budget(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * _SHARE_OF_DEVICE)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _CGROUP_LIMITS:  # what a container may use of it
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(file).read_text()))
    return int(min(limits) * _SHARE_OF_HOST)


def _complete(result: Result, pieces: Iterable[Tensor]) -> bool:
    """Fills a result; whether it is finite."""
    for y_chw in pieces:
        result.add(y_chw)
    return result.finite()


def _is_out_of_memory(error: Exception) -> bool:
    """torch has an exception or a text for it, the libraries below it have texts of their own."""
    texts = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    named = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return named or any(text in str(error) for text in texts)


def _exact_kernels() -> None:
    """No TF32 and no kernel that depends on timing: results repeat on one type of device."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
