"""What a device can do, and what a network asks of it."""

import contextlib
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.engine.network import DTYPES
from pipeline.models import layouts
from pipeline.models.layouts import Shape
from pipeline.session import auto_precision

_PRODUCT_SIDES = (1024, 2048, 4096)
_PRODUCT_ROUNDS = 3


def survey(shape: Shape, *, device: str, precisions: Sequence[str]) -> dict[str, Any]:
    """What the device is and can do, and what the network asks of it, as in the JSON.

    precisions: asked for; none means that of `precision: auto` and fp32.
    """
    chosen = list(dict.fromkeys(precisions or [auto_precision(device), "fp32"]))
    return {
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "precisions": chosen,
        "scale": shape.scale,
        "flop_per_input_pixel": flop_per_pixel(shape),
        "product_flop_per_s": {
            name: _product_rate(device, DTYPES[name]) for name in dict.fromkeys([*chosen, "fp32"])
        },
    }


def flop_per_pixel(shape: Shape) -> float:
    """Of one input pixel: twice the multiplications of the convolutions, nothing else.

    The same for every size, because no convolution changes the size: counted on the meta device.
    """
    side = 4 * shape.multiple
    network = layouts.build_empty(shape)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.empty(1, shape.in_channels, side, side, device="meta"))
    return counter.get_total_flops() / side**2


def _product_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of some square matrix products: what is there to be had."""
    calls = 20 if device == "cuda" else 1
    rates = list[float]()
    for side in _PRODUCT_SIDES:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rounds = [_seconds(lambda a=a, b=b: a @ b, calls, device) for _ in range(_PRODUCT_ROUNDS)]
        rates.append(2 * side**3 * calls / min(rounds))
    return max(rates)


def _seconds(call: Callable[[], object], times: int, device: str) -> float:
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
