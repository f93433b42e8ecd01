"""The report as a database: commit fragments, read the latest view, compact.

    <report>/log/<run_id>/<n>.parquet   fragments as committed, each by one atomic publish
    <report>/outcomes/<n>.parquet       the latest view, one row a key, sorted by key
    <report>/latest.json                what of the log the outcomes hold, and what `auto` meant
    <report>/recipes/<digest>.json
    <report>/runs/<run_id>/...

A row that says done is committed after the object that it speaks of. Nothing is ever deleted, and
every step may be repeated: the latest view of outcomes and fragments is the same however often a
fragment is counted in.
"""

import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from pipeline.errors import ConfigError, FatalError
from pipeline.records import OUTCOME_SCHEMA
from pipeline.storage import Store
from pipeline.uris import join

pc: Any = pyarrow.compute  # its functions are made at run time, no checker knows them


class Ledger:
    """The report of one output."""

    def __init__(self, store: Store, uri: str, *, rows_per_file: int = 500_000) -> None:
        """uri: the report's folder, which need not exist. rows_per_file: of `outcomes/`."""
        self.uri = uri
        self._store = store
        self._rows_per_file = rows_per_file

    def head(self) -> dict[str, Any]:
        """`latest.json`, empty before the first run."""
        return self.read_json("latest.json")

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the report by its relative name, empty where there is none."""
        try:
            return json.loads(self._store.read(join(self.uri, name)))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise FatalError(f"{self.uri}/{name} is damaged: {error}") from error

    def read_yaml(self, name: str) -> dict[str, Any]:
        """A YAML file of the report by its relative name, empty where there is none."""
        import yaml  # here and not above: most runs read none

        try:
            return yaml.safe_load(self._store.read(join(self.uri, name)))
        except FileNotFoundError:
            return {}
        except yaml.YAMLError as error:
            raise FatalError(f"{self.uri}/{name} is damaged: {error}") from error

    def set_head(self, head: Mapping[str, Any]) -> None:
        """Replaces `latest.json`."""
        self.write_json("latest.json", head)

    def write(self, name: str, data: bytes, content_type: str) -> None:
        """A file of the report by its relative name."""
        self._store.publish(join(self.uri, name), data, content_type=content_type)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """A JSON file of the report by its relative name."""
        self.write(name, _json(value), "application/json")

    def commit(self, run_id: str, number: int, outcomes: pa.Table) -> None:
        """Adds a fragment. When this returns, the rows survive anything but the store's loss."""
        name = f"log/{run_id}/{number:06d}.parquet"
        self.write(name, _parquet(outcomes), "application/vnd.apache.parquet")

    def latest(self) -> pa.Table:
        """The latest view, with what was committed since the last compaction: OUTCOME_SCHEMA."""
        return self._view(self._fresh(self.head().get("compacted", {})))

    def unfinished_runs(self) -> list[str]:
        """Runs that began and never noted their end: killed, or still under way."""
        files = self._store.list(join(self.uri, "runs"))
        names = {tuple(file.uri.split("/")[-2:]) for file in files}
        began = {run_id for run_id, name in names if name == "config.yaml"}
        return sorted(began - {run_id for run_id, name in names if name == "summary.json"})

    def compact(self, head: Mapping[str, Any]) -> None:
        """Brings `outcomes/` up to date, then replaces `latest.json` by `head` and what they hold.

        Files are written from the last to the first: new keys only ever push rows to later files,
        so a crash in between leaves rows twice, which the next compaction mends, and none missing.
        """
        compacted = dict(self.head().get("compacted", {}))
        fresh = self._fresh(compacted)
        if fresh:
            self._replace_outcomes(self._view(fresh))
        for _, run_id, number in fresh:
            compacted[run_id] = max(compacted.get(run_id, 0), number + 1)
        self.set_head({**head, "compacted": compacted})

    def _replace_outcomes(self, view: pa.Table) -> None:
        starts = range(0, view.num_rows, self._rows_per_file)
        for number, start in reversed(list(enumerate(starts))):
            part = _parquet(view.slice(start, self._rows_per_file))
            self.write(f"outcomes/{number:05d}.parquet", part, "application/vnd.apache.parquet")

    def _view(self, fresh: Iterable[tuple[str, str, int]]) -> pa.Table:
        """The latest view of the outcomes and these fragments."""
        return latest_view([*self._tables("outcomes"), *(self._table(uri) for uri, *_ in fresh)])

    def _fresh(self, compacted: Mapping[str, int]) -> list[tuple[str, str, int]]:
        """Fragments that the outcomes do not hold yet: URI, run and number."""
        found = list[tuple[str, str, int]]()
        for file in self._store.list(join(self.uri, "log")):
            run_id, name = file.uri.split("/")[-2:]
            if name.endswith(".parquet"):
                found.append((file.uri, run_id, int(name.removesuffix(".parquet"))))
        return [each for each in found if each[2] >= compacted.get(each[1], 0)]

    def _tables(self, folder: str) -> list[pa.Table]:
        files = self._store.list(join(self.uri, folder))
        return [self._table(file.uri) for file in files if file.uri.endswith(".parquet")]

    def _table(self, uri: str) -> pa.Table:
        try:
            table = pyarrow.parquet.read_table(pa.BufferReader(self._store.read(uri)))
            for field in OUTCOME_SCHEMA:  # an older version of ours knew fewer columns
                if field.name not in table.column_names:
                    table = table.append_column(field, pa.nulls(table.num_rows, field.type))
            return table.select(OUTCOME_SCHEMA.names).cast(OUTCOME_SCHEMA)
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise FatalError(f"the report's file {uri} is damaged: {error}") from error


