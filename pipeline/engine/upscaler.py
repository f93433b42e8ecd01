"""One generator on one device: 8-bit samples in, 8-bit samples of the final size out.

What comes out is what the network computes on the whole image, up to the rounding of sums, whatever
the strips were. Colour goes through in straight RGB, gray as three equal channels whose mean comes
back, alpha as a gray picture of its own.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.engine import sweep
from pipeline.errors import ConfigError, TooLargeError, UpscaleError
from pipeline.images.image import Pixels

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# Of all the memory there is, not of what happens to be free: the strips, and with them the rounding
# of sums, are the same on every worker and every night.
_SHARE_OF_DEVICE, _SHARE_OF_HOST = 0.6, 0.5
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Shape(Protocol):
    """What the engine needs to know of a network."""

    @property
    def in_channels(self) -> int: ...
    @property
    def out_channels(self) -> int: ...
    @property
    def scale(self) -> int: ...
    @property
    def radius(self) -> int: ...
    @property
    def multiple(self) -> int: ...
    @property
    def peak_values(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Upscaled:
    """The result, and the codes of what had to be done for it."""

    pixels: Pixels
    warnings: tuple[str, ...]


class Upscaler:
    """Holds one generator on its device. One call at a time: the caller takes turns."""

    def __init__(
        self, model: nn.Module, *, device: str, precision: str, budget_bytes: int | None = None
    ) -> None:
        """model: a generator in fp32, in evaluation mode; it is moved to the device.

        precision: fp32, fp16 or bf16, of the network's body. budget_bytes: activations that may be
        held at once; default 60 % of the device's memory on CUDA, half of the host's on the CPU.
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
        self._full = model.to(self._device).to(memory_format=torch.channels_last)  # pyright: ignore
        self._model = self._full if precision == "fp32" else _cast(model, DTYPES[precision])
        self._budget_bytes = budget_bytes or _default_budget(self._device)
        _exact_kernels()

    @property
    def scale(self) -> int:
        """The network's own factor."""
        return self._shape.scale

    def __call__(self, pixels: Pixels, size: tuple[int, int] | None = None) -> Upscaled:
        """The picture at its final size.

        pixels: (H, W, 1 to 4) uint8. size: final (width, height), default the network's own.
        Raises UpscaleError for a non-finite result, TooLargeError out of device memory.
        """
        height, width = pixels.shape[:2]
        size = size or (width * self.scale, height * self.scale)
        attempts: list[tuple[nn.Module, tuple[str, ...]]] = [(self._model, ())]
        if self._model is not self._full:
            attempts.append((self._full, ("repeated_in_fp32",)))
        for model, warnings in attempts:
            with contextlib.suppress(_NonFiniteError):
                return Upscaled(self._upscale(model, pixels, size), warnings)
        raise UpscaleError("non_finite", "the network yields NaN or infinity in fp32")

    @torch.inference_mode()
    def _upscale(self, model: nn.Module, pixels: Pixels, size: tuple[int, int]) -> Pixels:
        """The picture in strips as large as the budget allows; out of memory, again in smaller."""
        shape = self._shape
        planes = _to_planes(pixels, shape.in_channels)
        height, width = (sweep.up(side, shape.multiple) for side in pixels.shape[:2])
        row_bytes = shape.peak_values * width * next(model.parameters()).dtype.itemsize
        least = sweep.least_rows(height, shape.radius, shape.multiple)
        rows = min(height, self._budget_bytes // row_bytes)
        while rows >= least:
            try:
                parts = [self._plane(model, plane, size, rows) for plane in planes]
                return _joined(parts, pixels.shape[2])
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            rows //= 2
        raise TooLargeError(
            "device_memory",
            f"{width} x {height} pixels need {least * row_bytes / 1e9:.2f} GB at strips of "
            f"{least} rows, {rows * row_bytes / 1e9:.2f} GB fit (limits.device_bytes)",
        )

    def _plane(self, model: nn.Module, plane: "_Plane", size: tuple[int, int], rows: int) -> Tensor:
        """uint8 (C, height, width) on the host, of the final size."""
        width, height = size
        channels = 1 if plane.gray else self._shape.out_channels
        own = (plane.x_chw.shape[2] * self.scale, plane.x_chw.shape[1] * self.scale)
        if size == own:
            out = torch.empty((channels, height, width), dtype=torch.uint8)
            for top, part in self._strips(model, plane, rows):
                out[:, top : top + part.shape[1]] = _quantise(part).cpu()
            return out
        whole = torch.cat([part for _, part in self._strips(model, plane, rows)], dim=1)
        fitted = functional.interpolate(
            whole[None], size=(height, width), mode="bicubic", antialias=True
        )
        return _quantise(fitted[0]).cpu()

    def _strips(self, model: nn.Module, plane: "_Plane", rows: int) -> Iterator[tuple[int, Tensor]]:
        """The network's result, fp32 (C, rows, width), from top to bottom with each first row."""
        shape = self._shape
        height, width = plane.x_chw.shape[1:]
        x_chw = _pad(plane.x_chw, shape.multiple)
        strips = sweep.plan(x_chw.shape[1], rows=rows, radius=shape.radius, multiple=shape.multiple)
        for strip in strips:
            fed = x_chw[None, :, strip.top : strip.bottom].to(self._device, torch.float32) / 255
            y_chw = model(fed.contiguous(memory_format=torch.channels_last))[0]
            first = (strip.start - strip.top) * shape.scale
            last = (min(strip.stop, height) - strip.top) * shape.scale
            kept = y_chw[:, first:last, : width * shape.scale]
            if not torch.isfinite(kept).all():
                raise _NonFiniteError
            mean = kept.mean(dim=0, keepdim=True) if plane.gray else kept
            yield strip.start * shape.scale, mean


class _NonFiniteError(Exception):
    """NaN or infinity in the network's result."""


@dataclass(frozen=True, slots=True)
class _Plane:
    """What goes through the network at once: uint8 (C, H, W); gray comes back as one channel."""

    x_chw: Tensor
    gray: bool


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy with weights of another precision; the fp32 original stays for repeats."""
    state = {name: value.to(dtype) for name, value in model.state_dict().items()}
    with torch.device("meta"):
        copy = type(model)(model.shape)
    copy.load_state_dict(state, assign=True)
    return copy.eval().requires_grad_(requires_grad=False)


def _default_budget(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * _SHARE_OF_DEVICE)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _CGROUP_LIMITS:  # what a container may use of it
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(file).read_text()))
    return int(min(limits) * _SHARE_OF_HOST)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA has an exception of its own for it, the CPU's allocator only a text."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _exact_kernels() -> None:
    """No TF32 and no kernel that depends on timing: results repeat on one type of device."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _to_planes(pixels: Pixels, channels: int) -> list[_Plane]:
    """The picture as inputs of a network with so many channels."""
    x_chw = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    gray, has_alpha = len(x_chw) < 3, len(x_chw) in (2, 4)
    # Opaque stays exactly opaque: a network would ring at the borders.
    if has_alpha and channels < 4 and bool((x_chw[-1] == 255).all()):
        x_chw, has_alpha = x_chw[:-1], False
    if channels == 1:
        return [_Plane(channel[None], gray=True) for channel in x_chw]
    colour = x_chw[:1].expand(3, -1, -1) if gray else x_chw[:3]
    alpha = x_chw[-1:] if has_alpha else torch.full_like(x_chw[:1], 255)
    if channels == 4:
        return [_Plane(torch.cat([colour, alpha]), gray=False)]
    planes = [_Plane(colour, gray)]
    if has_alpha:
        planes.append(_Plane(alpha.expand(3, -1, -1), gray=True))
    return planes


def _joined(parts: list[Tensor], channels: int) -> Pixels:
    """(H, W, `channels`) from what became of the planes, uint8 (C, H, W) each."""
    y_chw = torch.cat(parts)
    if len(y_chw) == 4 and channels < 4:  # of a network with an alpha of its own
        gray = y_chw[:3].float().mean(dim=0, keepdim=True).round().to(torch.uint8)
        y_chw = {1: gray, 2: torch.cat([gray, y_chw[3:]]), 3: y_chw[:3]}[channels]
    elif len(y_chw) < channels:
        y_chw = torch.cat([y_chw, torch.full_like(y_chw[:1], 255)])
    return y_chw.permute(1, 2, 0).contiguous().numpy()


def _pad(x_chw: Tensor, multiple: int) -> Tensor:
    """Reflected at the right and the bottom, repeated where there is too little to reflect."""
    height, width = x_chw.shape[1:]
    right, bottom = sweep.up(width, multiple) - width, sweep.up(height, multiple) - height
    if not (right or bottom):
        return x_chw
    mode = "reflect" if right < width and bottom < height else "replicate"
    padded = functional.pad(x_chw[None].float(), (0, right, 0, bottom), mode=mode)
    return padded[0].to(torch.uint8)


def _quantise(x_chw: Tensor) -> Tensor:
    """fp32 around [0, 1] to uint8, rounded to nearest."""
    return x_chw.clamp(0, 1).mul(255).round().to(torch.uint8)
