"""What a run has between its manifest and its report, without Ray: the worker and its blocks."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import torch
from networks import network
from running import SHARED, picture

from pipeline import flow, manifest, plan
from pipeline.attempts import AttemptLedger
from pipeline.cluster import Fleet
from pipeline.config import UpscaleConfig
from pipeline.models import zoo
from pipeline.models.srvgg import SRVGGShape
from pipeline.records import ITEM_SCHEMA
from pipeline.session import Session
from pipeline.storage import Store
from pipeline.worker import Worker


class Production:
    """One worker for a folder of pictures, handed to it as `flow` does."""

    def __init__(self, folder: Path, output: Path, model: Path) -> None:
        values = {"manifest": str(folder), "output": str(output), "model": str(model)}
        threads = {"threads": torch.get_num_threads()}  # OMP_NUM_THREADS counts
        config = UpscaleConfig(**values, device="cpu", precision="fp32", workers=threads)
        session = Session.settle(config, lambda: "cpu")
        self.todo = flow._plan(session, manifest.read(config, Store())).left.todo
        fleet = Fleet(count=1, per_node=1, cpus=1, gpus=0, cores=1)
        self._worker = Worker(flow._job(session, fleet), AttemptLedger())

    @property
    def block_rows(self) -> int:
        return plan.block_rows(self.todo, workers=1)

    def run(self) -> list[dict]:
        """All rows of the report, from two blocks at a time."""
        items, rows = self.todo.select(ITEM_SCHEMA.names), self.block_rows
        blocks = [items.slice(start, rows) for start in range(0, items.num_rows, rows)]
        with ThreadPoolExecutor(2) as threads:
            return pa.concat_tables(threads.map(self._worker, blocks)).to_pylist()


def weights(folder: Path) -> Path:
    """A checkpoint of animevideov3: the official one, or a seeded one of its shape."""
    official = SHARED / "weights" / "realesr-animevideov3.pth"
    if official.exists():
        return official
    seeded = folder / "seeded-x4.pth"
    torch.save({"params": network(SRVGGShape()).state_dict()}, seeded)
    return seeded


def loaded(model: Path) -> torch.nn.Module:
    """The plain network of a checkpoint."""
    spec = zoo.resolve(str(model), store=Store())
    return zoo.load_generator(spec, store=Store(), cache_dir=zoo.default_cache_dir())


def drawn(seed: int, width: int, height: int) -> np.ndarray:
    """uint8 (height, width, 3): smooth, and an archive's noise on it."""
    smooth = np.asarray(picture(seed, width, height)).astype(np.int16)
    grain = np.random.default_rng(seed).integers(-8, 9, smooth.shape, dtype=np.int16)
    return (smooth + grain).clip(0, 255).astype(np.uint8)


def written(folder: Path, seed: int, width: int, height: int) -> np.ndarray:
    """A drawn picture as a PNG file named by its seed."""
    pixels = drawn(seed, width, height)
    PIL.Image.fromarray(pixels).save(folder / f"{seed:05d}.png", compress_level=1)
    return pixels


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at their peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(value) * 1024
