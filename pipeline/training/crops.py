"""What a step takes from the pictures.

    order > read, decode, keep > reduce > cut > pad > turn

A crop is a function of the seed, its number and the pictures, and of nothing else: neither threads,
nor the cache, nor how many workers share the lanes. Reductions are made on the fly, and only of the
part that is cut out, where the official recipe keeps copies of everything at four scales.
"""

from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Lock
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, FatalError
from pipeline.images.image import Pixels
from pipeline.images.reduce import reduce
from pipeline.storage import Store
from pipeline.training.config import Crops as CropSettings
from pipeline.training.config import TrainConfig
from pipeline.training.pictures import Pictures, UnusableError, read_rgb

_TRIES = 100  # unusable pictures in a row, in random order, that stand for all of them
_LANES_AHEAD = 2
_ORDERS = 4  # epochs whose order is kept: look-ahead may be in two, and in more of a short list
_CROP = 0x63726F70  # sets a crop's draws apart from others of the same seed; 0 would not


@dataclass(frozen=True, slots=True)
class Crops:
    """The crops of a lane."""

    targets: Pixels
    """(n, side, side, 3) uint8, RGB."""
    inputs: Pixels | None
    """(n, side / scale, side / scale, 3) uint8, RGB, of the same places; None without pairs."""


_Picture = tuple[Pixels, Pixels | None]
"""Target and input, (height, width, 3); or crops of them."""


