"""Pictures of the largest kind: memory, and exactness wherever one looks. Takes an hour.

`make test-slow`; with OMP_NUM_THREADS=1 where others compute on the same cores, whom threads of
one convolution that wait for each other do not get along with.
"""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import forward, network, whole
from production import Production, drawn, loaded, resident, weights, written

from pipeline.config import Limits, Policy
from pipeline.engine.upscaler import Upscaler
from pipeline.images.decode import decode
from pipeline.models.rrdbnet import RRDBNetShape

pytestmark = pytest.mark.timeout(3 * 3600)


def in_a_process(work, *arguments):
    """What a function returns in a process that did nothing before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


# --------------------------------------------------------------------------------------- crops


@dataclass(frozen=True)
class Crop:
    """A square of input pixels whose result is looked at."""

    left: int
    top: int
    side: int


def crops(width, height, side, *, edges, inside) -> Iterator[Crop]:
    """Seeded: the four corners, twelve a little off them, some along the edges and some inside."""
    rng = np.random.default_rng(0)
    ends = (0, width - side), (0, height - side)
    for left, top in product(*ends):
        yield Crop(left, top, side)
        for across, down in rng.integers(1, side, (3, 2)).tolist():
            yield Crop(abs(left - across), abs(top - down), side)
    for number in range(edges + inside):
        place = [int(rng.integers(last + 1)) for _, last in ends]
        if number < edges:
            axis = number % 2
            place[axis] = ends[axis][number // 2 % 2]
        yield Crop(*place, side)


@dataclass
class Differences:
    """Between an engine's result and the plain network's, in levels."""

    crops: int = 0
    samples: int = 0
    ties: int = 0
    """Samples that are not equal."""
    largest: int = 0

    def see(self, net, pixels, result, crop) -> None:
        """Feeds the plain network with all that a crop's result depends on.

        Where that ends at the picture's border, the network's zeros are the right ones.
        """
        reach, scale = net.shape.radius, net.shape.scale
        top, left = max(0, crop.top - reach), max(0, crop.left - reach)
        bottom, right = crop.top + crop.side + reach, crop.left + crop.side + reach
        made = whole(net, pixels[top:bottom, left:right])
        wanted = np.rint(_part(made, crop.top - top, crop.left - left, crop.side, scale))
        off = np.abs(wanted - _part(result, crop.top, crop.left, crop.side, scale))
        self.crops += 1
        self.samples += off.size
        self.ties += int(np.count_nonzero(off))
        self.largest = max(self.largest, int(off.max()))

    def check(self) -> None:
        assert self.crops >= 20
        assert self.largest <= 1
        assert self.ties < 1e-5 * self.samples


def _part(result, top, left, side, scale):
    rows, columns = (slice(start * scale, (start + side) * scale) for start in (top, left))
    return result[rows, columns]


def differences(net, pixels, result, side, *, edges, inside) -> Differences:
    """The plain network has the engine's layout: another layout means other kernels.

    These add in another order, and of samples of 8 bits 2 to 10 in 100,000 come out otherwise.
    """
    net = net.to(memory_format=torch.channels_last)
    found, start = Differences(), time.monotonic()
    for crop in crops(pixels.shape[1], pixels.shape[0], side, edges=edges, inside=inside):
        found.see(net, pixels, result, crop)
        print(f"{time.monotonic() - start:.0f} s, {crop}: {found}", flush=True)
    return found


# ------------------------------------------------------------------- 24 megapixels, by a worker


def through_a_worker(folder, output, model):
    """The report's rows, and the process's resident memory at its peak."""
    rows = Production(folder, output, model).run()
    return rows, resident("VmHWM")


@pytest.mark.parametrize(("width", "height"), [(600, 400), (6000, 4000)])
def test_a_worker_takes_24_megapixels_in_6_gigabytes(tmp_path, width, height):
    folder, model = tmp_path / "in", weights(tmp_path)
    folder.mkdir()
    pixels = written(folder, 0, width, height)
    start = time.monotonic()
    (row,), peak = in_a_process(through_a_worker, folder, tmp_path / "out", model)
    seconds = {name: row[f"{name}_s"] for name in ("decode", "upscale", "encode", "publish")}
    print(f"\n{width} x {height}: {peak / 1e9:.2f} GB, {time.monotonic() - start:.0f} s, {seconds}")
    assert row["status"] == "done"
    assert (row["output_width"], row["output_height"]) == (4 * width, 4 * height)
    assert peak < 6e9
    limits = Limits(max_input_pixels=2**40)
    result = decode(Path(row["output_uri"]).read_bytes(), limits, Policy()).pixels
    differences(loaded(model), pixels, result, 64, edges=8, inside=12).check()


# -------------------------------------------------------- a deep network, in a budget of 2 GB


def calibrated(blocks, pixels):
    """A seeded RRDBNet whose result is neither flat nor saturated on such pixels."""
    net = network(RRDBNetShape(blocks=blocks))
    seen = forward(net, pixels[:64, :64])
    last = net.conv_last
    with torch.no_grad():
        for channel, (mean, spread) in enumerate(
            zip(seen.mean((0, 1)).tolist(), seen.std((0, 1)).tolist(), strict=True)
        ):
            gain = 24 / spread  # of a corner; the whole picture varies more
            last.weight[channel].mul_(gain)
            last.bias[channel].sub_(mean / 255).mul_(gain).add_(0.5)
    return net


def in_a_budget(blocks, pixels, budget):
    """The result, and by how much resident memory rose for it at the most."""
    upscaler = Upscaler(
        calibrated(blocks, pixels), device="cpu", precision="fp32", budget_bytes=budget
    )
    upscaler(pixels[:32, :32])  # kernels are made once in the life of a worker
    with contextlib.suppress(OSError):  # a sandbox; then the peak is that of the process
        Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    result = upscaler(pixels).pixels
    return result, resident("VmHWM") - before


@pytest.mark.parametrize(("blocks", "width", "height"), [(2, 240, 180), (23, 2000, 1500)])
def test_a_deep_network_keeps_to_a_budget_of_2_gigabytes(blocks, width, height):
    pixels, start = drawn(0, width, height), time.monotonic()
    result, peak = in_a_process(in_a_budget, blocks, pixels, 2 * 10**9)
    seconds = time.monotonic() - start
    spread, saturated = result.std(), np.isin(result, (0, 255)).mean()
    print(f"\n{blocks} blocks, {width} x {height}, fp32: {peak / 1e9:.2f} GB, {seconds:.0f} s")
    print(f"result: spread {spread:.0f} levels, {saturated:.1%} saturated", flush=True)
    assert spread > 10
    assert saturated < 0.2
    assert peak < 2e9
    differences(calibrated(blocks, pixels), pixels, result, 16, edges=4, inside=2).check()
