"""One device for many threads: whoever comes is packed together with whoever else is there."""

import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from pipeline.engine.planes import Plane
from pipeline.engine.upscaler import Launch, Upscaled, Upscaler
from pipeline.errors import ItemError, TooLargeError
from pipeline.images.image import Pixels

# Small pictures wait for others while some are on their way and these are fewer than fill the
# canvas well, but never longer than this while the device has nothing else to do.
HOLD_S = 0.25
# Canvases' worth of pictures to choose from: more fill the gaps better (92 to 94 % of a canvas).
_CHOICE = 2


@dataclass(eq=False, slots=True)
class _Request:
    """A plane that waits for the device; the future gets its warnings and its device seconds."""

    plane: Plane
    small: bool
    since: float = field(default_factory=time.monotonic)
    future: Future[tuple[tuple[str, ...], float]] = field(
        default_factory=Future[tuple[tuple[str, ...], float]]
    )


class Packer:
    """Owns the threads that work on the device: its lanes."""

    def __init__(self, upscaler: Upscaler, *, threads: int, lanes: int = 1) -> None:
        """threads: of torch, for all lanes together. lanes: launches that may run at once.

        On CPUs a lane for each thread is fastest: two threads that share a picture wait for each
        other some thousand times a second, and for whatever else runs on one of their cores.
        """
        self._upscaler = upscaler
        self._all_threads, self._lanes = threads, lanes
        self._changed = threading.Condition()
        self._waiting = list[_Request]()
        self._coming = self._running = 0
        for number in range(lanes):
            threading.Thread(target=self._serve, name=f"lane-{number}", daemon=True).start()

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

    def split(self, pixels: Pixels, size: tuple[int, int]) -> tuple[list[Plane], Pixels]:
        """See `Upscaler.split`."""
        return self._upscaler.split(pixels, size)

    def expect(self, more: int) -> None:
        """So many more pictures are on their way."""
        with self._changed:
            self._coming += more
            self._changed.notify_all()

    def _serve(self) -> None:
        while True:
            launch, requests, threads = self._next()
            torch.set_num_threads(threads)  # of this lane: OpenMP keeps their number apart
            self._carry_out(launch, requests, threads / self._all_threads)
            with self._changed:
                self._running -= 1

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
            wanted = self._running + min(1, len(self._waiting) + self._coming) * self._lanes
            threads = max(1, self._all_threads // min(wanted, self._lanes))
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
        pixels = sum(request.plane.width * request.plane.height for request in small)
        return (
            self._coming > 0
            and pixels < _CHOICE * self._upscaler.canvas_pixels
            and time.monotonic() < small[0].since + HOLD_S
        )

    def _carry_out(self, launch: Launch, requests: Sequence[_Request], share: float) -> None:
        """share: of the device that the lane has."""
        start = time.monotonic()
        try:
            ended = self._upscaler.run(launch)
        except TooLargeError as error:
            if len(requests) == 1:
                requests[0].future.set_exception(error)
            for request in requests if len(requests) > 1 else ():  # not as many at once
                self._carry_out(Launch((request.plane,)), [request], share)
            return
        # Not ours to judge, and not to be lost in this thread: whoever waits for it raises it.
        except Exception as error:  # noqa: BLE001
            for request in requests:
                request.future.set_exception(error)
            return
        seconds = (time.monotonic() - start) * share
        pixels = sum(plane.width * plane.height for plane in launch.planes)
        for request, result in zip(requests, ended, strict=True):
            if isinstance(result, ItemError):
                request.future.set_exception(result)
            else:
                part = request.plane.width * request.plane.height / pixels
                request.future.set_result((result, seconds * part))


class Visit:
    """One picture's way to the device and back; for one thread."""

    def __init__(self, packer: Packer) -> None:
        self._packer = packer
        self._on_its_way = True
        self.device_s = 0.0
        """Seconds that the device worked on the picture: its share by pixels, in company."""

    def arrive(self) -> None:
        """Nobody needs to wait for this picture any more."""
        if self._on_its_way:
            self._on_its_way = False
            self._packer.expect(-1)

    def upscale(self, pixels: Pixels, size: tuple[int, int]) -> Upscaled:
        """The picture at its final size, when the device had time for it.

        pixels: (H, W, 1 to 4) uint8. size: final (width, height).
        Raises UpscaleError for a non-finite result, TooLargeError out of device memory.
        """
        planes, out = self._packer.split(pixels, size)
        requests = self._packer.submit(planes)
        self.arrive()
        warnings = dict[str, None]()
        for request in requests:
            codes, seconds = request.future.result()
            warnings |= dict.fromkeys(codes)
            self.device_s += seconds
        return Upscaled(out, tuple(warnings))
