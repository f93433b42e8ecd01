"""The contenders as processes, in turns: whatever disturbs the machine disturbs all of them."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.benchmark import figures, pictures
from pipeline.benchmark.figures import Entry, Trial, Work
from pipeline.errors import ConfigError
from pipeline.report.summary import DONE, USAGE

CONTENDERS = ("plain", "tiles", "engine", "run")

_JOBS = Path(__file__).resolve().parent.parent.parent / "jobs"
_WATCH_S = 0.5
_SAID = 300  # characters of what a contender says when it fails


class _FailedError(Exception):
    """A contender's process ended with an error: that is its result."""


def compare(asked: argparse.Namespace) -> dict[str, Any]:
    """The whole benchmark. Prints a table for each set of pictures, returns what the JSON holds.

    Raises ConfigError for what no contender could work with.
    """
    if asked.output:
        asked.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=asked.output) as name:
        folder, rows = Path(name), list[dict[str, Any]]()
        survey = _survey(asked, folder)
        print(figures.heading(asked.model, survey), flush=True)
        for title in [str(asked.pictures)] if asked.pictures else asked.size:
            source = asked.pictures or folder / "drawn" / title
            if not asked.pictures:
                pictures.draw(source, title, asked.count)
            count = len(pictures.found(source))
            entries = _compete(source, folder, asked, survey)
            plain = next((entry for entry in entries if entry.name == "plain"), None)
            group = [figures.row(entry, plain, survey, asked.price_per_hour) for entry in entries]
            print(f"\n{title}, {count} pictures, {asked.repeats} rounds")
            print(figures.table(group), flush=True)
            rows += [{"pictures_of": title, **row} for row in group]
    return {"model": asked.model, "survey": survey, "rows": rows}


def _survey(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    facts = folder / "survey.json"
    precision = ["--precision", *asked.precision] if asked.precision else []
    flags = ["--model", asked.model, "--device", asked.device, *precision, "--json", facts]
    try:
        _process("benchmark", "--only", "survey", *flags)
    except _FailedError as error:
        raise ConfigError(f"the device cannot be measured (--device): {error}") from error
    return json.loads(facts.read_text())


def _compete(
    source: Path, folder: Path, asked: argparse.Namespace, survey: dict[str, Any]
) -> list[Entry]:
    entries = [
        Entry(name, precision)
        for name in CONTENDERS
        if name in asked.contenders
        for precision in (survey["precisions"] if name in ("engine", "run") else ["fp32"])
    ]
    for number in range(1, asked.repeats + 1):
        for entry in (entry for entry in entries if entry.error is None):
            turn = f"round {number} of {asked.repeats}: {entry.name} {entry.precision}"
            print(turn, file=sys.stderr)
            _take_turn(entry, source, folder, asked.model, survey["device"])
    return entries


def _take_turn(entry: Entry, source: Path, folder: Path, model: str, device: str) -> None:
    results, plain = folder / f"{entry.name}-{entry.precision}", folder / "plain-fp32"
    shutil.rmtree(results, ignore_errors=True)  # a run would find everything done
    try:
        entry.trials.append(_try(entry, source, results, model, device))
    except _FailedError as error:
        entry.error = str(error)
        return
    if entry.levels is None and entry.name in ("tiles", "run") and plain.is_dir():
        entry.levels = pictures.largest_difference(plain, results)


def _try(entry: Entry, source: Path, results: Path, model: str, device: str) -> Trial:
    """One process, from its start to its end. Raises ConfigError, _FailedError."""
    flags: list[Any] = ["--manifest", source, "--output", results, "--model", model]
    flags += ["--device", device, "--precision", entry.precision]
    if entry.name == "run":
        seconds, host_bytes = _process("upscale", *flags, "--format", "png")
        return Trial(_work_of_run(results / "_report", seconds), seconds, host_bytes)
    facts = results.parent / "work.json"
    seconds, host_bytes = _process("benchmark", "--only", entry.name, *flags, "--json", facts)
    return Trial(Work(**json.loads(facts.read_text())), seconds, host_bytes)


def _work_of_run(report: Path, seconds: float) -> Work:
    """What a run says about itself."""
    last = json.loads((report / "latest.json").read_text())["last_run"]
    summary = json.loads((report / "runs" / last / "summary.json").read_text())
    return Work(
        pictures=summary["done"],
        input_pixels=summary["input_megapixels"] * 1e6,
        output_pixels=summary["output_megapixels"] * 1e6,
        work_s=summary.get("wall_s", seconds),
        device_s=summary.get("device_busy_s") or summary["stage_s"]["upscale"],
        peak_bytes=summary.get("device_peak_bytes"),
        workers=summary["workers"],
    )


def _process(job: str, *flags: Any) -> tuple[float, int]:
    """Seconds of a command, and the resident memory of all its processes at their peaks.

    Raises ConfigError where it says that it was asked for the impossible, else _FailedError.
    """
    command = [sys.executable, str(_JOBS / f"{job}.py"), *map(str, flags)]
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)  # noqa: S603
        with process, _watched(process.pid) as peaks:
            code = process.wait()
            seconds = time.perf_counter() - start
        said.seek(0)
        lines = said.read().strip().splitlines() or ["without a word"]
    if code == USAGE:
        raise ConfigError(lines[-1].removeprefix(f"{job}: "))
    if code != DONE:
        raise _FailedError(f"exit code {code}, {lines[-1][:_SAID]}")
    return seconds, sum(peaks.values())


@contextmanager
def _watched(pid: int) -> Generator[dict[int, int]]:
    """Fills in the largest resident memory of a process and of all that it starts, in bytes."""
    peaks, over = {pid: 0}, threading.Event()

    def watch() -> None:
        while not over.wait(_WATCH_S):
            peaks.update(_resident_peaks(set(peaks)))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


def _resident_peaks(family: set[int]) -> dict[int, int]:
    """Of these processes and all below them that are alive, from Linux's /proc."""
    parents, peaks = dict[int, int](), dict[int, int]()
    for file in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # it ended meanwhile
            lines = dict(line.split(":", 1) for line in file.read_text().splitlines())
            pid = int(file.parent.name)
            parents[pid] = int(lines["PPid"])
            if "VmHWM" in lines:  # what has ended but not been waited for has no memory
                peaks[pid] = int(lines["VmHWM"].split()[0]) * 1024
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family = family | more
    return {pid: peak for pid, peak in peaks.items() if pid in family}
