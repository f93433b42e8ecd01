"""What there is to do: a table or a folder of images, as one Arrow table of `SOURCE_SCHEMA`."""

import gzip
import json
import os
import posixpath
import string
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from pipeline import uris
from pipeline.config import Scan
from pipeline.errors import ConfigError
from pipeline.records import EXTRA_LIMIT, SOURCE_SCHEMA
from pipeline.storage import Stat, Store

pc: Any = pyarrow.compute  # its functions are made at run time, no checker knows them

_TABLES = (".parquet", ".csv", ".jsonl", ".ndjson", ".csv.gz", ".jsonl.gz", ".ndjson.gz")
_RESERVED = ("model", "scale", "long_side", "format", "denoise")
_PROBES = 32


class Asked(Protocol):
    """What says which manifest is meant and how it is read, as `UpscaleConfig` does."""

    @property
    def manifest(self) -> str: ...
    @property
    def output(self) -> str: ...
    @property
    def report_uri(self) -> str: ...
    @property
    def scan(self) -> Scan: ...
    @property
    def probe(self) -> bool: ...
    @property
    def columns(self) -> Mapping[str, str]: ...
    @property
    def carry(self) -> Literal["all", "none"] | list[str]: ...


@dataclass(frozen=True, slots=True)
class Manifest:
    """The sources, and what was seen on the way to them."""

    sources: pa.Table
    """SOURCE_SCHEMA; `key` is null where the plan derives it."""
    ignored: int
    """Files of a folder that are no images by their name, or hidden."""
    root: str | None
    """The folder of a scan: keys are relative to it. None for a table."""


def read(
    config: Asked, store: Store, *, key: str = "manifest", sources: Store | None = None
) -> Manifest:
    """The manifest that the configuration names.

    key: what a person calls `config.manifest`, for messages. sources: the store through which the
    sources are asked for, which may refuse some; default the manifest's.
    Raises ConfigError when there is nothing, or nothing that can be read as a manifest.
    """
    uri = uris.absolute(config.manifest)
    files = list(store.list(uri))
    if not files:
        raise ConfigError(f"there is no file at or below {uri} ({key})")
    root = _root(uri, files)
    images = [file for file in files if _is_image(file.uri, config.scan.suffixes)]
    if images or not any(_is_table(file.uri) for file in files):
        found = _scan(files, root, config)
    else:
        tables = [_source_table(file.uri, store, config) for file in files if _is_table(file.uri)]
        found = Manifest(pa.concat_tables(tables), 0, None)
    if found.root is not None and not found.sources.num_rows:
        raise ConfigError(
            f"the manifest {uri} holds no images: {found.ignored} other files; "
            f"images end in {', '.join(config.scan.suffixes)} (scan.suffixes)"
        )
    _connect_all(found.sources, sources or store)
    return _probed(found, sources or store) if config.probe else found


def _connect_all(sources: pa.Table, store: Store) -> None:
    """Raises ConfigError for a source that no installed driver can read, before anything starts."""
    places = cast(list[str], sources["uri"].to_pylist())
    for uri in {uris.scheme(uri): uri for uri in places if uris.is_uri(uri)}.values():
        with suppress(PermissionError):  # refused, which the plan will say
            store.connect(uri)


def _scan(files: Sequence[Stat], root: str, config: Asked) -> Manifest:
    """The images below a folder, without what is hidden and without our own output."""
    ours = [uris.absolute(config.output), uris.absolute(config.report_uri)]
    theirs = [file for file in files if not any(_within(file.uri, place) for place in ours)]
    if not theirs:
        raise ConfigError(f"the output {ours[0]} is the source {root} or holds it (output)")
    images = [
        file
        for file in theirs
        if _is_image(file.uri, config.scan.suffixes) and not _is_hidden(file.uri, root)
    ]
    _refuse_undecodable(images)
    columns = {
        "uri": [file.uri for file in images],
        "key": [uris.below(file.uri, root) for file in images],
        "version": [file.version for file in images],
        "size": [file.size for file in images],
        "mtime": [None if file.version else file.mtime for file in images],
    }
    return Manifest(_conform(pa.table(columns)), len(theirs) - len(images), root)