class Reader:
    """Cuts crops out of pictures, for one worker.

    side: of the crops, in target pixels: `crops.side`, or `crops.target` for pairs, of which
    nothing is degraded that would have to be larger.
    """

    def __init__(
        self, pictures: Pictures, config: TrainConfig, store: Store, *, scale: int
    ) -> None:
        """scale: of the generator; that of pairs must be the same.

        Raises ConfigError when crops of pairs would not fit it.
        """
        self.side = config.crops.target if pictures.inputs else config.crops.side
        if pictures.inputs and self.side % scale:
            raise ConfigError(f"crops.target {self.side} is no multiple of the scale {scale}")
        self._skipped: dict[str, str] = {}
        self._pictures = pictures
        self._config = config
        self._store = store
        self._scale = scale
        self._cache = _Cache(config.workers.cache_bytes)
        self._order = lru_cache(_ORDERS)(partial(_order, config.seed, len(pictures)))

    @property
    def skipped(self) -> Mapping[str, str]:
        """The pictures that could not be used at least once, each with the last reason.

        The next in the epoch's order stood in for them. They are tried again in the next epoch: a
        store may have been out of reach.
        """
        return dict(self._skipped)

    def crops(self, step: int, lane: int) -> Crops:
        """What the lane takes in the step, step and lane counting from 0.

        Raises FatalError when no picture can be used.
        """
        return _stacked([self._crop(number) for number in self._numbers(step, lane)])

    def ahead(self, steps: Iterable[int], lanes: Sequence[int]) -> Generator[Crops]:
        """`crops` of these lanes of each step in turn, read ahead by `workers.readers` threads.

        They begin with the first crops and end with the generator: close it.
        """
        readers, lane_size = self._config.workers.readers, self._config.lane
        distance = max(_LANES_AHEAD, -(-2 * readers // lane_size))
        begun = deque[list[Future[_Picture]]]()
        threads = ThreadPoolExecutor(readers, "pictures")
        try:
            for step, lane in ((step, lane) for step in steps for lane in lanes):
                numbers = self._numbers(step, lane)
                begun.append([threads.submit(self._crop, number) for number in numbers])
                if len(begun) > distance:
                    yield _stacked([future.result() for future in begun.popleft()])
            while begun:
                yield _stacked([future.result() for future in begun.popleft()])
        finally:
            threads.shutdown(cancel_futures=True)

    def _numbers(self, step: int, lane: int) -> range:
        """Of the lane's crops, among all of the training's."""
        first = step * self._config.batch + lane * self._config.lane
        return range(first, first + self._config.lane)

    def _crop(self, number: int) -> _Picture:
        """The crop, out of the first picture that can be used from its turn on."""
        epoch, turn = divmod(number, len(self._pictures))
        order = self._order(epoch)
        draw = _draw(self._config.seed, number, self._config.crops)
        tries = min(len(order), _TRIES)
        name = ""
        for place in range(turn, turn + tries):
            try:
                picture = self._picture(int(order[place % len(order)]))
            except UnusableError as error:
                name = str(error.file)
                self._skipped[name] = str(error)
            else:
                return self._cut(picture, draw)
        raise FatalError(
            f"{tries} pictures in a row, of {len(order)}, cannot be used (images); the last is "
            f"{name}: {self._skipped[name]}"
        )

    def _picture(self, index: int) -> _Picture:
        """The picture, decoded. Raises UnusableError."""
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        target, inputs = self._pictures.targets[index], self._pictures.inputs
        high = read_rgb(target, self._store)
        low = read_rgb(inputs[index], self._store) if inputs else None
        if low is not None and not _fits(high, low, self._scale):
            sizes = [f"{pixels.shape[1]} x {pixels.shape[0]}" for pixels in (high, low)]
            message = "{} pixels, its input {}: not {} times as large"
            raise UnusableError(target, message.format(*sizes, self._scale))
        self._cache.put(index, (high, low))
        return high, low

    def _cut(self, picture: _Picture, draw: "_Draw") -> _Picture:
        high, low = picture
        if low is None:
            crop = _cut_reduced(high, self.side, self._config.crops, draw)
            return _turned(_padded(crop, self.side, "reflect"), draw), None
        inner = self.side // self._scale
        left, top = _corner(low.shape[1], low.shape[0], inner, draw)
        # Mirrored with the edge itself, else input and target would part behind it.
        low_crop = _padded(low[top : top + inner, left : left + inner], inner, "symmetric")
        left, top = left * self._scale, top * self._scale
        crop = _padded(high[top : top + self.side, left : left + self.side], self.side, "symmetric")
        return _turned(crop, draw), _turned(low_crop, draw)


def _fits(high: Pixels, low: Pixels, scale: int) -> bool:
    return high.shape[:2] == (low.shape[0] * scale, low.shape[1] * scale)


def _order(seed: int, count: int, epoch: int) -> NDArray[np.int64]:
    """Of the pictures, in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


@dataclass(frozen=True, slots=True)
class _Draw:
    """What is drawn for a crop before its picture is known.

    The first three are uniform in [0, 1): which of the reductions there are, and how much of the
    room that a crop has lies left of it and above.
    """

    reduction: float
    left: float
    top: float
    hflip: bool
    vflip: bool
    transpose: bool


def _draw(seed: int, number: int, crops: CropSettings) -> _Draw:
    reduction, left, top, *turns = np.random.default_rng([seed, number, _CROP]).random(6).tolist()
    chances = (crops.hflip, crops.vflip, crops.transpose)
    hflip, vflip, transpose = (turn < chance for turn, chance in zip(turns, chances, strict=True))
    return _Draw(reduction, left, top, hflip, vflip, transpose)


def _corner(width: int, height: int, side: int, draw: _Draw) -> tuple[int, int]:
    """Left and top of the crop; 0 where it is larger than the picture."""
    left = int(draw.left * (max(0, width - side) + 1))
    return left, int(draw.top * (max(0, height - side) + 1))


def _cut_reduced(pixels: Pixels, side: int, crops: CropSettings, draw: _Draw) -> Pixels:
    """A window of at most side x side, of the picture at one of its scales."""
    shortest, factors = min(pixels.shape[:2]), crops.scales
    if crops.shortest is not None and crops.shortest < shortest:
        factors = (*factors, crops.shortest / shortest)
    factor = factors[int(draw.reduction * len(factors))]
    height, width = (max(1, round(length * factor)) for length in pixels.shape[:2])
    left, top = _corner(width, height, side, draw)
    if factor == 1:
        return pixels[top : top + side, left : left + side]
    return reduce(pixels, width, height, (left, top, min(side, width), min(side, height)))


def _padded(crop: Pixels, side: int, mode: Literal["reflect", "symmetric"]) -> Pixels:
    """Mirrored at its right and bottom edges up to the side, as often as it takes."""
    down, across = side - crop.shape[0], side - crop.shape[1]
    return np.pad(crop, ((0, down), (0, across), (0, 0)), mode) if down or across else crop


def _turned(crop: Pixels, draw: _Draw) -> Pixels:
    if draw.hflip:
        crop = crop[:, ::-1]
    if draw.vflip:
        crop = crop[::-1]
    return crop.swapaxes(0, 1) if draw.transpose else crop


def _stacked(crops: Sequence[_Picture]) -> Crops:
    inputs = [low for _, low in crops if low is not None]
    return Crops(np.stack([high for high, _ in crops]), np.stack(inputs) if inputs else None)


class _Cache:
    """The pictures that fit into so many bytes, by their index; for many threads.

    Those that came first stay: each epoch takes all in another order, in which the ones used last
    are the ones that it takes up last.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._held = dict[int, _Picture]()
        self._lock = Lock()

    def get(self, index: int) -> _Picture | None:
        with self._lock:
            return self._held.get(index)

    def put(self, index: int, picture: _Picture) -> None:
        with self._lock:
            if index in self._held or self._bytes + _bytes(picture) > self._limit:
                return
            self._held[index] = picture
            self._bytes += _bytes(picture)


def _bytes(picture: _Picture) -> int:
    return sum(pixels.nbytes for pixels in picture if pixels is not None)
