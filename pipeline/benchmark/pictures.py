"""The pictures that a benchmark is about: found in a folder, or drawn, the same every time."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import samples
from pipeline.config import Limits, Policy, Scan
from pipeline.errors import ConfigError
from pipeline.images.decode import decode
from pipeline.images.image import eight_bit

_SUFFIXES = Scan().suffixes
_NO_LIMIT = Limits(max_input_pixels=2**40)


def found(folder: Path) -> list[Path]:
    """All pictures below a folder, as a run would find them. Raises ConfigError without any."""
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    pictures = [
        folder / name
        for name in names
        if name.suffix.lower() in _SUFFIXES and not any(part[0] == "." for part in name.parts)
    ]
    if not pictures:
        raise ConfigError(f"no pictures in {folder} (--manifest)")
    return pictures


def targets(pictures: list[Path], folder: Path, output: Path) -> list[Path]:
    """Where their results go, as a run names them with `--format png`; makes the folders.

    Raises ConfigError for two with one name.
    """
    made = [output / path.relative_to(folder).with_suffix(".png") for path in pictures]
    if len(set(made)) < len(made):
        raise ConfigError(f"pictures in {folder} differ in their suffixes alone (--manifest)")
    for parent in {path.parent for path in made}:
        parent.mkdir(parents=True, exist_ok=True)
    return made


def draw(folder: Path, size: str, count: int) -> None:
    """So many PNG files, half landscapes and half cartoons, with an archive's blur and noise.

    size: `768x512`, or `64..256` for widths and heights between these.
    """
    rng = np.random.default_rng(0)
    drawings = (samples.landscape(rng), samples.boat(rng))
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        drawing, (width, height) = drawings[index % len(drawings)], _sides(rng, size)
        rows = _mirrored(rng, height, drawing.shape[0])
        columns = _mirrored(rng, width, drawing.shape[1])
        clean = drawing[rows][:, columns]
        picture = samples.degrade(rng, clean, blur=0.6, noise=3, reduction=1)
        picture.save(folder / f"{index:05d}.png")


def _sides(rng: np.random.Generator, size: str) -> tuple[int, int]:
    if "x" in size:
        width, _, height = size.partition("x")
        return int(width), int(height)
    least, _, most = size.partition("..")
    width, height = rng.integers(int(least), int(most) + 1, 2)
    return int(width), int(height)


def _mirrored(rng: np.random.Generator, side: int, length: int) -> NDArray[np.intp]:
    """So many neighbouring indices of a drawing that goes on in mirror images without end."""
    index = (np.arange(side) + rng.integers(2 * length)) % (2 * length)
    return np.minimum(index, 2 * length - 1 - index)


def largest_difference(folder: Path, other: Path) -> int:
    """In levels of 255, over the colours of all PNG files of `folder`, which `other` has too."""
    return max(
        int(np.abs(_colour(path) - _colour(other / path.relative_to(folder))).max())
        for path in folder.rglob("*.png")
    )


def _colour(path: Path) -> NDArray[np.int16]:
    """(H, W, 1 or 3), without alpha."""
    pixels = eight_bit(decode(path.read_bytes(), _NO_LIMIT, Policy()).pixels)
    return pixels[:, :, : 1 if pixels.shape[2] < 3 else 3].astype(np.int16)
