"""One generator on one device: 8-bit samples in, 8-bit samples of the final size out.

What comes out is what the network computes on the whole image, up to the rounding of sums, whatever
the strips were. Colour goes through in straight RGB, gray as three equal channels whose mean comes
back, alpha as a gray picture of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.engine import sweep
from pipeline.errors import ConfigError, TooLargeError, UpscaleError
from pipeline.images.image import Pixels

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# On the CPU strips pay for themselves: large activations are not faulted in again and again.
_CPU_BUDGET_BYTES = 2**30
_SHARE_OF_FREE_MEMORY = 0.7


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
        held at once; default 70 % of the free memory on CUDA, 1 GiB on the CPU.
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
        self._item_bytes = DTYPES[precision].itemsize
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
        try:
            return Upscaled(self._upscale(self._model, pixels, size), ())
        except _NonFiniteError:
            if self._model is self._full:
                raise UpscaleError("non_finite", "the network yields NaN or infinity") from None
        try:
            return Upscaled(self._upscale(self._full, pixels, size), ("repeated_in_fp32",))
        except _NonFiniteError:
            message = "the network yields NaN or infinity, in fp32 too"
            raise UpscaleError("non_finite", message) from None

    @torch.inference_mode()
    def _upscale(self, model: nn.Module, pixels: Pixels, size: tuple[int, int]) -> Pixels:
        """The picture in strips as large as the device allows, from its start for each size."""
        width = pixels.shape[1] + self._shape.multiple - 1
        while True:
            rows = self._budget_bytes // (self._shape.peak_values * self._item_bytes * width)
            try:
                planes = _to_planes(pixels, self._shape.in_channels)
                parts = [self._plane(model, plane, size, rows) for plane in planes]
                return _joined(parts, pixels.shape[2])
            except torch.OutOfMemoryError as error:
                self._shrink(rows, width, error)

    def _shrink(self, rows: int, width: int, error: torch.OutOfMemoryError) -> None:
        """Half the budget from here on; TooLargeError when that would not make strips smaller."""
        torch.cuda.empty_cache()
        least = sweep.least_rows(self._shape.radius, self._shape.multiple)
        if rows <= least:
            raise TooLargeError(
                "device_memory",
                f"out of memory at strips of {least} rows of {width} pixels, the least for this "
                f"network ({self._budget_bytes / 1e9:.2f} GB of activations, limits.device_bytes)",
            ) from error
        self._budget_bytes //= 2

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
    if device.type != "cuda":
        return _CPU_BUDGET_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * _SHARE_OF_FREE_MEMORY)


def _exact_kernels() -> None:
    """No TF32 and no kernel that depends on timing: results repeat on one type of device."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _to_planes(pixels: Pixels, channels: int) -> list[_Plane]:
    """The picture as inputs of a network with so many channels."""
    x_chw = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    if channels == 1:
        return [_Plane(channel[None], gray=True) for channel in x_chw]
    gray, has_alpha = len(x_chw) < 3, len(x_chw) in (2, 4)
    colour = x_chw[:1].expand(3, -1, -1) if gray else x_chw[:3]
    alpha = x_chw[-1:] if has_alpha else torch.full_like(x_chw[:1], 255)
    if channels == 4:
        return [_Plane(torch.cat([colour, alpha]), gray=False)]
    planes = [_Plane(colour, gray)]
    # Opaque stays exactly opaque: a network would ring at the borders.
    if has_alpha and not bool((alpha == 255).all()):
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
    right, bottom = -width % multiple, -height % multiple
    if not (right or bottom):
        return x_chw
    mode = "reflect" if right < width and bottom < height else "replicate"
    padded = functional.pad(x_chw[None].float(), (0, right, 0, bottom), mode=mode)
    return padded[0].to(torch.uint8)


def _quantise(x_chw: Tensor) -> Tensor:
    """fp32 around [0, 1] to uint8, rounded to nearest."""
    return x_chw.clamp(0, 1).mul(255).round().to(torch.uint8)
