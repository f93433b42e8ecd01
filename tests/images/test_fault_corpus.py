"""Every way that we know for a file to be wrong, in one run of a worker: a row each, and no more.

The files are made in `faults`, with what each is to end as.
"""

import gc
import io
import logging
import os
import re
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import faults
import PIL.Image
import pytest
from running import outcomes, small_item, small_worker

from pipeline.attempts import AttemptLedger
from pipeline.errors import CODES

IN_FLIGHT_BYTES = 2**27
START_S = 60
CORPUS = {fault.name: fault for maker in faults.MAKERS for fault in maker()}
GROUPS = list(dict.fromkeys(fault.group for fault in CORPUS.values()))
BY_LIMIT = {"input_too_large", "too_many_pages", "metadata_too_large", "source_too_large"} | {
    "output_too_large",
    "output_pages",
    "decode_timeout",
    "decode_memory_limit",
}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Memory(threading.Thread):
    """What this process and its decoders take at most, in bytes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.children = {}
        self._ended = threading.Event()
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._status("self", "VmRSS")

    def run(self):
        while not self._ended.wait(0.02):
            for task in Path("/proc/self/task").iterdir():
                self._look(task)

    def _look(self, task):
        try:
            for pid in (task / "children").read_text().split():
                if b"pipeline.images.child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    most = self._status(pid, "VmHWM")
                    self.children[pid] = max(most, self.children.get(pid, 0))
        except (OSError, StopIteration):
            pass  # it ended meanwhile

    @staticmethod
    def _status(pid, name):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    def stop(self):
        self._ended.set()
        self.join()
        return self._status("self", "VmHWM") - self._before


@contextmanager
def overheard():
    """What is written to the standard outputs meanwhile, and what is logged."""
    records, said = list[str](), io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger().addHandler(handler)
    kept = [os.dup(number) for number in (1, 2)]
    with tempfile.TemporaryFile() as file:
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield records
        finally:
            for number, saved in zip((1, 2), kept, strict=True):
                os.dup2(saved, number)
                os.close(saved)
            logging.getLogger().removeHandler(handler)
            file.seek(0)
            records += [file.read().decode(errors="replace"), said.getvalue()]


@dataclass
class Run:
    rows: dict
    said: list
    folder: Path
    ledger: AttemptLedger
    children: dict
    """The most memory of each decoder, by its process."""
    worker_bytes: int
    """More than before."""


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_model):
    """The whole corpus through one worker, in one block."""
    folder = tmp_path_factory.mktemp("faults")
    items = []
    for number, fault in enumerate(CORPUS.values()):
        path = folder / f"{number:04d}.{fault.suffix}"
        path.write_bytes(fault.data)
        out = str(folder / f"{number:04d}.result.{fault.output}")
        asked = {"item_id": fault.name, "output_uri": out, "output_format": fault.output}
        items.append(small_item(folder, path, **asked))
    ledger, settings = AttemptLedger(), {"in_flight": 4, "in_flight_bytes": IN_FLIGHT_BYTES}
    worker = small_worker(folder, small_model, ledger, limits=faults.LIMITS, **settings)
    memory = Memory()
    memory.start()
    with overheard() as said:
        rows = outcomes(worker, items)
        taken = memory.stop()
        del worker
        gc.collect()
    by_name = {row["item_id"]: row for row in rows}
    return Run(by_name, said, folder, ledger, memory.children, taken)


def ending(row):
    return "done" if row["status"] == "done" else row["error_code"]


def test_each_file_has_one_row(run):
    assert run.rows.keys() == CORPUS.keys()
    assert len(CORPUS) > 500
    assert run.ledger.crashes(list(CORPUS)) == {}, "nothing is left under way"


@pytest.mark.parametrize("group", GROUPS)
def test_each_ends_as_it_should(run, group):
    wrong = {}
    for name, fault in CORPUS.items():
        row = run.rows[name]
        message = row["error_message"] or ""
        fits = not fault.wanted or ending(row) in fault.wanted
        if fault.group == group and not (fits and re.search(fault.says, message)):
            wrong[name] = (ending(row), message)
    assert wrong == {}


def test_each_failure_has_a_code_and_a_message(run):
    for row in run.rows.values():
        if row["status"] != "done":
            assert row["status"] == "failed"
            code = CODES[row["error_code"]]
            assert row["error_stage"] == code.stage
            assert row["error_class"] == ("transient" if code.transient else "permanent")
            assert row["error_class"] == "permanent", row
            assert 10 < len(row["error_message"]) <= 500


def test_limits_say_both_numbers_and_the_knob(run):
    for row in run.rows.values():
        if row["error_code"] in BY_LIMIT:
            assert re.search(
                r"[\d,.]+.*(limit|than|holds) [\d,]+.*\((limits\.\w+|format)", row["error_message"]
            ), row["error_message"]


def test_each_limit_is_reached(run):
    assert {row["error_code"] for row in run.rows.values()} >= BY_LIMIT


def test_no_file_kills_its_decoder(run):
    found = {name: row["error_message"] for name, row in run.rows.items()}
    assert [name for name in found if run.rows[name]["error_code"] == "decoder_crash"] == []


def test_results_are_whole_and_of_the_right_size(run):
    for number, name in enumerate(CORPUS):
        row, path = run.rows[name], run.folder / f"{number:04d}.result.{CORPUS[name].output}"
        assert path.exists() == (row["status"] == "done"), name
        if row["status"] == "done":
            with PIL.Image.open(path) as opened:
                opened.load()
                assert sorted(opened.size) == sorted(
                    (2 * row["source_width"], 2 * row["source_height"])
                )


def test_what_cannot_be_seen_to_be_missing_is_next_to_nothing(run):
    """Padding, and the last digit of a text; see `faults.UNSEEN`."""
    accepted = [name for name, row in run.rows.items() if "cut:" in name and not row["error_code"]]
    assert len(accepted) == len(faults.UNSEEN)


def test_names_that_are_wrong_are_noted(run):
    noted = {name for name, row in run.rows.items() if "format_mismatch" in row["warnings"]}
    assert {name for name in CORPUS if name.startswith("renamed")} <= noted
    assert not {name for name in noted if name.startswith("whole")}


def test_no_file_takes_longer_than_it_may(run):
    """A decoder's start is not its time, and takes long where others are at work."""
    limit = faults.LIMITS.decode_s
    assert max(row["decode_s"] or 0 for row in run.rows.values()) < limit + START_S
    late = [row for row in run.rows.values() if row["error_code"] == "decode_timeout"]
    assert [row["item_id"] for row in late] == ["bomb: scans"]
    said = re.match(r"not decoded after ([\d.]+) s", late[0]["error_message"])
    assert said is None or limit <= float(said[1]) < limit + 5, "else the kernel ended it"


def test_memory_stays_below_what_the_limits_say(run):
    imported = 200 * 2**20
    assert max(run.children.values()) < faults.LIMITS.decode_bytes + imported
    assert run.worker_bytes < IN_FLIGHT_BYTES + 4 * faults.LIMITS.max_source_bytes


def test_nothing_floods_the_log(run):
    assert run.said == ["", ""]
