"""`jobs/report.py`: the results that agree least with their sources, as a table of what to redo.

Some thresholds move with the report, because models and archives differ: reduced to the size of
its source, what a network for drawings makes of photographs is 28 to 36 dB from it, ours 32 to 50.
They never come nearer than as they are set, so a report without faults lists nothing. Those for
tint and plain interpolation stay where they are: what is wrong with all results is wrong.

Outcomes are read twice, file by file and only the columns needed. In memory are what Parquet takes
to read one file (270 MB for one of 500,000 rows), a batch of rows, the rows listed (`top`) and at
most 100,000 numbers of each figure, whatever the size of the report.
"""

import io
import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from pipeline import uris
from pipeline.errors import ConfigError, FatalError
from pipeline.ledger import Ledger
from pipeline.records import ITEM_SCHEMA, OUTCOME_SCHEMA
from pipeline.report.config import ReportConfig, Thresholds
from pipeline.report.summary import DONE
from pipeline.storage import Store
from pipeline.uris import redact

pc: Any = pyarrow.compute  # its functions are made at run time, no checker knows them

_BATCH_ROWS = 2**16
_SAMPLED_ROWS = 100_000
# With fewer rows a median says nothing of what is usual.
_USUAL_ROWS = 30
# Of a normal distribution, the standard deviation over the median distance from the median.
_SIGMAS = 1.4826
_FAR = 100.0  # times a threshold: a result that is plain interpolation is infinitely far off

_BIASES = ("red", "green", "blue", "alpha")
_MOVING = ("psnr", "delta_e", "local_difference", "clipped_share", "constant_share")
_FIXED = ("bias", "plain_psnr")
_DECIBELS = ("psnr", "plain_psnr")

_FIGURES = [
    *(name for name in OUTCOME_SCHEMA.names if name.startswith("quality_")),
    "status",
]
_NAMES = ["key", "item_id", "source_uri", "source_version", "output_uri", "run_id", "shard"]
_ENTRY = ["uri", "key", "version", "size", "mtime", "sha256", "offset", "length"]
SCHEMA = pa.schema(
    [
        *(ITEM_SCHEMA.field(name) for name in _ENTRY),
        ("finding", pa.string()),
        ("times", pa.float64()),
        ("output_uri", pa.string()),
    ]
)
"""Of `--outliers`: what a manifest has of each source, and what is wrong with its result. `times`
is by how much the farthest threshold is exceeded, 1 to 100."""


_FARTHEST = [("times", "descending"), ("key", "ascending")]


@dataclass(frozen=True, slots=True)
class Bound:
    """What one figure may be in a report."""

    name: str
    limit: float
    median: float | None
    """Of the report; None where there are too few rows, or none of this figure."""

    @property
    def is_least(self) -> bool:
        """Whether it is lower values that are wrong."""
        return self.name == "psnr"

    def __str__(self) -> str:
        """For example `< 27 dB`."""
        unit = " dB" if self.name in _DECIBELS else ""
        return f"{'<' if self.is_least else '>'} {self.limit:.3g}{unit}"

    def values(self, rows: pa.Table) -> pa.ChunkedArray:
        """The figure of each row; null where there is none."""
        if self.name == "bias":
            each = [pc.abs(rows[f"quality_bias_{channel}"]) for channel in _BIASES]
            return pc.max_element_wise(*each)
        values = rows[f"quality_{self.name}"]
        if self.name == "plain_psnr":  # nothing but interpolation can be made of a flat picture
            return pc.if_else(pc.is_valid(rows["quality_detail"]), values, None)
        return values

    def times(self, rows: pa.Table) -> pa.ChunkedArray:
        """How far off each row is, 1 at the limit, at most 100; decibels as amplitudes."""
        values = self.values(rows)
        if self.name in _DECIBELS:
            gap = pc.subtract(values, self.limit)
            times = pc.power(10.0, pc.divide(pc.negate(gap) if self.is_least else gap, 20.0))
        else:
            times = pc.divide(values, self.limit)
        return pc.fill_null(pc.min_element_wise(times, _FAR, skip_nulls=False), 0.0)


@dataclass(slots=True)
class Survey:
    """What there is in a report."""

    counts: dict[str, int]
    """Rows by their status."""
    unmeasured: int
    """`done` rows without figures: results that were adopted, or made before there were any."""
    samples: Mapping[str, NDArray[np.float64]]
    """Of the figures that move, values of rows that stand for all."""


@dataclass(frozen=True, slots=True)
class Found:
    """The outliers of a report."""

    counts: Mapping[str, int]
    """By bounds' names: rows beyond them."""
    total: int
    worst: pa.Table
    """The rows listed, farthest first: figures, names and `times`."""


