"""Counts of a run: `summary.json`, the exit code and the last lines on the terminal."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa

DONE, CRASHED, USAGE, SOME_FAILED, BREAKER, STOPPED, LOCKED = 0, 1, 2, 3, 4, 5, 6

_STAGES = ("fetch", "decode", "upscale", "encode", "publish")

# From this share of the time on, a device counts as the bound.
_BUSY = 0.85
# A stage that takes less than this share of the device's seconds bounds nothing.
_NOTABLE = 0.1
# A run in which the workers had work for less than this share of the time was mostly Ray's start.
_SHORT = 0.5
_REMEDIES = {
    "fetch": "more sources at once (workers.fetches), or a store that is nearer",
    "decode": "more cores for each worker (workers.count, or nodes with more of them)",
    "upscale": "more or faster devices, a smaller model or precision (model, precision)",
    "encode": "a cheaper format (format, encode.png_effort), or more cores for each worker",
    "publish": "smaller files (format), or a store that is nearer",
}


@dataclass
class Shift:
    """What one worker did, from its first fetch to its last publish."""

    started: datetime
    ended: datetime
    worked_s: float = 0.0
    """Seconds that its device worked, of all pictures added up."""

    @property
    def seconds(self) -> float:
        """From the first fetch to the last publish."""
        return (self.ended - self.started).total_seconds()

    @property
    def busy_s(self) -> float:
        """Seconds that its device worked: a picture that began alone has all threads of a CPU, also
        when others join it, which makes more than there is."""
        return min(self.worked_s, self.seconds)

    @property
    def share(self) -> float:
        """Of that time, how much its device worked."""
        return self.busy_s / self.seconds if self.seconds else 0.0


@dataclass
class Tally:
    """What the outcomes of a run add up to, as they stream in."""

    done: int = 0
    failed: int = 0
    skipped: int = 0
    input_pixels: int = 0
    output_pixels: int = 0
    output_bytes: int = 0
    codes: Counter[str] = field(default_factory=Counter[str])
    stage_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_STAGES, 0.0))
    shifts: dict[str, Shift] = field(default_factory=dict[str, Shift])

    def add(self, outcomes: pa.Table) -> None:
        """Counts in rows of OUTCOME_SCHEMA."""
        for row in outcomes.select(_COUNTED).to_pylist():
            status = row["status"]
            setattr(self, status, getattr(self, status) + 1)
            if row["error_code"]:
                self.codes[row["error_code"]] += 1
            for stage in _STAGES:
                self.stage_s[stage] += row[f"{stage}_s"] or 0.0
            self._add_to_shift(row)
            if status == "done":
                self.input_pixels += row["source_width"] * row["source_height"]
                self.output_pixels += row["output_width"] * row["output_height"]
                self.output_bytes += row["output_bytes"]

    def _add_to_shift(self, row: dict[str, Any]) -> None:
        started, ended = row["started_at"], row["finished_at"]
        if not (started and ended):
            return
        shift = self.shifts.setdefault(row["worker"], Shift(started, ended))
        shift.started, shift.ended = min(shift.started, started), max(shift.ended, ended)
        shift.worked_s += row["upscale_s"] or 0.0

    def device_seconds(self) -> tuple[float, float]:
        """Seconds that devices worked, and those from first fetch to last publish, of all
        workers."""
        shifts = self.shifts.values()
        return sum(shift.busy_s for shift in shifts), sum(shift.seconds for shift in shifts)

    @property
    def work_s(self) -> float:
        """From the first fetch to the last publish of any worker."""
        shifts = self.shifts.values()
        if not shifts:
            return 0.0
        ended = max(shift.ended for shift in shifts)
        return (ended - min(shift.started for shift in shifts)).total_seconds()

    @property
    def seen(self) -> int:
        """Rows counted."""
        return self.done + self.failed + self.skipped

    @property
    def seconds_per_item(self) -> float | None:
        """Device time of a done item, on average."""
        return self.stage_s["upscale"] / self.done if self.done else None


_COUNTED = [
    "status",
    "error_code",
    "source_width",
    "source_height",
    "output_width",
    "output_height",
    "output_bytes",
    "worker",
    "started_at",
    "finished_at",
    *(f"{stage}_s" for stage in _STAGES),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run in numbers. `manifest` = `done_before` + `failed_before` + rows of this run
    (`done` + `failed` + `skipped`) + `not_started`."""

    run_id: str
    recipe: str
    model: str
    precision: str
    device: str
    manifest: int
    ignored: int
    duplicates: int
    not_sampled: int
    done_before: int
    failed_before: int
    done: int
    failed: int
    skipped: int
    not_started: int
    failures: dict[str, int]
    workers: int
    wall_s: float
    work_s: float
    """From the first fetch to the last publish of any worker."""
    stage_s: dict[str, float]
    at_once: dict[str, float]
    """Of the stages beside the device, how many pictures may be in each, in all workers."""
    device_busy_s: float
    device_busy_share: float
    """Of the time between first fetch and last publish, over all workers."""
    device_busy: dict[str, dict[str, float]]
    """By worker: `busy_s`, `seconds` and their `share`."""
    input_megapixels: float
    output_megapixels: float
    output_bytes: int
    exit_code: int

    def to_json(self) -> dict[str, Any]:
        """As in `summary.json`."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What a person reads at the end of a run."""
        made = f"{self.done} done, {self.failed} failed"
        rest = [
            f"{count} {text}"
            for count, text in (
                (self.skipped, "skipped"),
                (self.done_before, "done before"),
                (self.failed_before, "failed before and not tried again (retry_failed)"),
                (self.not_started, "left for another run"),
                (self.duplicates, "listed twice"),
                (self.not_sampled, "outside the sample"),
                (self.ignored, "other files ignored"),
            )
            if count
        ]
        size = f"{self.input_megapixels:.1f} megapixels in, {self.output_megapixels:.1f} out"
        first = f"{', '.join([made, *rest])}; {size}; {self.wall_s:.1f} s"
        failures = [f"  {count} x {code}" for code, count in self.failures.items()]
        return [first, *failures, *([self.bound()] if self.done else [])]

    def bound(self) -> str:
        """Which stage bounds the run, and what would help.

        Stages overlap, so a device that works all the time is the bound, whatever the others take;
        else it is what takes longest beside it, as many pictures at once as there may be.
        """
        if self.work_s < _SHORT * self.wall_s:
            idle_s = self.wall_s - self.work_s
            times = f"{idle_s:.0f} of {self.wall_s:.0f} s"
            return f"{times} were the start and the end: more pictures in a run"
        busy = f"devices busy {self.device_busy_share:.0%} of the time"
        if self.device_busy_share >= _BUSY:
            return f"{busy}: {_REMEDIES['upscale']}"
        waits = {name: self.stage_s[name] / self.at_once[name] for name in self.at_once}
        stage = max(waits, key=lambda name: waits[name])
        if waits[stage] < _NOTABLE * self.device_busy_s / max(1, self.workers):
            return f"{busy}: too few pictures at once to keep them so"
        return f"{busy}, {stage} takes {self.stage_s[stage]:.1f} s beside them: {_REMEDIES[stage]}"


def exit_code(tally: Tally, *, ok_failed: float, stopped: bool) -> int:
    """The code of a run that came to its end or was stopped.

    ok_failed: failures that still count as success; below 1 a share of the rows, else a count.
    """
    if stopped:
        return STOPPED
    bound = ok_failed * tally.seen if ok_failed < 1 else ok_failed
    return SOME_FAILED if tally.failed > bound else DONE
