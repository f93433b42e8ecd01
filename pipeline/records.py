"""The rows: one type at each step, Source -> Item -> Outcome, all of them scalars.

A `Source` is a row of the manifest and lives in Arrow tables only (`SOURCE_SCHEMA`): a million of
them as objects take 2 GB, as Arrow 0.4 GB. An `Item` is what a worker is handed, an `Outcome` the
report's row. Both are objects in a worker alone, one block at a time.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, Self, get_type_hints

import pyarrow as pa

Status = Literal["done", "failed", "skipped"]

MESSAGE_LIMIT = 500
EXTRA_LIMIT = 4096

SOURCE_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("key", pa.string()),
        ("version", pa.string()),
        ("size", pa.int64()),
        ("mtime", pa.float64()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("sha256", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("extra", pa.string()),
    ]
)

_ARROW = {
    str: pa.string(),
    str | None: pa.string(),
    Status: pa.string(),
    int: pa.int64(),
    int | None: pa.int64(),
    float | None: pa.float64(),
    float: pa.float64(),
    tuple[str, ...]: pa.list_(pa.string()),
    datetime | None: pa.timestamp("us", tz="UTC"),
}


@dataclass(frozen=True, slots=True)
class _Row:
    """A row that knows its columns; strict in both directions."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The row as an object. Raises ValueError unless the columns are exactly the fields."""
        names = {field.name for field in fields(cls)}
        if set(row) != names:
            missing, unknown = sorted(names - set(row)), sorted(set(row) - names)
            raise ValueError(f"{cls.__name__}: missing {missing}, unknown {unknown}")
        lists = {name: tuple(value) for name, value in row.items() if isinstance(value, list)}
        return cls(**{**row, **lists})

    def to_row(self) -> dict[str, Any]:
        """The object as a row of plain scalars (and lists of strings)."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item(_Row):
    """One input as a worker is handed it."""

    item_id: str
    key: str
    uri: str
    version: str | None
    size: int | None
    mtime: float | None
    sha256: str | None
    offset: int | None
    length: int | None
    output_uri: str
    output_format: str
    shard: str
    attempts: int
    """How many runs have tried it before this one."""
    made_sha256: str | None
    """Of the result that the report has in the output's place, an older one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(_Row):
    """One row of the report: what became of an input, and how."""

    item_id: str
    key: str
    source_uri: str
    source_version: str | None = None
    source_bytes: int | None = None
    source_sha256: str | None = None
    source_format: str | None = None
    source_mode: str | None = None
    source_bit_depth: int | None = None
    source_frames: int | None = None
    source_width: int | None = None
    source_height: int | None = None
    output_uri: str | None = None
    output_bytes: int | None = None
    output_sha256: str | None = None
    output_format: str | None = None
    output_width: int | None = None
    output_height: int | None = None
    status: Status
    error_code: str | None = None
    error_class: str | None = None
    error_stage: str | None = None
    error_message: str | None = None
    warnings: tuple[str, ...] = ()
    attempts: int
    model: str
    model_sha256: str
    model_licence: str
    recipe: str
    scale: float | None = None
    precision: str
    device: str
    fetch_s: float | None = None
    decode_s: float | None = None
    upscale_s: float | None = None
    encode_s: float | None = None
    publish_s: float | None = None
    # How the result agrees with the source: see `pipeline.images.consistency`.
    quality_psnr: float | None = None
    quality_delta_e: float | None = None
    quality_local_difference: float | None = None
    quality_bias_red: float | None = None
    quality_bias_green: float | None = None
    quality_bias_blue: float | None = None
    quality_bias_alpha: float | None = None
    quality_clipped_share: float | None = None
    quality_constant_share: float | None = None
    quality_plain_psnr: float | None = None
    quality_detail: float | None = None
    run_id: str
    last_run_id: str
    shard: str
    node: str
    worker: str
    started_at: datetime | None = None
    finished_at: datetime | None = None
    extra: str | None = None


def _schema(kind: type[_Row]) -> pa.Schema:
    hints = get_type_hints(kind)
    return pa.schema([(field.name, _ARROW[hints[field.name]]) for field in fields(kind)])


ITEM_SCHEMA = _schema(Item)
OUTCOME_SCHEMA = _schema(Outcome)


def to_table(outcomes: Iterable[Outcome]) -> pa.Table:
    """Outcomes as a table of the report's schema."""
    rows = [outcome.to_row() for outcome in outcomes]
    return pa.Table.from_pylist(rows, schema=OUTCOME_SCHEMA)
