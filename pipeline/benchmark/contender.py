"""One contender of a benchmark, alone in its process: the plain loop, tiles, or the bare engine.

The plain loop is the yardstick for everything else: what a person writes in twenty lines with torch
and Pillow, on all cores, in fp32, a picture at a time, with the defaults of both libraries (on CUDA
these let convolutions use TF32). Its tiles are those of the reference tool: X. Wang et al.,
Real-ESRGAN, `tile_process`. Neither is made slower than it has to be.
"""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.benchmark.figures import Work
from pipeline.errors import ConfigError
from pipeline.images.image import Pixels
from pipeline.models import zoo
from pipeline.models.layouts import Generator, Shape
from pipeline.storage import Store

TILE, TILE_PAD = 256, 10  # input pixels a side; the pad is the reference tool's default

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def load(model: str) -> Generator:
    """The network of a zoo name, path or URI, as `jobs/upscale.py` finds it.

    Raises ConfigError where it cannot be had.
    """
    store = Store()
    spec = zoo.resolve(model, store=store, models_uri=os.environ.get("REMASTER_MODELS"))
    return zoo.load_generator(spec, store=store, cache_dir=zoo.default_cache_dir())


def use(device: str) -> str:
    """`cuda` or `cpu` of `auto`, with all cores for torch. Raises ConfigError without CUDA."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch finds no CUDA device on this machine (--device cpu)")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


# --------------------------------------------------------------------------------- contenders


@torch.inference_mode()
def plain(
    network: Generator,
    sources: Sequence[Path],
    targets: Sequence[Path],
    *,
    device: str,
    tile: int | None = None,
) -> Work:
    """Upscale files one after the other, into PNG files.

    targets: where the results go. tile: side of a tile's core in input pixels, a multiple of
    `network.shape.multiple`; None for whole pictures, which is exact.
    """
    network = network.to(device)
    forward = network if tile is None else partial(in_tiles, network, tile=tile)
    input_pixels, output_pixels, device_s = 0, 0, 0.0
    meter = _Meter(device)
    for source, target in zip(sources, targets, strict=True):
        pixels = _read(source, network.shape)
        start = time.perf_counter()
        result = _forward(forward, network.shape, pixels, device)
        device_s += time.perf_counter() - start
        gray = result.shape[2] == 1
        PIL.Image.fromarray(result[..., 0] if gray else result).save(target)
        input_pixels += pixels[..., 0].size
        output_pixels += result[..., 0].size
    return meter.stop(len(sources), input_pixels, output_pixels, device_s)


def engine(network: Generator, sources: Sequence[Path], *, device: str, precision: str) -> Work:
    """Upscale pictures that are in memory already, into memory: `Upscaler` and nothing else."""
    from pipeline.engine.upscaler import Upscaler

    upscaler = Upscaler(network, device=device, precision=precision)
    pictures = [_read(source, network.shape) for source in sources]
    upscaler(pictures[0])  # kernels are loaded and chosen once in the life of a worker
    input_pixels = sum(pixels[..., 0].size for pixels in pictures)
    meter = _Meter(device)
    # Results are on the host when a call returns: nothing is left to wait for.
    output_pixels = sum(upscaler(pixels).pixels[..., 0].size for pixels in pictures)
    return meter.stop(len(pictures), input_pixels, output_pixels)


def in_tiles(network: Generator, x_bchw: Tensor, *, tile: int, pad: int = TILE_PAD) -> Tensor:
    """The network's result of a picture in tiles; differs from the whole along their borders.

    Each core is fed with up to `pad` pixels around it, fewer at the picture's border, and what
    becomes of it is pasted.
    """
    height, width = x_bchw.shape[2:]
    scale, channels = network.shape.scale, network.shape.out_channels
    y_bchw = x_bchw.new_empty(len(x_bchw), channels, height * scale, width * scale)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            above, before = min(top, pad), min(left, pad)
            fed = x_bchw[:, :, top - above : bottom + pad, left - before : right + pad]
            made = network(fed)[:, :, above * scale :, before * scale :]
            core = y_bchw[:, :, top * scale : bottom * scale, left * scale : right * scale]
            core.copy_(made[:, :, : core.shape[2], : core.shape[3]])
    return y_bchw


def _read(source: Path, shape: Shape) -> Pixels:
    """(H, W, in_channels), the right way up."""
    with PIL.Image.open(source) as opened:
        picture = PIL.ImageOps.exif_transpose(opened).convert(_MODES[shape.in_channels])
        return np.array(picture).reshape(picture.height, picture.width, -1)


def _forward(
    forward: Callable[[Tensor], Tensor], shape: Shape, pixels: Pixels, device: str
) -> Pixels:
    """(H, W, in_channels) to (H * scale, W * scale, out_channels)."""
    height, width = pixels.shape[:2]
    x_hwc = torch.from_numpy(pixels).to(device).float() / 255
    x_bchw = x_hwc.permute(2, 0, 1)[None].contiguous()
    padding = (0, -width % shape.multiple, 0, -height % shape.multiple)
    if any(padding):
        x_bchw = functional.pad(x_bchw, padding, mode="reflect")
    y_chw = forward(x_bchw)[0, :, : height * shape.scale, : width * shape.scale]
    y_hwc = y_chw.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
    return y_hwc.contiguous().cpu().numpy()


# -------------------------------------------------------------------------------- measurement


class _Meter:
    """Seconds and memory from its making to `stop`."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):  # a sandbox; then the peak is that of the process
                Path("/proc/self/clear_refs").write_text("5")
        self._before = None if self._cuda else _resident("VmRSS")
        self._start = time.perf_counter()

    def stop(
        self, pictures: int, input_pixels: int, output_pixels: int, device_s: float | None = None
    ) -> Work:
        """device_s: default all of the time."""
        if self._cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._start
        peak = torch.cuda.max_memory_allocated() if self._cuda else _resident("VmHWM")
        return Work(
            pictures=pictures,
            input_pixels=input_pixels,
            output_pixels=output_pixels,
            work_s=seconds,
            device_s=seconds if device_s is None else device_s,
            peak_bytes=None if peak is None else peak - (self._before or 0),
        )


def _resident(field: str) -> int | None:
    """Bytes of this process by a line of Linux's /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return None
