"""The report against a pure model of it, on a local disk."""

import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import FatalError
from pipeline.ledger import Ledger, Recorder, latest_view
from pipeline.records import OUTCOME_SCHEMA
from pipeline.storage import Store

START = datetime(2026, 1, 1, tzinfo=UTC)
exact = settings(deadline=None, derandomize=True, max_examples=60)

events = st.tuples(
    st.sampled_from(["a", "b", "c/d", "é"]),
    st.sampled_from(["v1", "v2"]),
    st.sampled_from(["done", "failed", "skipped"]),
)


def table(rows):
    """rows: (key, version, status, minute)."""
    full = [
        {
            **dict.fromkeys(OUTCOME_SCHEMA.names),
            "key": key,
            "item_id": f"{key}@{version}",
            "status": status,
            "run_id": "run",
            "finished_at": START + timedelta(minutes=minute),
            "warnings": [],
        }
        for key, version, status, minute in rows
    ]
    return pa.Table.from_pylist(full, schema=OUTCOME_SCHEMA)


def oracle(rows):
    """What DESIGN says of the latest view, by plain loops."""
    view = {}
    for key in {row[0] for row in rows}:
        mine = [row for row in rows if row[0] == key]
        newest = max(mine, key=lambda row: row[3])[1]
        others = max((row[3] for row in mine if row[1] != newest), default=-1)
        of_newest = [row for row in mine if row[1] == newest and row[3] > others]
        view[key] = max(of_newest, key=lambda row: (row[2] == "done", row[3]))
    return {
        key: (f"{key}@{version}", status, START + timedelta(minutes=minute))
        for key, (_, version, status, minute) in view.items()
    }


def seen(view):
    rows = view.select(["key", "item_id", "status", "finished_at"]).to_pylist()
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: (row["item_id"], row["status"], row["finished_at"]) for row in rows}


def numbered(history):
    return [(*event, minute) for minute, event in enumerate(history)]


@exact
@given(st.lists(events, max_size=20), st.integers(0, 20), st.booleans())
def test_the_latest_view_is_the_oracles_however_the_rows_arrive(history, cut, twice):
    rows = numbered(history)
    parts = [table(rows[cut:]), table(rows[:cut]), *([table(rows)] if twice else [])]
    view = latest_view(parts)
    assert seen(view) == oracle(rows)
    assert view["key"].to_pylist() == sorted(view["key"].to_pylist(), key=lambda key: key.encode())


@settings(deadline=None, derandomize=True, max_examples=20)
@given(runs=st.lists(st.lists(st.lists(events, max_size=4), max_size=3), max_size=4))
def test_commits_and_compactions_in_any_order_give_the_oracles_view(runs, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("report"))
    ledger, rows = Ledger(Store(), folder), []
    nightly = Ledger(Store(), str(tmp_path_factory.mktemp("nightly")))
    for number, fragments in enumerate(runs):
        for index, fragment in enumerate(fragments):
            late = numbered(fragment)
            late = [(*row[:3], row[3] + 10 * len(rows) + 1000 * number) for row in late]
            rows += late
            ledger.commit(f"run{number}", index, table(late))
            nightly.commit(f"run{number}", index, table(late))
            nightly.compact({})
            assert seen(nightly.latest()) == oracle(rows), "whenever it was compacted"
        if number % 2:
            ledger.compact({})
        assert seen(ledger.latest()) == oracle(rows)
    ledger.compact({})
    assert seen(ledger.latest()) == oracle(rows)
    if rows:
        assert seen(pyarrow.parquet.read_table(f"{folder}/outcomes")) == oracle(rows)


def test_a_compaction_that_died_before_its_end_is_mended_by_the_next(tmp_path):
    ledger = Ledger(Store(), str(tmp_path))
    rows = numbered([("a", "v1", "failed"), ("b", "v1", "done"), ("a", "v1", "done")])
    ledger.commit("run0", 0, table(rows[:2]))
    ledger.compact({})
    ledger.commit("run1", 0, table(rows[2:]))
    before = (tmp_path / "latest.json").read_bytes()
    ledger.compact({})
    (tmp_path / "latest.json").write_bytes(before)  # as if it had died before the last publish
    assert seen(ledger.latest()) == oracle(rows)
    ledger.compact({})
    assert seen(ledger.latest()) == oracle(rows)


