"""One device for many threads: whoever comes is packed together with whoever else is there."""

import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

from pipeline.engine.alpha import S
from pipeline.engine.planes import Plane
from pipeline.engine.upscaler import Ended, Launch, Upscaled, Upscaler
from pipeline.errors import ItemError, TooLargeError

# Small pictures wait for others while some are on their way and these are fewer than fill the
# canvas well, but never longer than this while the device has nothing else to do.
HOLD_S = 0.25
# Canvases' worth of pictures to choose from: more fill the gaps better (92 to 94 % of a canvas).
_CHOICE = 2


@dataclass(eq=False, slots=True)
class _Request:
    """A plane that waits for the device; the future gets how it ended and its device seconds."""

    plane: Plane
    small: bool
    since: float = field(default_factory=time.monotonic)
    future: Future[tuple[Ended, float]] = field(default_factory=Future[tuple[Ended, float]])


class Packer:
    """Owns the threads that work on the device: its lanes, and who goes into which."""

    def __init__(self, upscaler: Upscaler, *, threads: int, lanes: int = 1) -> None:
        """threads: of torch, for all lanes together. lanes: launches that may run at once.

        On CPUs a lane for each thread is fastest: two threads that share a picture wait for each
        other some thousand times a second, and for whatever else runs on one of their cores.
        """
        self._upscaler = upscaler
        self._threads, self._lane_count = threads, lanes
        self._lanes = ThreadPoolExecutor(lanes, "lane")
        self._free = threading.Semaphore(lanes)
        self._changed = threading.Condition()
        self._waiting = list[_Request]()
        self._coming = self._running = 0
        threading.Thread(target=self._dispatch, name="dispatch", daemon=True).start()

    @contextmanager
    def announced(self) -> Generator["Visit"]:
        """A picture that is on its way to the device: others may wait for it."""
        visit = Visit(self)
        self.expect(1)
        try:
            yield visit
        finally:
            visit.arrive()

    def submit(self, planes: Sequence[Plane]) -> list[_Request]:
        """Puts planes into the line."""
        requests = [_Request(plane, self._upscaler.packable(plane)) for plane in planes]
        with self._changed:
            self._waiting += requests
            self._changed.notify_all()
        return requests

    def split(self, pixels: S, size: tuple[int, int]) -> tuple[list[Plane], S]:
        """See `Upscaler.split`."""
        return self._upscaler.split(pixels, size)

    def expect(self, more: int) -> None:
        """So many more pictures are on their way."""
        with self._changed:
            self._coming += more
            self._changed.notify_all()

    def _dispatch(self) -> None:
        while True:
            self._free.acquire()
            launch, requests, threads = self._next()
            done = self._lanes.submit(self._work, launch, threads)
            done.add_done_callback(partial(self._deliver, launch, requests))

    def _next(self) -> tuple[Launch, list[_Request], int]:
        """Waits for work and takes it out of the line; with the threads for it."""
        with self._changed:
            while (launch := self._ready()) is None:
                small = [request.since for request in self._waiting if request.small]
                self._changed.wait(min(small) + HOLD_S - time.monotonic() if small else None)
            chosen = set(map(id, launch.planes))
            taken = {id(r.plane): r for r in self._waiting if id(r.plane) in chosen}
            self._waiting = [r for r in self._waiting if id(r.plane) not in chosen]
            self._running += 1
            # All threads for a picture that is the only one, else a lane's share.
            alone = self._running == 1 and not self._waiting and not self._coming
            threads = max(1, self._threads // (1 if alone else self._lane_count))
            return launch, [taken[id(plane)] for plane in launch.planes], threads

    def _ready(self) -> Launch | None:
        """Whoever is first in the line, unless it is worth waiting for others to join in."""
        small = [request for request in self._waiting if request.small]
        worth_waiting = small and self._worth_waiting(small)
        for request in self._waiting:
            if not request.small:
                return Launch((request.plane,))
            if not worth_waiting:
                return self._upscaler.choose([request.plane for request in small])
        return None

    def _worth_waiting(self, small: Sequence[_Request]) -> bool:
        together = small[0].plane.dtype  # 8 and 16 bits do not go together
        pixels = sum(_pixels(r.plane) for r in small if r.plane.dtype == together)
        return (
            self._coming > 0
            and pixels < _CHOICE * self._upscaler.canvas_pixels
            and time.monotonic() < small[0].since + HOLD_S
        )

    def _work(self, launch: Launch, threads: int) -> tuple[list[Ended], float]:
        """In a lane: how each plane ended, and the device seconds of a pixel."""
        torch.set_num_threads(threads)  # of this lane: OpenMP keeps their number apart
        start = time.monotonic()
        ended = self._upscaler.run(launch)
        seconds = (time.monotonic() - start) * threads / self._threads
        return ended, seconds / sum(map(_pixels, launch.planes))

    def _deliver(
        self, launch: Launch, requests: Sequence[_Request], done: Future[tuple[list[Ended], float]]
    ) -> None:
        """To each request what concerns it; what nobody foresaw concerns all."""
        error = done.exception()
        shared = launch.packing is not None or len(requests) > 1
        apart = shared and isinstance(error, TooLargeError)
        with self._changed:
            self._running -= 1
            if apart:  # each by itself
                for request in requests:
                    request.small = False
                self._waiting[:0] = requests
            self._changed.notify_all()
        self._free.release()
        if error is None:
            ended, seconds = done.result()
            for request, result in zip(requests, ended, strict=True):
                request.future.set_result((result, seconds * _pixels(request.plane)))
        elif not apart:
            for request in requests:
                request.future.set_exception(error)


class Visit:
    """One picture's way to the device and back, or that of a file's pages; for one thread."""

    def __init__(self, packer: Packer) -> None:
        self._packer = packer
        self._on_its_way = True
        self.device_s = 0.0
        """Seconds that the device worked for it so far: its share by pixels, in company."""

    def arrive(self) -> None:
        """Nobody needs to wait for this picture any more."""
        if self._on_its_way:
            self._on_its_way = False
            self._packer.expect(-1)

    def upscale(self, pixels: S, size: tuple[int, int]) -> Upscaled[S]:
        """The picture at its final size, when the device had time for it.

        pixels: (H, W, 1 to 4) uint8 or uint16, like the result. size: final (width, height).
        Raises UpscaleError for a non-finite result, TooLargeError out of device memory.
        """
        planes, out = self._packer.split(pixels, size)
        requests = self._packer.submit(planes)
        self.arrive()
        wait([request.future for request in requests])  # whatever one of them ends with
        results = [request.future.result() for request in requests]
        self.device_s += sum(seconds for _, seconds in results)
        warnings = dict[str, None]()
        for ended, _ in results:
            if isinstance(ended, ItemError):
                raise ended
            warnings |= dict.fromkeys(ended)
        return Upscaled(out, tuple(warnings))


def _pixels(plane: Plane) -> int:
    return plane.width * plane.height