def run(config: ReportConfig) -> int:
    """Prints the outliers, and writes them where asked. Returns the exit code.

    Raises ConfigError without a report, FatalError for a damaged one.
    """
    sides = config.storage
    store = Store((sides.report or sides.output).fsspec_options())
    report = uris.absolute(config.report_uri)
    try:
        files = _outcomes(store, report)
        pending = Ledger(store, report).unfinished_runs()
    except OSError as error:
        raise ConfigError(str(error)) from error
    seen = survey(store, files)
    bounds = bounds_of(seen, config.thresholds)
    found = find(store, files, bounds, config.top)
    listed = [_finding(row, bounds) for row in _each(found.worst)]
    for line in _lines(report, seen, bounds, found, listed):
        print(line)
    for run_id in pending:
        print(f"run {run_id} has not ended: its rows count when this or another run has")
    if config.outliers:
        table, strangers = _manifest(store, report, found.worst, listed)
        _write(Store(sides.output.fsspec_options()), config.outliers, table)
        print(f"outliers {redact(config.outliers)}")
        if strangers:
            print(f"{strangers} of them are in no shard of the report: new items to a later run")
    return DONE


def _outcomes(store: Store, report: str) -> list[str]:
    """The files of the latest view. Raises ConfigError when there are none."""
    folder = uris.join(report, "outcomes")
    files = [file.uri for file in store.list(folder) if file.uri.endswith(".parquet")]
    if not files:
        raise ConfigError(
            f"there is no report of a run that has ended at {redact(report)} (output, report.uri)"
        )
    return files


# ------------------------------------------------------------------------------ what is usual


def survey(store: Store, files: Sequence[str]) -> Survey:
    """Counts the rows, and takes evenly spaced ones of those that are done."""
    rows = sum(_rows(store, file) for file in files)
    step = max(1, math.ceil(rows / _SAMPLED_ROWS))
    seen = Survey({"done": 0, "failed": 0, "skipped": 0}, 0, {})
    parts = dict[str, list[NDArray[np.float64]]]((name, []) for name in _MOVING)
    for batch in _batches(store, files, _FIGURES):
        for pair in _each(batch["status"].value_counts()):
            seen.counts[pair["values"]] += pair["counts"]
        done = _done(batch)
        skipped = -(seen.counts["done"] - done.num_rows) % step
        chosen = done.take(pa.array(range(skipped, done.num_rows, step), pa.int64()))
        seen.unmeasured += done["quality_psnr"].null_count
        for name in _MOVING:
            values = np.asarray(chosen[f"quality_{name}"].to_numpy(), np.float64)
            parts[name].append(values[np.isfinite(values)])
    seen.samples = {name: np.concatenate([np.empty(0), *some]) for name, some in parts.items()}
    return seen


def bounds_of(seen: Survey, thresholds: Thresholds) -> list[Bound]:
    """The thresholds, where this report puts them."""
    return [
        *(_moved(name, thresholds, seen.samples[name]) for name in _MOVING),
        *(Bound(name, getattr(thresholds, name), None) for name in _FIXED),
    ]


def _moved(name: str, thresholds: Thresholds, values: NDArray[np.float64]) -> Bound:
    limit = getattr(thresholds, name)
    if len(values) < _USUAL_ROWS:
        return Bound(name, limit, None)
    median = float(np.median(values))
    distance = float(np.median(np.abs(values - median))) * _SIGMAS * thresholds.spread
    if name == "psnr":
        return Bound(name, min(limit, median - distance), median)
    return Bound(name, max(limit, median + distance), median)


# ------------------------------------------------------------------------------ what is beyond


def find(store: Store, files: Sequence[str], bounds: Sequence[Bound], most: int) -> Found:
    """The rows beyond any bound, and of these the worst; rows that are not done are none."""
    counts, total = dict.fromkeys((bound.name for bound in bounds), 0), 0
    worst = list[pa.Table]()
    for batch in _batches(store, files, [*_FIGURES, *_NAMES]):
        done = _done(batch)
        times = {bound.name: bound.times(done) for bound in bounds}
        for name, each in times.items():
            counts[name] += int(pc.sum(pc.greater(each, 1.0)).as_py() or 0)
        farthest = pc.max_element_wise(*times.values())
        beyond = done.append_column("times", farthest).filter(pc.greater(farthest, 1.0))
        total += beyond.num_rows
        known = pa.concat_tables([*worst, beyond])
        order = pc.sort_indices(known, sort_keys=_FARTHEST)
        worst = [known.take(order[:most])]
    return Found(counts, total, worst[0] if worst else pa.table({}))


def _done(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.equal(rows["status"], "done"))


def _finding(row: Mapping[str, Any], bounds: Sequence[Bound]) -> str:
    """What is wrong with a result: each value, and the limit that it is beyond."""
    one = pa.Table.from_pylist([dict(row)], pa.schema([OUTCOME_SCHEMA.field(n) for n in _FIGURES]))
    beyond = [bound for bound in bounds if bound.times(one)[0].as_py() > 1]
    said = ((bound, bound.values(one)[0].as_py()) for bound in beyond)
    return ", ".join(f"{bound.name} {value:.3g} {bound}" for bound, value in said)