def _refuse_undecodable(files: Sequence[Stat]) -> None:
    """Raises ConfigError for names that are no UTF-8: no report could hold them."""
    wrong = [file.uri for file in files if not _is_text(file.uri)]
    if wrong:
        raise ConfigError(
            f"{len(wrong)} file names are not UTF-8, the first is {os.fsencode(wrong[0])!r}: "
            "rename them"
        )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _root(uri: str, files: Sequence[Stat]) -> str:
    """The folder that keys of a scan are relative to: the part of a glob before its wildcard."""
    fixed = uri[: min((uri.find(mark) for mark in "*?[" if mark in uri), default=len(uri))]
    if fixed != uri or [file.uri for file in files] == [uri]:
        return fixed.rpartition("/")[0]
    return uri


def _within(uri: str, place: str) -> bool:
    return uris.below(uri, place) is not None


def _is_image(uri: str, suffixes: Sequence[str]) -> bool:
    return uri.lower().endswith(tuple(suffix.lower() for suffix in suffixes))


def _is_table(uri: str) -> bool:
    return uri.lower().endswith(_TABLES)


def _is_hidden(uri: str, root: str) -> bool:
    return any(part.startswith(".") for part in (uris.below(uri, root) or uri).split("/"))


def _source_table(uri: str, store: Store, config: Asked) -> pa.Table:
    """One file of a manifest, with our columns."""
    theirs = _read_table(uri, store)
    if len(set(theirs.column_names)) < len(theirs.column_names):
        raise ConfigError(f"{uri} has two columns of one name: {', '.join(theirs.column_names)}")
    ours = _mapped(theirs, config.columns, uri)
    if "uri" not in ours:
        raise ConfigError(
            f"{uri} has no column 'uri' but {', '.join(theirs.column_names)}; "
            "columns maps other names (columns.uri)"
        )
    folder = uri.rpartition("/")[0]
    ours["uri"] = pa.array([_resolved(value, folder, uri) for value in ours["uri"].to_pylist()])
    if "version" in ours:  # S3 quotes its ETags in some answers and not in others
        ours["version"] = pc.utf8_trim(ours["version"].cast(pa.string()), '"')
    table = pa.table(ours)
    extra = _extra(theirs, _carried(theirs, config), theirs.num_rows)
    return _conform(table.append_column("extra", extra), uri)


def _read_table(uri: str, store: Store) -> pa.Table:
    data = store.read(uri)
    name = uri.lower()
    try:
        if name.endswith(".gz"):
            data, name = gzip.decompress(data), name.removesuffix(".gz")
        if name.endswith(".parquet"):
            return _read_parquet(data)
        if name.endswith(".csv"):
            return _read_csv(data)
        return _read_jsonl(data)
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"cannot read {uri} as a manifest: {reason}") from error


def _read_parquet(data: bytes) -> pa.Table:
    """Without binary columns: data sets keep whole pictures in them."""
    file = pyarrow.parquet.ParquetFile(pa.BufferReader(data))
    kept = [field.name for field in file.schema_arrow if not _is_binary(field.type)]
    return file.read(columns=kept)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _read_csv(data: bytes) -> pa.Table:
    """Every value a string: 007 stays 007."""
    names = pyarrow.csv.open_csv(pa.BufferReader(data)).schema.names
    options = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    return pyarrow.csv.read_csv(pa.BufferReader(data), convert_options=options)


def _read_jsonl(data: bytes) -> pa.Table:
    """Values as they stand: Arrow's own reader takes a string such as 1999-12-31 for a time."""
    rows = [json.loads(line) for line in data.splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line holds no JSON object")
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})


def _mapped(theirs: pa.Table, columns: Mapping[str, str], uri: str) -> dict[str, pa.Array]:
    """Our columns out of theirs: by `columns` where it says so, else by the same name."""
    known = set(SOURCE_SCHEMA.names) - {"extra"}
    asked = set(columns) or set(theirs.column_names)
    reserved = sorted(asked & set(_RESERVED))
    if reserved:
        raise ConfigError(
            f"{uri}: the columns {', '.join(reserved)} are reserved for settings per item, which "
            "do not exist yet; rename them, or name the columns that are meant (columns)"
        )
    unknown = sorted(set(columns) - known)
    if unknown:
        raise ConfigError(
            f"columns.{unknown[0]}: there is no such column, there are {', '.join(sorted(known))}"
        )
    sources = {name: name for name in known if name in theirs.column_names} | dict(columns)
    return {name: _column(theirs, source, uri) for name, source in sources.items()}


