"""What the PNG writer takes of a core, beside Pillow's and libpng's defaults: `make png-speed`.

Photographs enlarged four times, which is what is written here; processor time, medians.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pipeline.images.png import EFFORTS, encode

ROOT = Path(__file__).resolve().parent.parent.parent
FACTOR = 4
REPEATS = 3
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
CASES = [(8, 3), (8, 1), (8, 4), (16, 3), (16, 1)]
"""Bits and channels."""

Samples = NDArray[np.uint8] | NDArray[np.uint16]


def enlarged(path: Path, bits: int, channels: int) -> Samples:
    """(height, width, channels) by a Lanczos filter in floats, so that 16 bits are all in use."""
    picture = PIL.Image.open(path).convert(MODES[channels])
    size = (picture.width * FACTOR, picture.height * FACTOR)
    planes = [
        np.asarray(plane.convert("F").resize(size, PIL.Image.Resampling.LANCZOS))
        for plane in picture.split()
    ]
    levels = np.stack(planes, axis=2).clip(0, 255) / 255 * (2**bits - 1)
    return np.rint(levels).astype(f"u{bits // 8}")


def by_pillow(pixels: Samples) -> bytes:
    """At its default, which is level 6 of deflate."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels.squeeze()).save(file, "PNG")
    return file.getvalue()


def by_libpng(pixels: Samples) -> bytes:
    """At the same level; of 16 bits Pillow writes gray alone."""
    return imagecodecs.png_encode(pixels, level=6)


def timed(write: Callable[[], bytes]) -> tuple[float, int]:
    """Processor seconds, the median of some, and bytes."""
    seconds, file = [], b""
    for _ in range(REPEATS):
        start = time.process_time()
        file = write()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds), len(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = ROOT.parent / "shared" / "data" / "kodak"
    parser.add_argument("--pictures", type=Path, default=default, help="photographs")
    parser.add_argument("--count", type=int, default=6, help="how many of them")
    parser.add_argument("--effort", choices=EFFORTS, default="fast", help="encode.png_effort")
    asked = parser.parse_args()
    paths = sorted(path for path in asked.pictures.rglob("*") if path.suffix in (".png", ".jpg"))
    if not paths:
        parser.error(f"no pictures in {asked.pictures} (--pictures)")
    print("BITS MODE   MP/S  RANGE      BYTES/PIXEL  OTHER'S MP/S  TIMES ITS SPEED  TIMES ITS SIZE")
    for bits, channels in CASES:
        rows = []
        for path in paths[:: max(1, len(paths) // asked.count)][: asked.count]:
            pixels = enlarged(path, bits, channels)
            other = by_libpng if bits > 8 and channels > 1 else by_pillow
            ours = timed(lambda: encode(pixels, EFFORTS[asked.effort]))  # noqa: B023
            theirs = timed(lambda: other(pixels))  # noqa: B023
            rows.append((pixels.shape[0] * pixels.shape[1], *ours, *theirs))
        areas, seconds, sizes, other_seconds, other_sizes = np.array(rows).T
        speeds, others = areas / seconds / 1e6, areas / other_seconds / 1e6
        print(
            f"{bits:4} {MODES[channels]:4} {np.median(speeds):6.1f}  "
            f"{min(speeds):4.0f} to {max(speeds):3.0f} {np.median(sizes / areas):10.2f} "
            f"{np.median(others):12.1f} {np.median(speeds / others):15.1f} "
            f"{np.median(sizes / other_sizes):15.2f}"
        )


if __name__ == "__main__":
    main()