# ------------------------------------------------------------------------------ what is shown


def _lines(
    report: str, seen: Survey, bounds: Sequence[Bound], found: Found, listed: Sequence[str]
) -> Iterator[str]:
    counts = ", ".join(f"{count} {status}" for status, count in seen.counts.items())
    bare = f" ({seen.unmeasured} of them without figures)" if seen.unmeasured else ""
    yield f"report {redact(report)}: {counts}{bare}; {found.total} outliers"
    for bound in bounds:
        usual = "" if bound.median is None else f", median {bound.median:.3g}"
        yield f"{found.counts[bound.name]:8} {bound.name} {bound} (thresholds.{bound.name}{usual})"
    if found.total > len(listed):
        yield f"the worst {len(listed)} of them (top):"
    if listed:
        names = ("key", "source_uri", "output_uri")
        rows = [("TIMES", "KEY", "FINDING", "SOURCE", "OUTPUT")]
        for row, finding in zip(_each(found.worst), listed, strict=True):
            key, source, output = (str(row[name]) for name in names)
            rows.append((f"{row['times']:.1f}", key, finding, source, output))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            yield "  ".join(cells).rstrip()


# ---------------------------------------------------------------------------- what is written


def _manifest(
    store: Store, report: str, worst: pa.Table, listed: Sequence[str]
) -> tuple[pa.Table, int]:
    """The outliers as SCHEMA, and how many of them are not as their run was given them.

    A row of the report does not hold all that makes an item's id (a file's time, a member's place
    in a tar); the shards that its run was planned in do.
    """
    items, rows, strangers = _items(store, report, worst), list[dict[str, Any]](), 0
    for row, finding in zip(_each(worst), listed, strict=True):
        item = items.get(row["item_id"])
        if item is None:
            strangers += 1
            item = {**row, "uri": row["source_uri"], "version": row["source_version"]}
        rows.append({**{name: item.get(name) for name in _ENTRY}, "finding": finding})
        rows[-1] |= {"times": row["times"], "output_uri": row["output_uri"]}
    return pa.Table.from_pylist(rows, SCHEMA), strangers


def _items(store: Store, report: str, worst: pa.Table) -> dict[str, dict[str, Any]]:
    """The items of these rows by their ids, out of the shards of their runs."""
    if not worst.num_rows:
        return {}
    wanted = worst["item_id"].combine_chunks()
    found = dict[str, dict[str, Any]]()
    for run_id in sorted(set(cast(list[str], worst["run_id"].to_pylist()))):
        shards = store.list(uris.join(report, f"runs/{run_id}/shards"))
        files = [file.uri for file in shards if file.uri.endswith(".parquet")]
        for batch in _batches(store, files, ["item_id", *_ENTRY], ITEM_SCHEMA):
            known = batch.filter(pc.is_in(batch["item_id"], wanted))
            found |= {row["item_id"]: row for row in _each(known)}
    return found


def _write(store: Store, uri: str, table: pa.Table) -> None:
    kind = uri.lower().rpartition(".")[2]
    file = io.BytesIO()
    if kind == "parquet":
        pyarrow.parquet.write_table(table, file, compression="zstd")
    elif kind == "csv":
        pyarrow.csv.write_csv(table, file)
    else:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in _each(table))
        file.write("".join(lines).encode())
    content_type = {"parquet": "application/vnd.apache.parquet", "csv": "text/csv"}
    store.publish(uri, file.getvalue(), content_type=content_type.get(kind, "application/jsonl"))
    store.sweep()


# ---------------------------------------------------------------------------------- the files


def _rows(store: Store, uri: str) -> int:
    with _opened(store, uri) as file:
        return file.metadata.num_rows


def _batches(
    store: Store, files: Sequence[str], names: Sequence[str], schema: pa.Schema = OUTCOME_SCHEMA
) -> Iterator[pa.Table]:
    """These columns, some rows at a time; null what an older version of ours did not know."""
    wanted = pa.schema([schema.field(name) for name in names])
    for uri in files:
        with _opened(store, uri) as file:
            there = [name for name in names if name in file.schema_arrow.names]
            for batch in file.iter_batches(_BATCH_ROWS, columns=there):
                nulls = {name: pa.nulls(len(batch)) for name in names if name not in there}
                columns = {name: batch[name] for name in there} | nulls
                yield pa.table({name: columns[name] for name in names}).cast(wanted)


@contextmanager
def _opened(store: Store, uri: str) -> Generator[pyarrow.parquet.ParquetFile]:
    """Raises FatalError for a file that is damaged."""
    filesystem, path = store.arrow(uri)
    try:
        with filesystem.open_input_file(path) as source:
            yield pyarrow.parquet.ParquetFile(source)
    except pa.ArrowException as error:
        raise FatalError(f"the report's file {redact(uri)} is damaged: {error}") from error


def _each(rows: Any) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], rows.to_pylist())
