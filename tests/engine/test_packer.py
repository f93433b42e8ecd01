"""Many threads, one device: everybody gets the own result, in company and soon."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from networks import SHAPES, network, noise

from pipeline.engine import sweep
from pipeline.engine.packer import HOLD_S, Packer
from pipeline.engine.upscaler import Upscaler
from pipeline.errors import TooLargeError, UpscaleError


class Counting(Upscaler):
    """Notes how many planes each launch had; may be held up."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.launches = []
        self.go = threading.Event()
        self.go.set()

    def run(self, launch):
        self.go.wait(30)
        self.launches.append(len(launch.planes))
        return super().run(launch)


@pytest.fixture
def upscaler():
    return Counting(network(SHAPES["compact"]), device="cpu", precision="fp32")


def visit(packer, pixels, size=None):
    with packer.announced() as here:
        return here.upscale(pixels, size or (pixels.shape[1] * 4, pixels.shape[0] * 4))


def test_everybody_gets_the_own_result_whoever_else_is_there(upscaler):
    alone = Upscaler(network(SHAPES["compact"]), device="cpu", precision="fp32")
    rng = np.random.default_rng(0)
    pictures = [
        noise(*rng.integers(1, 90, 2), channels, seed=channels) for channels in [1, 2, 3, 4] * 15
    ]
    pictures.append(noise(300, 20, 3))
    packer = Packer(upscaler, threads=1)
    with ThreadPoolExecutor(len(pictures)) as threads:
        results = list(threads.map(lambda pixels: visit(packer, pixels), pictures))
    for pixels, result in zip(pictures, results, strict=True):
        wanted = alone(pixels).pixels
        assert np.abs(result.pixels.astype(int) - wanted).max() <= 1
    assert max(upscaler.launches) > 10  # they did go together
    assert sum(upscaler.launches) == 61 + 30  # alpha is a plane of its own


def test_an_announced_picture_is_waited_for_but_not_for_long(upscaler):
    packer = Packer(upscaler, threads=1)
    with packer.announced(), packer.announced() as early, packer.announced() as late:
        with ThreadPoolExecutor(1) as threads:
            start = time.monotonic()
            first = threads.submit(early.upscale, noise(8, 8, 3), (32, 32))
            late.upscale(noise(9, 9, 3), (36, 36))
            first.result()
        assert upscaler.launches == [2]  # the second came in time, the third never does
        assert time.monotonic() - start >= HOLD_S
    start = time.monotonic()
    visit(packer, noise(8, 8, 3))  # nobody else is on the way
    assert time.monotonic() - start < HOLD_S


def test_a_large_picture_does_not_wait_for_small_ones(upscaler):
    packer = Packer(upscaler, threads=1)
    with packer.announced(), packer.announced() as small, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(small.upscale, noise(8, 8, 3), (32, 32))
        time.sleep(0.02)
        visit(packer, noise(2, 300, 3))
        assert upscaler.launches[0] == 1
        waiting.result()
    assert upscaler.launches == [1, 1]


def test_device_seconds_are_shared_by_pixels(upscaler):
    packer = Packer(upscaler, threads=1)
    upscaler.go.clear()
    with packer.announced() as large, packer.announced() as small:
        with ThreadPoolExecutor(2) as threads:
            sizes = ((large, 40), (small, 20))
            for here, side in sizes:
                threads.submit(here.upscale, noise(side, side, 3), (side * 4, side * 4))
            time.sleep(2 * HOLD_S)
            upscaler.go.set()
        assert large.device_s == pytest.approx(4 * small.device_s)


def test_what_does_not_fit_together_goes_one_by_one():
    shape = SHAPES["compact"]
    graph = shape.graph()
    budget = sweep.peak_bytes(graph, 4, (4,) * len(graph.levels)) * 100  # a canvas has 520
    upscaler = Counting(network(shape), device="cpu", precision="fp32", budget_bytes=budget)
    upscaler.go.clear()
    packer = Packer(upscaler, threads=1)
    with ThreadPoolExecutor(5) as threads:
        results = [threads.submit(visit, packer, noise(9, 90, 3)) for _ in range(5)]
        time.sleep(2 * HOLD_S)
        upscaler.go.set()
    assert all(result.result().pixels.shape == (36, 360, 3) for result in results)
    assert max(upscaler.launches) > 1  # however many had come by then
    assert upscaler.launches.count(1) == 5


def test_errors_come_to_whom_they_concern():
    net = network(SHAPES["compact"])
    next(net.parameters()).fill_(float("nan"))
    packer = Packer(Upscaler(net, device="cpu", precision="fp32"), threads=1)
    with pytest.raises(UpscaleError, match="NaN"):
        visit(packer, noise(5, 5, 4))
    small = Upscaler(network(SHAPES["rrdb-x4"]), device="cpu", precision="fp32", budget_bytes=1)
    packer = Packer(small, threads=1)
    for _ in range(2):  # the device's thread lives on
        with pytest.raises(TooLargeError, match="device_bytes"):
            visit(packer, noise(5, 5, 3))


class Lost(Upscaler):
    """A device that went away."""

    def run(self, launch):
        raise RuntimeError("device lost")


def test_what_is_no_picture_s_fault_is_raised_to_all():
    packer = Packer(Lost(network(SHAPES["compact"]), device="cpu", precision="fp32"), threads=1)
    with ThreadPoolExecutor(3) as threads:
        results = [threads.submit(visit, packer, noise(9, 9, 3)) for _ in range(3)]
    assert [str(result.exception()) for result in results] == ["device lost"] * 3
