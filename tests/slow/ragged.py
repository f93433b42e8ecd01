"""Small pictures of all sizes through a worker, against the engine on one that fills the device.

`make ragged`. Prints the ratio of their pixel rates, checks some results against the plain network.
"""

import argparse
import functools
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "engine")]

from networks import whole  # noqa: E402
from production import Production, drawn, loaded, weights, written  # noqa: E402

from pipeline.config import Limits, Policy  # noqa: E402
from pipeline.engine.upscaler import Upscaler  # noqa: E402
from pipeline.images.decode import decode  # noqa: E402

SIDES = (24, 200)
CHECKED = 50
STAGES = ("fetch", "decode", "upscale", "encode", "publish")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="pictures; default %(default)s")
    parser.add_argument("--side", type=int, default=1024, help="of the engine's; %(default)s")
    parser.add_argument("--calls", type=int, default=3, help="of the engine, before and after")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", type=Path, help="a checkpoint; default animevideov3")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ragged-") as name:
        folder = Path(name)
        (folder / "in").mkdir()
        sizes = np.random.default_rng(0).integers(SIDES[0], SIDES[1] + 1, (asked.count, 2))
        pictures = [written(folder / "in", n, *size) for n, size in enumerate(sizes.tolist())]
        model = asked.model or weights(folder)
        alone = functools.partial(rates, model, asked.side, asked.calls)
        before = in_a_process(alone)
        for number in range(asked.rounds):
            seconds, block_rows, rows = in_a_process(
                functools.partial(produce, folder / "in", folder / f"out{number}", model)
            )
            after = in_a_process(alone)
            pixels = sum(row["source_width"] * row["source_height"] for row in rows)
            tell(rows, seconds, block_rows)
            ratio = pixels / seconds / median(before + after)
            shown = [f"{rate / 1e6:.4f}" for rate in before + after]
            print(f"worker / engine: {ratio:.2f} (engine {shown})", flush=True)
            before = after
        check(rows, pictures, loaded(model))


def in_a_process(work: Callable[[], Any]) -> Any:
    """Its result. A new process: OpenMP's threads are slower in one that has had several teams."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work).result()


def produce(pictures: Path, output: Path, model: Path) -> tuple[float, int, list[dict]]:
    """Seconds of a worker for all pictures, the rows of its blocks, and those of the report."""
    production = Production(pictures, output, model)
    start = time.perf_counter()
    rows = production.run()
    return time.perf_counter() - start, production.block_rows, rows


def rates(model: Path, side: int, calls: int) -> list[float]:
    """Input pixels a second of the engine alone, on one picture; after a call that counts not."""
    engine = Upscaler(loaded(model), device="cpu", precision="fp32")
    seconds, pixels = [], drawn(0, side, side)
    for _ in range(calls + 1):
        start = time.perf_counter()
        engine(pixels)
        seconds.append(time.perf_counter() - start)
    return [side * side / s for s in seconds[1:]]


def tell(rows: list[dict], seconds: float, block_rows: int) -> None:
    sums = {stage: sum(row[f"{stage}_s"] for row in rows) for stage in STAGES}
    said = ", ".join(f"{stage} {total:.1f}" for stage, total in sums.items())
    print(f"{len(rows)} pictures in {seconds:.1f} s, blocks of {block_rows}; seconds in: {said}")


def check(rows: list[dict], pictures: list[np.ndarray], net: torch.nn.Module) -> None:
    """Raises AssertionError where a result differs from the plain network's by more than ties."""
    net, samples, ties = net.to(memory_format=torch.channels_last), 0, 0
    for index in np.random.default_rng(1).permutation(len(rows))[:CHECKED].tolist():
        row = rows[index]
        assert row["status"] == "done", row
        limits = Limits(max_input_pixels=2**40)
        made = decode(Path(row["output_uri"]).read_bytes(), limits, Policy()).pixels
        off = np.abs(made - np.rint(whole(net, pictures[int(Path(row["key"]).stem)])))
        assert off.max() <= 1, row
        samples, ties = samples + off.size, ties + np.count_nonzero(off)
    print(f"{samples:,} samples of {CHECKED} results checked: {ties} ties, nothing else differs")
    assert ties < 1e-5 * samples


if __name__ == "__main__":
    main()