class Recorder:
    """Collects the outcomes of a run and commits them every few seconds, by a thread of its own.

    Used as a context manager; leaving it commits what is left.
    """

    def __init__(
        self,
        ledger: Ledger,
        run_id: str,
        *,
        every_s: float,
        tick: Callable[[], None],
        patience_s: float = 300,
    ) -> None:
        """tick: called after each commit, from the thread. patience_s: how long the last commit is
        tried again before FatalError gives its rows up."""
        self._patience_s = patience_s
        self._ledger = ledger
        self._run_id = run_id
        self._every_s = every_s
        self._tick = tick
        self._number = 0
        self._rows = list[pa.Table]()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="recorder", daemon=True)

    def add(self, outcomes: pa.Table) -> None:
        """Takes rows of OUTCOME_SCHEMA; they are safe after the next commit."""
        with self._lock:
            self._rows.append(outcomes)

    def commit(self) -> None:
        """Commits what has been added since. Rows of a failed commit wait for the next one."""
        with self._lock:
            rows = self._rows
            if not rows:
                return
            self._ledger.commit(self._run_id, self._number, pa.concat_tables(rows))
            self._number += 1
            self._rows = []

    def __enter__(self) -> "Recorder":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        end = time.monotonic() + self._patience_s
        while not self._commits():
            if time.monotonic() > end:
                lost = sum(part.num_rows for part in self._rows)
                raise FatalError(
                    f"{lost} rows could not be written to the report {self._ledger.uri} within "
                    f"{self._patience_s:g} s: their items will be done again"
                )
            time.sleep(self._every_s)

    def _beat(self) -> None:
        while not self._over.wait(self._every_s):
            self._commits()
            self._tick()

    def _commits(self) -> bool:
        try:
            self.commit()
        except (OSError, ConfigError) as error:
            print(f"the report cannot be written, trying again: {error}", file=sys.stderr)
            return False
        return True


def latest_view(parts: Iterable[pa.Table]) -> pa.Table:
    """One row a key, sorted by key: OUTCOME_SCHEMA.

    Of a key the source's newest version, which is the item that finished last; of that item a
    `done` row before any other, of those the one that finished last. What the item was before
    another version came between does not count: its result has been written over.
    """
    rows = pa.concat_tables([OUTCOME_SCHEMA.empty_table(), *parts])
    if not rows.num_rows:
        return rows
    numbered = rows.append_column("row", pa.array(range(rows.num_rows), pa.int64()))
    narrow = numbered.select(["key", "item_id", "status", "finished_at", "run_id", "row"])
    newest = _firsts(narrow, [_BY_KEY, _LAST, _BY_ID]).select(["key", "item_id"])
    known = narrow.join(newest.rename_columns(["key", "newest"]), "key", join_type="inner")
    is_newest = pc.equal(known["item_id"], known["newest"])
    others = known.filter(pc.invert(is_newest)).group_by("key").aggregate([("finished_at", "max")])
    mine = known.filter(is_newest).join(others, "key", join_type="left outer")
    since = pc.greater(mine["finished_at"], mine["finished_at_max"])
    mine = mine.filter(pc.fill_null(since, True))
    ranked = mine.append_column("rank", pc.if_else(pc.equal(mine["status"], "done"), 0, 1))
    return rows.take(_firsts(ranked, [_BY_KEY, ("rank", "ascending"), _LAST, _BY_RUN])["row"])


_BY_KEY = ("key", "ascending")
_LAST = ("finished_at", "descending")
_BY_ID = ("item_id", "ascending")
_BY_RUN = ("run_id", "descending")


def _firsts(table: pa.Table, order: list[tuple[str, str]]) -> pa.Table:
    """The first row of each key, after sorting."""
    ordered = table.take(pc.sort_indices(table, sort_keys=order))
    keys = ordered["key"].combine_chunks()
    changes = np.asarray(pc.not_equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False), bool)
    return ordered.take(pa.array(np.flatnonzero(np.concatenate([[True], changes]))))


def _parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, compression="zstd")
    return file.getvalue()


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(cast(Any, value), indent=2, ensure_ascii=False) + "\n").encode()