def _column(theirs: pa.Table, source: str, uri: str) -> pa.Array:
    """A column by its name, or filled into a template such as `s3://{Bucket}/{Key}`."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(source) if name]
    except ValueError as error:
        raise ConfigError(f"{source!r} is no template: {error} (columns)") from error
    missing = sorted(set(names or [source]) - set(theirs.column_names))
    if missing:
        raise ConfigError(
            f"{uri} has no column {missing[0]!r} but {', '.join(theirs.column_names)} (columns)"
        )
    if not names:
        return theirs[source].combine_chunks()
    empty = [name for name in names if theirs[name].null_count]
    if empty:
        raise ConfigError(f"{uri}: rows without a {empty[0]} cannot fill {source!r} (columns)")
    parts = [theirs[name].to_pylist() for name in names]
    rows = (dict(zip(names, values, strict=True)) for values in zip(*parts, strict=True))
    return pa.array([source.format(**row) for row in rows], pa.string())


def _resolved(value: Any, folder: str, table: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{table}: a row has the uri {value!r}")
    if "://" in value or value.startswith("/"):
        return uris.absolute(value) if uris.is_uri(value) else value  # which the plan refuses
    scheme, mark, path = folder.rpartition("://")
    return scheme + mark + posixpath.normpath(f"{path}/{value}")


def _carried(theirs: pa.Table, config: Asked) -> list[str]:
    """Names of their columns that travel into the report."""
    if isinstance(config.carry, list):
        missing = sorted(set(config.carry) - set(theirs.column_names))
        if missing:
            raise ConfigError(f"carry: the manifest has no column {missing[0]!r}")
        return config.carry
    if config.carry == "none":
        return []
    mapped = set(config.columns.values())
    ours = (set(SOURCE_SCHEMA.names) - set(config.columns)) | mapped
    return [name for name in theirs.column_names if name not in ours]


def _extra(theirs: pa.Table, names: Sequence[str], rows: int) -> pa.Array:
    if not names:
        return pa.nulls(rows, pa.string())
    values = [theirs[name].to_pylist() for name in names]
    return pa.array([_json(names, row) for row in zip(*values, strict=True)], pa.string())


def _json(names: Sequence[str], values: Iterable[Any]) -> str:
    """The row as JSON of at most EXTRA_LIMIT characters: what does not fit is named, not cut."""
    row = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    text = json.dumps(row, ensure_ascii=False, default=str)
    if len(text.encode()) <= EXTRA_LIMIT:
        return text
    kept, dropped = dict[str, Any](), list[str]()
    for name, value in row.items():
        trial = {**kept, name: value, "_dropped": [*dropped, *row]}
        fits = len(json.dumps(trial, ensure_ascii=False, default=str).encode()) <= EXTRA_LIMIT
        if fits:
            kept[name] = value
        else:
            dropped.append(name)
    return json.dumps({**kept, "_dropped": dropped}, ensure_ascii=False, default=str)


def _conform(table: pa.Table, uri: str = "") -> pa.Table:
    """The table with exactly SOURCE_SCHEMA's columns and types."""
    columns = list[Any]()
    for field in SOURCE_SCHEMA:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        try:
            columns.append(_typed(table[field.name], field.type))
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{uri}: column {field.name}: {reason}") from error
    return pa.Table.from_arrays(columns, schema=SOURCE_SCHEMA)


def _typed(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Cast; an empty string is no value, a time becomes seconds since 1970."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
    if pa.types.is_timestamp(column.type):
        micros = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
        return pc.divide(micros.cast(pa.float64()), 1e6)
    return column.cast(kind)


def _probed(found: Manifest, store: Store) -> Manifest:
    """Versions, sizes and times as the store says now, where the manifest has none of them."""
    sources = found.sources
    unknown = pc.and_(pc.is_null(sources["version"]), pc.is_null(sources["size"]))
    rows = np.flatnonzero(unknown.to_numpy(zero_copy_only=False))
    with ThreadPoolExecutor(_PROBES) as pool:
        places = sources["uri"].take(pa.array(rows)).to_pylist()
        stats = list(pool.map(lambda uri: _stat(store, uri), cast(list[str], places)))
    for name in ("version", "size", "mtime"):
        values = np.array(sources[name].to_pylist(), dtype=object)
        values[rows] = [getattr(stat, name, None) for stat in stats]
        index = sources.schema.get_field_index(name)
        sources = sources.set_column(index, name, pa.array(values, SOURCE_SCHEMA.field(name).type))
    return Manifest(sources, found.ignored, found.root)


def _stat(store: Store, uri: str) -> Stat | Literal[False]:
    """What the store says; False where there is nothing, which the fetch will report."""
    try:
        return store.stat(uri)
    except OSError:
        return False
