"""What a run says about itself."""

import io
from dataclasses import fields
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from pipeline.records import OUTCOME_SCHEMA
from pipeline.report import summary
from pipeline.report.progress import Progress
from pipeline.report.summary import Tally

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def outcomes(done=0, failed=0, worker="host:1", upscale_s=0.5, start=NOON):
    blank = {**dict.fromkeys(OUTCOME_SCHEMA.names), "upscale_s": upscale_s, "worker": worker}
    blank |= {"started_at": start, "finished_at": start + timedelta(seconds=4)}
    sizes = {"source_width": 1000, "source_height": 500, "output_width": 4000}
    made = {**blank, **sizes, "output_height": 2000, "output_bytes": 7, "status": "done"}
    lost = {**blank, "status": "failed", "error_code": "not_found"}
    return pa.Table.from_pylist([made] * done + [lost] * failed, schema=OUTCOME_SCHEMA)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_tally_adds_up():
    tally = Tally()
    tally.add(outcomes(done=2))
    tally.add(outcomes(done=1, failed=2))
    assert (tally.done, tally.failed, tally.seen, tally.output_bytes) == (3, 2, 5, 21)
    assert (tally.input_pixels, tally.output_pixels) == (1_500_000, 24_000_000)
    assert tally.codes == {"not_found": 2}
    assert tally.stage_s["upscale"] == 2.5


def test_devices_are_busy_for_a_share_of_each_worker_s_shift():
    tally = Tally()
    tally.add(outcomes(done=2))
    tally.add(outcomes(done=3, failed=1, worker="host:2"))
    assert tally.device_seconds() == (3.0, 8.0)
    assert {name: shift.share for name, shift in tally.shifts.items()} == {
        "host:1": 0.25,
        "host:2": 0.5,
    }


@pytest.mark.parametrize(
    ("busy", "share", "slowest", "words"),
    [
        (90, 0.9, "encode", ["90%", "faster devices", "precision"]),
        (50, 0.5, "encode", ["50%", "encode takes 80.0 s", "png_effort"]),
        (50, 0.5, "fetch", ["fetch takes 80.0 s", "workers.fetches"]),
        (50, 0.5, "publish", ["too few pictures"]),
        (5000, 0.5, "fetch", ["too few pictures"]),
    ],
)
def test_a_run_says_what_bounds_it_and_what_would_help(busy, share, slowest, words):
    stages = dict.fromkeys(["fetch", "decode", "encode", "publish"], 1.0) | {"upscale": busy}
    blank = {field.name: 0 for field in fields(summary.Summary)}
    at_once = {"fetch": 4, "decode": 2, "encode": 2, "publish": 64}
    known = {"stage_s": stages | {slowest: 80.0}, "at_once": at_once, "failures": {}, "done": 7}
    known |= {"device_busy_s": busy, "workers": 1}
    known |= {"wall_s": 110.0, "work_s": 100.0}
    made = summary.Summary(**blank | known | {"device_busy_share": share})
    assert all(word in made.lines()[-1] for word in words)


def test_a_run_that_was_mostly_its_start_says_so():
    blank = {field.name: 0 for field in fields(summary.Summary)}
    known = {"done": 1, "failures": {}, "wall_s": 50.7, "device_busy_share": 0.88}
    made = summary.Summary(**blank | known | {"work_s": 4.7})
    assert made.lines()[-1].startswith("46 of 51 s were the start and the end")


def test_workers_that_follow_each_other_are_at_work_all_the_time():
    tally = Tally()
    for number in range(3):
        start = NOON + timedelta(seconds=4 * number)
        tally.add(outcomes(done=1, worker=f"host:{number}", start=start))
    assert tally.work_s == 12.0


def test_a_device_is_never_busier_than_its_worker():
    tally = Tally()
    tally.add(outcomes(done=2, upscale_s=9.0))
    assert [shift.share for shift in tally.shifts.values()] == [1.0]


def test_before_the_first_result_a_run_waits():
    progress = Progress(10, Tally(), io.StringIO())
    assert progress.line().startswith("0/10 done, waiting for the first results")


def test_a_log_gets_a_line_and_a_terminal_a_bar():
    tally, log, terminal = Tally(), io.StringIO(), Terminal()
    line, bar = Progress(10, tally, log), Progress(10, tally, terminal)
    for _ in range(2):
        tally.add(outcomes(done=2, failed=1))
        line.tick()
        bar.tick()
    line.close()
    bar.close()
    first, second = log.getvalue().splitlines()
    assert first.startswith("3/10 done, ")
    assert first.endswith("1 failed, ? left")
    assert second.startswith("6/10 done, ")
    assert " img/s, " in second
    assert " Mpx/s, 2 failed, 0:00 left" in second
    assert "6/10" in terminal.getvalue()
    assert "2 failed" in terminal.getvalue()


@pytest.mark.parametrize(
    ("failed", "ok_failed", "code"),
    [(0, 0, 0), (1, 0, 3), (1, 1, 0), (2, 1, 3), (1, 0.1, 0), (2, 0.1, 3)],
)
def test_failures_count_up_to_a_number_or_a_share(failed, ok_failed, code):
    tally = Tally()
    tally.add(outcomes(done=10 - failed, failed=failed))
    assert summary.exit_code(tally, ok_failed=ok_failed, stopped=False) == code
    assert summary.exit_code(tally, ok_failed=ok_failed, stopped=True) == summary.STOPPED
