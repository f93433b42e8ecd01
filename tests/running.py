"""Runs of the real commands on small real inputs, for the end-to-end tests."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from pipeline.attempts import AttemptLedger
from pipeline.config import Encode, Limits, Policy
from pipeline.models import zoo
from pipeline.models.srvgg import SRVGGNetCompact, SRVGGShape
from pipeline.records import ITEM_SCHEMA, OUTCOME_SCHEMA
from pipeline.storage import Store
from pipeline.worker import Job, Worker

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"


@dataclass
class Runs:
    """Starts `jobs/upscale.py` with a Ray of its own, below `folder`."""

    folder: Path
    model: Path
    ray: Path
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments):
        small = ["--model", str(self.model), "--device", "cpu", "--report.commit-s", "0.5"]
        return [sys.executable, str(ROOT / "jobs" / "upscale.py"), *small, *map(str, arguments)]

    def env(self):
        """Without whatever Ray or stores the surroundings know of."""
        ours = ("RAY_", "AWS_", "REMASTER_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return clean | {
            "PATH": programs,
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(self.ray),
            **self.environment,
        }

    def start(self, *arguments, **options):
        """The running command, in a process group of its own."""
        return self.launch(self.command(*arguments), **options)

    def launch(self, command, **options):
        """Any command, as `start` does it."""
        return subprocess.Popen(
            command,
            env=self.env(),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )

    def upscale(self, *arguments, code=0):
        """Runs to the end, checks the exit code, returns what was printed."""
        process = self.start(*arguments)
        said, _ = process.communicate(timeout=400)
        assert process.returncode == code, said
        return said


@contextmanager
def private_ray():
    """A folder for a Ray of one's own, which ends with the context."""
    ray = Path(tempfile.mkdtemp(prefix="ray"))  # short: sockets have names of 107 bytes at most
    yield ray
    end_ray(ray)
    shutil.rmtree(ray, ignore_errors=True)


@pytest.fixture
def runs(tmp_path, small_model):
    with private_ray() as ray:
        yield Runs(tmp_path, small_model, ray)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """A seeded network of 8 features and 2 convolutions, x2, in a checkpoint."""
    torch.manual_seed(0)
    net = SRVGGNetCompact(SRVGGShape(features=8, convs=2, scale=2))
    path = tmp_path_factory.mktemp("model") / "small-x2.pth"
    torch.save({"params": net.state_dict()}, path)
    return path


def small_worker(folder, model, attempts=None, **changes):
    """A worker in this process, without Ray, whose results go below `folder`."""
    job = {
        "run_id": "run",
        "recipe": "recipe",
        "model": zoo.resolve(str(model), store=Store(), models_uri=None),
        "precision": "fp32",
        "device": "cpu",
        "scale": None,
        "long_side": None,
        "encode": Encode(),
        "policy": Policy(),
        "limits": Limits(max_input_pixels=5000, max_output_pixels=15_000),
        "source": Store(),
        "output": Store(staging=str(folder / ".staging" / "run")),
        "models": Store(),
        "in_flight": 4,
        "fetches": 2,
        "in_flight_bytes": 10_000,
        "max_crashes": 2,
        "threads": 1,
        "workers_on_node": 1,
    }
    return Worker(Job(**{**job, **changes}), attempts or AttemptLedger())


def small_item(folder, path, **changes):
    """A worker's row for the file, whose result is a PNG in `folder`."""
    row = dict.fromkeys(ITEM_SCHEMA.names)
    row |= {"item_id": sha256(str(path).encode()), "key": path.name, "uri": str(path)}
    row |= {"output_uri": str(folder / f"{path.stem}.png"), "output_format": "png"}
    return row | {"shard": "00000", "attempts": 0} | changes


@pytest.fixture
def worker(tmp_path, small_model):
    """Makes workers whose results go below `out`."""
    return partial(small_worker, tmp_path / "out", small_model)


@pytest.fixture
def item(tmp_path):
    """Makes rows for them."""
    return partial(small_item, tmp_path / "out")


def outcomes(worker, rows):
    """The report's rows that a worker makes of these, in their order."""
    table = worker(pa.Table.from_pylist(rows, schema=ITEM_SCHEMA))
    assert table.schema.equals(OUTCOME_SCHEMA)
    assert table["item_id"].to_pylist() == [row["item_id"] for row in rows]
    return table.to_pylist()


def picture(number, width=32, height=24):
    """A small picture unlike all others."""
    rng = np.random.default_rng(number)
    smooth = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return PIL.Image.fromarray(smooth).resize((width, height), PIL.Image.Resampling.BICUBIC)


def opened(path):
    """A picture read whole, its file closed."""
    with PIL.Image.open(path) as image:
        image.load()
        return image


def pictures(folder, count, start=0):
    """So many PNG files; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"p{number:03d}.png" for number in range(start, start + count)]
    for number, path in enumerate(paths, start):
        picture(number).save(path)
    return paths


def report(output):
    """The report's rows by key, each key once."""
    rows = pyarrow.parquet.read_table(Path(output) / "_report" / "outcomes").to_pylist()
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}


def summary(output):
    """`summary.json` of the last run."""
    head = json.loads((Path(output) / "_report" / "latest.json").read_text())
    path = Path(output) / "_report" / "runs" / head["last_run"] / "summary.json"
    return json.loads(path.read_text())


def accounted(made):
    """Whether the manifest equals the report's rows plus the counted remainder."""
    parts = ("duplicates", "not_sampled", "done_before", "failed_before")
    parts += ("done", "failed", "skipped", "not_started")
    return made["manifest"] == sum(made[part] for part in parts)


def results(output):
    """sha256 of every published file, by its path below the output."""
    root = Path(output)
    files = [path for path in root.rglob("*") if path.is_file() and "_report" not in path.parts]
    return {str(path.relative_to(root)): sha256(path.read_bytes()) for path in files}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def temporary(output):
    """What a run should not leave."""
    return [str(path) for path in Path(output).rglob("*") if ".staging" in path.parts]


def processes(ray, part):
    """Pids of processes of this Ray whose command line holds `part`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (entry / "environ").read_bytes()
        except (OSError, UnicodeDecodeError):
            continue
        if part in command and str(ray).encode() in environment:
            found.append(int(entry.name))
    return found


def end_ray(ray):
    """Ends what a killed driver left of its Ray."""
    for _ in range(50):
        pids = processes(ray, "ray")
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)


def wait_for(condition, seconds=120):
    """Polls until the condition holds; its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")