def test_keys_split_over_files_stay_whole_while_they_grow(tmp_path):
    ledger, rows = Ledger(Store(), str(tmp_path), rows_per_file=2), []
    for number, key in enumerate(["m", "z", "a", "k", "b"]):
        rows.append((key, "v1", "done", number))
        ledger.commit(f"run{number}", 0, table(rows[-1:]))
        ledger.compact({})
        assert seen(pyarrow.parquet.read_table(tmp_path / "outcomes")) == oracle(rows)
    assert len(list((tmp_path / "outcomes").glob("*.parquet"))) == 3


def test_a_recorder_commits_while_it_runs_and_at_its_end(tmp_path):
    ticks = []
    ledger = Ledger(Store(), str(tmp_path))
    rows = numbered([("a", "v1", "done"), ("b", "v1", "done")])
    with Recorder(ledger, "run", every_s=0.01, tick=lambda: ticks.append(1)) as recorder:
        recorder.add(table(rows[:1]))
        while not list(tmp_path.glob("log/run/*.parquet")):
            pass
        recorder.add(table(rows[1:]))
    assert seen(ledger.latest()) == oracle(rows)
    assert ticks


def test_a_recorder_keeps_rows_that_could_not_be_committed(tmp_path, capsys):
    blocked = tmp_path / "log"
    blocked.write_text("a file where the folder should be")
    ledger, rows = Ledger(Store(), str(tmp_path)), numbered([("a", "v1", "done")])
    with Recorder(ledger, "run", every_s=0.01, tick=lambda: None) as recorder:
        recorder.add(table(rows))
        while "trying again" not in capsys.readouterr().err:
            pass
        blocked.unlink()
    assert seen(ledger.latest()) == oracle(rows)


def test_rows_that_can_never_be_committed_are_counted(tmp_path):
    (tmp_path / "log").write_text("a file where the folder should be")
    recorder = Recorder(
        Ledger(Store(), str(tmp_path)), "run", every_s=0.01, tick=lambda: None, patience_s=0.1
    )
    recorder.add(table(numbered([("a", "v1", "done"), ("b", "v1", "done")])))
    with pytest.raises(FatalError, match="2 rows could not be written"), recorder:
        pass


def test_a_report_of_fewer_columns_is_still_read(tmp_path):
    ledger, rows = Ledger(Store(), str(tmp_path)), numbered([("a", "v1", "done")])
    ledger.commit("run", 0, table(rows).drop_columns(["extra", "warnings"]))
    assert seen(ledger.latest()) == oracle(rows)


def test_runs_that_never_noted_their_end_are_known(tmp_path):
    ledger = Ledger(Store(), str(tmp_path))
    ledger.write("runs/one/config.yaml", b"", "application/yaml")
    ledger.write("runs/two/config.yaml", b"", "application/yaml")
    ledger.write_json("runs/two/summary.json", {})
    assert ledger.unfinished_runs() == ["one"]


def test_a_damaged_report_is_an_error_that_names_the_file(tmp_path):
    ledger = Ledger(Store(), str(tmp_path))
    ledger.commit("run", 0, table([]))
    (tmp_path / "log/run/000000.parquet").write_bytes(b"PAR1 half")
    with pytest.raises(FatalError, match=r"000000\.parquet is damaged"):
        ledger.latest()
    (tmp_path / "latest.json").write_text("{")
    with pytest.raises(FatalError, match=r"latest\.json is damaged"):
        ledger.head()


def test_the_head_is_what_was_set(tmp_path):
    ledger = Ledger(Store(), str(tmp_path))
    assert ledger.head() == {}
    ledger.set_head({"auto": {"device": "cpu"}})
    assert json.loads((tmp_path / "latest.json").read_text()) == ledger.head()
