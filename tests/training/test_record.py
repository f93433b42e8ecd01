"""What a training tells of itself, and when."""

import json

import numpy as np
import pytest
import torch
from small import advance, config, trainer

from pipeline.errors import FatalError
from pipeline.training.record import Record
from pipeline.training.state import Checkpoints
from pipeline.training.validation import Case


@pytest.fixture
def record(tmp_path):
    """Makes one of a trainer, with a picture to validate with; ends it."""
    made = []

    def make(learning):
        high = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        case = Case("a.png", high, high[::2, ::2].copy(), high)
        made.append(Record(learning, Checkpoints.of(learning.config), [case], "49"))
        return made[-1]

    yield make
    for one in made:
        one.close()


def steps(learning, record, count, *, last):
    """What is said of each step."""
    said = []
    for _ in range(count):
        advance(learning, 1)
        said.append(list(record.see({"l1": torch.tensor(0.5)}, {}, last=last)))
    return said


def test_a_training_is_validated_at_its_end_but_not_when_it_is_told_to_stop(record, tmp_path):
    learning = trainer(config(output=str(tmp_path), iterations=2))
    kept = record(learning)
    (start,) = kept.begin()
    assert "step 0 of 2: val_psnr" in start
    (stopped,) = steps(learning, kept, 1, last=True)
    assert [line for line in stopped if "val_" in line] == []
    assert "l1 0.5" in stopped[0]
    (finished,) = steps(learning, kept, 1, last=True)
    assert len([line for line in finished if "val_psnr_y" in line]) == 1
    kept.publish()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 2]
    assert (tmp_path / "sheets" / "00000002.png").exists()


def test_a_training_that_diverged_is_not_published(record, tmp_path):
    learning = trainer(config(output=str(tmp_path), log_every=100))
    kept = record(learning)
    steps(learning, kept, 1, last=False)
    kept.publish()
    before = (tmp_path / "model.safetensors").read_bytes()
    advance(learning, 1)
    nothing = {"l1": torch.tensor(float("nan"))}
    assert list(kept.see(nothing, {}, last=False)) == []
    with pytest.raises(FatalError, match=r"l1 not finite at step 2.*adam\.rate"):
        kept.publish()
    with pytest.raises(FatalError, match="diverged"):
        list(kept.see(nothing, {}, last=True))
    assert (tmp_path / "model.safetensors").read_bytes() == before
