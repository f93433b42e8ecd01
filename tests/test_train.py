"""The training command on a real local Ray: killed, stopped, resumed, and its result used."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from running import ROOT, pictures, processes, report, wait_for
from safetensors.torch import load_file

from pipeline.storage import Store
from pipeline.training import assembly, validation
from pipeline.training import pictures as training_pictures
from pipeline.training.config import TrainConfig
from pipeline.training.crops import Reader
from pipeline.training.trainer import Place

STEPS = 120
SMALL = {
    "generator": {"architecture": "SRVGGNetCompact", "features": 8, "convs": 2, "scale": 2},
    "iterations": STEPS,
    "batch": 4,
    "lane": 2,
    "pool": 8,
    "save_every": 10,
    "log_every": 20,
    "crops": {"side": 64, "target": 48, "scales": [1], "shortest": None},
    "validation": {"every": 60, "side": 64},
    "workers": {"threads": 1},
}


@pytest.fixture
def asked(tmp_path):
    """A configuration file, and what it says: eleven pictures, of which one is validated."""
    pictures(tmp_path / "in", 11)
    # Relative, as people type it: the workers have working directories of their own.
    values = {**SMALL, "images": "in", "output": "out"}
    file = tmp_path / "train.yaml"
    file.write_text(json.dumps(values))
    here = {name: str(tmp_path / values[name]) for name in ("images", "output")}
    return file, TrainConfig.load(str(file), here)


def train(runs, file, *more):
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), "--config", str(file), *more]
    return runs.launch(command)


def step_of(config):
    latest = Path(config.output) / "checkpoints" / "latest.json"
    return json.loads(latest.read_text())[0]["step"] if latest.exists() else 0


def uninterrupted(config):
    """The generator's averaged weights after all steps, without Ray and without a pause."""
    torch.set_num_threads(1)
    found, _ = validation.divide(training_pictures.find(config), config)
    learning = assembly.build(config, Place(torch.device("cpu")))
    reader = Reader(found, config, Store(), scale=2)
    crops = reader.ahead(range(STEPS), list(learning.pools))
    for _ in range(STEPS):
        learning.advance(crops)
    crops.close()
    return learning.averaged.state_dict()


def test_a_training_survives_its_worker_and_its_driver(runs, asked, tmp_path):
    file, config = asked
    running = train(runs, file)
    # Once a checkpoint is there its worker is killed, and once it has gone on its driver stopped.
    wait_for(lambda: step_of(config) >= 10)
    (pid, *_) = wait_for(lambda: processes(runs.ray, "RayTrainWorker"))
    os.kill(pid, signal.SIGKILL)
    before = step_of(config)
    wait_for(lambda: step_of(config) > before)
    running.send_signal(signal.SIGTERM)
    said, _ = running.communicate(timeout=120)
    assert running.returncode == 5, said
    assert f"goes on after step {before}" in said
    assert before < step_of(config) < STEPS

    again = train(runs, file)
    said, _ = again.communicate(timeout=200)
    assert again.returncode == 0, said
    assert f"step {STEPS} of {STEPS}" in said
    made = load_file(Path(config.output) / "model.safetensors")
    wanted = uninterrupted(config)
    assert [name for name in wanted if not torch.equal(made[name], wanted[name])] == []

    metrics = (tmp_path / "out" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in metrics.splitlines()]
    assert [line["step"] for line in lines if "l1" in line][-1] == STEPS
    assert [line["step"] for line in lines if "val_psnr_y" in line][-1] == STEPS
    assert list((tmp_path / "out" / "sheets").glob("*.png"))
    assert list((tmp_path / "out" / "tensorboard").iterdir())

    model = tmp_path / "out" / "model.safetensors"
    runs.upscale("--manifest", tmp_path / "in", "--output", tmp_path / "up", "--model", model)
    assert {row["status"] for row in report(tmp_path / "up").values()} == {"done"}


def test_a_training_that_cannot_go_on_says_why_once(runs, asked, tmp_path):
    file, _ = asked
    for path in (tmp_path / "in").iterdir():
        path.write_bytes(b"no picture")
    running = train(runs, file)
    said, _ = running.communicate(timeout=120)
    assert running.returncode == 1, said
    assert said.count("10 pictures in a row, of 10, cannot be used") == 1
    assert "Traceback" not in said


def test_what_cannot_be_trained_is_said_before_anything_starts(runs, asked):
    file, _ = asked
    for wrong, words in (
        (["--images", "nowhere"], "there is no file at"),
        (["--batch", "5"], "batch 5 is no multiple of lane 2"),
        (["--stage", "gan", "--losses.vgg19", "none.pth"], "losses.perceptual: off"),
        (
            ["--stage", "gan", "--losses.perceptual", "off", "--start-discriminator", "none.pth"],
            "no discriminator at none.pth (start_discriminator)",
        ),
        (["--deadline", "soon"], "a duration is a number above 0 with"),
    ):
        running = train(runs, file, *wrong)
        said, _ = running.communicate(timeout=60)
        assert (running.returncode, words in said) == (2, True), said
