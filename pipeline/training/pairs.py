"""What generators are evaluated on: targets, and the input that is given for each of them.

Published test sets hold both, in folders whose names differ from set to set and in files whose
names may tell the scale (`0801.png` and `0801x4.png`). Where there are targets alone, their inputs
are made of them.
"""

import posixpath
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline import uris
from pipeline.config import Limits, Policy, Scan
from pipeline.errors import ConfigError, ItemError
from pipeline.images.decode import decode
from pipeline.images.image import Pixels, eight_bit
from pipeline.storage import Store
from pipeline.training.quality import WINDOW
from pipeline.training.sheet import resize
from pipeline.uris import redact

Degrading = Literal["bicubic", "second_order"]

# Folders such as GTmod12, HR, DIV2K_valid_HR; LRbicx4, LR, lq, DIV2K_valid_LR_bicubic/X4.
_TARGETS = re.compile(r"(?:^|[_/-])(?:gt|hr|high|target)", re.IGNORECASE)
_INPUTS = re.compile(r"(?:^|[_/-])(?:lr|lq|low|input)", re.IGNORECASE)

_SUFFIXES = Scan().suffixes
_NO_LIMIT = Limits(max_input_pixels=2**40)


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and its input by their URIs; without an input it is to be made of the target."""

    name: str
    target: str
    input: str | None


def in_set(store: Store, uri: str, scale: int) -> tuple[str, str]:
    """The folders of targets and of inputs below a test set's, by their names.

    Where several would do, those are meant whose names tell the scale (`LRbicx4`).
    Raises ConfigError unless that leaves one of each.
    """
    folders = sorted({posixpath.dirname(path) for path in _pictures(store, uri)})
    found = list[str]()
    for kind, names in (("targets", _TARGETS), ("inputs", _INPUTS)):
        fitting = [folder for folder in folders if names.search(folder)]
        scaled = [folder for folder in fitting if re.search(rf"x{scale}(?!\d)", folder, re.I)]
        chosen = fitting if len(fitting) == 1 else scaled
        if len(chosen) != 1:
            among = ", ".join(chosen or fitting or folders)
            raise ConfigError(
                f"{len(chosen or fitting)} folders of {redact(uri)} may hold the {kind} of x{scale}"
                f"; name them by --targets and --inputs (found: {among})"
            )
        found.append(uris.join(uris.absolute(uri), chosen[0]))
    return found[0], found[1]


def matched(store: Store, targets: str, inputs: str, scale: int) -> list[Pair]:
    """The pairs of two folders, by the names of their files without suffix.

    An input may have the scale behind its name, as in `baby_x4.png` or `0801x4.png`.
    Raises ConfigError unless each target has its input and each input its target.
    """
    theirs = _by_name(store, targets)
    given = dict[str, str]()
    for name, path in _by_name(store, inputs).items():
        plain = name if name in theirs else re.sub(rf"_?x{scale}$", "", name, flags=re.I)
        if given.setdefault(plain, path) != path:
            raise ConfigError(f"{redact(inputs)} holds two pictures for the target {plain}")
    _refuse_single(theirs.keys() - given.keys(), targets, "input")
    _refuse_single(given.keys() - theirs.keys(), inputs, "target")
    return [Pair(name, path, given[name]) for name, path in theirs.items()]


def alone(store: Store, images: str) -> list[Pair]:
    """The pictures below a folder as targets, whose inputs are to be made.

    Raises ConfigError where there are none.
    """
    return [Pair(name, path, None) for name, path in _by_name(store, images).items()]


def load(
    pair: Pair,
    store: Store,
    *,
    scale: int,
    how: Degrading | None = None,
    rng: np.random.Generator,
) -> tuple[Pixels, Pixels]:
    """Input and target of a pair: uint8 (H, W, 3) and (H * scale, W * scale, 3).

    Where the input is to be made, by `how` and `rng`, the target is cut at the right and at the
    bottom to a multiple of the scale.
    Raises ConfigError with the file's name for pictures that cannot be used, OSError for a store's.
    """
    target = _read(store, pair.target)
    if pair.input is None:
        height, width = target.shape[:2]
        target = target[: height - height % scale, : width - width % scale]
    _check_size(target, scale, pair)
    if pair.input is None:
        return degraded(target, how or "bicubic", scale=scale, rng=rng), target
    given = _read(store, pair.input)
    _check_fit(given, target, scale, pair)
    return given, target


def degraded(target: Pixels, how: Degrading, *, scale: int, rng: np.random.Generator) -> Pixels:
    """An input for a target: uint8 (H * scale, W * scale, 3) to (H, W, 3).

    bicubic: reduced and nothing else. second_order: by the official recipe, as drawn from `rng`.
    """
    if how == "bicubic":
        height, width = target.shape[:2]
        return resize(target, width // scale, height // scale)
    # Here and not above: torch takes seconds to import, a wrong flag need not wait for them.
    from pipeline.training import degradation
    from pipeline.training.config import Degradation

    return degradation.degraded(target, Degradation(), rng, scale=scale)


def _read(store: Store, uri: str) -> Pixels:
    """uint8 (H, W, 3); a gray picture as three equal channels."""
    try:
        pixels = eight_bit(decode(store.read(uri), _NO_LIMIT, Policy()).pixels)
    except ItemError as error:
        raise ConfigError(f"{redact(uri)}: {error}") from error
    channels = pixels.shape[2]
    if channels in (2, 4):
        raise ConfigError(
            f"{redact(uri)} has an alpha channel; PSNR and SSIM are those of RGB: save it without"
        )
    return np.repeat(pixels, 3, axis=2) if channels == 1 else pixels


def _check_size(target: Pixels, scale: int, pair: Pair) -> None:
    height, width = target.shape[:2]
    least = WINDOW + 2 * scale
    if min(height, width) < least:
        raise ConfigError(
            f"{redact(pair.target)}: {width} x {height} pixels, SSIM needs {least} a side: "
            f"a window of {WINDOW} within a border of {scale}"
        )


def _check_fit(given: Pixels, target: Pixels, scale: int, pair: Pair) -> None:
    height, width = given.shape[:2]
    if (height * scale, width * scale) != target.shape[:2]:
        raise ConfigError(
            f"{redact(str(pair.input))}: {width} x {height} pixels, of which x{scale} makes "
            f"{width * scale} x {height * scale}, but the target {redact(pair.target)} has "
            f"{target.shape[1]} x {target.shape[0]} (--model, --inputs)"
        )


def _pictures(store: Store, uri: str) -> dict[str, str]:
    """URIs by their paths below a folder, without what is hidden. Raises ConfigError of none."""
    root = uris.absolute(uri)
    below = {uris.below(file.uri, root) or "": file.uri for file in store.list(f"{root}/")}
    found = {
        path: whole
        for path, whole in below.items()
        if path.lower().endswith(_SUFFIXES) and not re.search(r"(?:^|/)\.", path)
    }
    if not found:
        raise ConfigError(f"no pictures in {redact(uri)}; they end in {', '.join(_SUFFIXES)}")
    return found


def _by_name(store: Store, uri: str) -> dict[str, str]:
    """URIs by path without suffix. Raises ConfigError where two differ in their suffixes alone."""
    named = dict[str, str]()
    for path, whole in _pictures(store, uri).items():
        if named.setdefault(name := posixpath.splitext(path)[0], whole) != whole:
            raise ConfigError(f"{redact(uri)} holds two pictures with the name {name}")
    return named


def _refuse_single(names: set[str], folder: str, missing: str) -> None:
    if names:
        raise ConfigError(
            f"{len(names)} pictures in {redact(folder)} have no {missing} of their name, "
            f"the first is {min(names)}"
        )
