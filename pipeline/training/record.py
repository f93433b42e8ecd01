"""What a training tells of itself: metrics, validation, sheets and the exported generator.

<output>/metrics.jsonl        a line for every `log_every` steps, and one for every validation
<output>/tensorboard/         the same for TensorBoard
<output>/sheets/<step>.png    pictures of a validation: bicubic, ours, target
<output>/model.safetensors    the averaged generator; model.pth under the official keys
"""

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensorboardX import SummaryWriter
from torch import Tensor

from pipeline import uris
from pipeline.errors import FatalError
from pipeline.training import state, validation
from pipeline.training.state import Checkpoints
from pipeline.training.trainer import Trainer, peak_bytes
from pipeline.training.validation import Case

_JSONL = "application/x-ndjson"


class Record:
    """Kept by the first worker. Metrics of the steps since the last checkpoint can be lost."""

    def __init__(
        self, trainer: Trainer, checkpoints: Checkpoints, cases: Sequence[Case], pictures: str
    ) -> None:
        """cases: what is validated. pictures: the digest of those that are learnt from."""
        self._trainer, self._cases, self._pictures = trainer, cases, pictures
        self._store, self._output = checkpoints.store, checkpoints.output
        earlier = self._earlier() if trainer.step else []
        self._lines = [line for line in earlier if line["step"] <= trainer.step]
        self._losses = list[Mapping[str, Tensor]]()
        self._since, self._waited_s = time.monotonic(), trainer.waited_s
        self._folder = tempfile.TemporaryDirectory(prefix="remaster-tensorboard-")
        self._board = SummaryWriter(self._folder.name, purge_step=trainer.step + 1)

    def begin(self) -> Iterator[str]:
        """What the generator can do before its first step."""
        if self._cases and not self._trainer.step:
            yield self._validate()

    def see(
        self, losses: Mapping[str, Tensor], skipped: Mapping[str, str], *, last: bool
    ) -> Iterator[str]:
        """A step's losses; every now and then lines for people.

        last: of this run. One that was told to stop has no time to validate.
        Raises FatalError when the losses are no numbers any more.
        """
        config, step = self._trainer.config, self._trainer.step
        finished = step == config.iterations
        self._losses.append(losses)
        if last or step % config.log_every == 0:
            yield self._tell(skipped)
        if self._cases and (finished or step % config.validation.every == 0):
            yield self._validate()
        if last and skipped:
            uri, reason = next(iter(skipped.items()))
            yield f"{len(skipped)} pictures could not be used, such as {uri}: {reason}"

    def _tell(self, skipped: Mapping[str, str]) -> str:
        """Means since the last line."""
        seconds, count = time.monotonic() - self._since, len(self._losses)
        values = self._means()
        values |= {
            "steps_per_s": count / seconds,
            "waiting": (self._trainer.waited_s - self._waited_s) / seconds,
            "memory_mb": peak_bytes(self._trainer.place.device) / 1e6,
        }
        values |= {"rate": self._trainer.adam.param_groups[0]["lr"], "skipped": len(skipped)}
        self._losses, self._since = [], time.monotonic()
        self._waited_s = self._trainer.waited_s
        left_s = (self._trainer.config.iterations - self._trainer.step) * seconds / count
        return f"{self._note(values)}; {left_s / 60:.0f} min left"

    def _means(self) -> dict[str, float]:
        """Raises FatalError when one is no number: all weights follow within a step."""
        means = {
            name: torch.stack([step[name] for step in self._losses]).mean().item()
            for name in self._losses[0]
        }
        wrong = [name for name, value in means.items() if not math.isfinite(value)]
        if wrong:
            raise FatalError(
                f"the training diverged: {', '.join(wrong)} not finite at step "
                f"{self._trainer.step}; the last checkpoint stands (adam.rate)"
            )
        return means

    def _validate(self) -> str:
        """Measures and draws the averaged generator on the cases."""
        paused = time.monotonic()
        made = validation.results(self._trainer.averaged, self._cases)
        values = validation.measure(self._cases, made, scale=self._trainer.averaged.shape.scale)
        name = f"sheets/{self._trainer.step:08d}.png"
        self._publish(name, validation.sample_sheet(self._cases, made), "image/png")
        self._since += time.monotonic() - paused  # steps per second are those of the training
        return self._note({f"val_{name}": value for name, value in values.items()})

    def publish(self) -> None:
        """Metrics so far, and the generator as it is. Raises FatalError when it diverged."""
        if self._losses:
            self._means()
        lines = "".join(json.dumps(line) + "\n" for line in self._lines)
        self._publish("metrics.jsonl", lines.encode(), _JSONL)
        self._board.flush()
        for file in Path(self._folder.name).iterdir():
            self._publish(f"tensorboard/{file.name}", file.read_bytes())
        config, step = self._trainer.config, self._trainer.step
        recipe = config.recipe()
        facts = {
            "licence": config.licence,
            "stage": config.stage,
            "recipe": recipe,
            "training": hashlib.sha256(f"{recipe}{self._pictures}{step}".encode()).hexdigest(),
        }
        for name, data in state.export(self._trainer, facts).items():
            self._publish(name, data)

    def close(self) -> None:
        """Ends what TensorBoard's writer has begun."""
        self._board.close()
        self._folder.cleanup()

    def _note(self, values: Mapping[str, float]) -> str:
        step = self._trainer.step
        self._lines.append({"step": step, **values})
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        return f"step {step} of {self._trainer.config.iterations}: {shown}"

    def _earlier(self) -> list[dict[str, Any]]:
        try:
            data = self._store.read(uris.join(self._output, "metrics.jsonl"))
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in data.splitlines()]

    def _publish(self, name: str, data: bytes, content_type: str | None = None) -> None:
        self._store.publish(uris.join(self._output, name), data, content_type=content_type)
