"""What is to be done: identity, output keys, refusals, what is left, shards. Pure and columnar."""

import hashlib
import json
import math
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute

from pipeline import uris
from pipeline.errors import CODES, ConfigError
from pipeline.records import ITEM_SCHEMA

pc: Any = pyarrow.compute  # its functions are made at run time, no checker knows them

FORMATS = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".webp": "webp",
    ".jp2": "jpeg2000",
    ".j2k": "jpeg2000",
    ".jpx": "jpeg2000",
    ".gif": "gif",
    ".bmp": "bmp",
    ".pnm": "pnm",
    ".pgm": "pnm",
    ".ppm": "pnm",
    ".pbm": "pnm",
}
# What is written. The others, and pictures by their name alone, become TIFF, which holds whatever
# they hold.
_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "tiff": ".tif", "webp": ".webp"}
_OTHERS = (".avif", ".jfif")

_LIMITED = [name for name, code in CODES.items() if code.limit]

_BLOCK_S = 20
_BLOCK_ROWS = (1, 1024)
_DEFAULT_BLOCK_ROWS = 16
_BLOCK_BYTES = 8 * 2**20
_SHARD_BLOCKS = 50_000
_SHARD_ROWS = 1_000_000
_SHOWN = 5
# What stays with the driver: the manifest's own word of a picture's size, and its other columns.
_PLANNED = pa.schema(
    [*ITEM_SCHEMA, ("width", pa.int64()), ("height", pa.int64()), ("extra", pa.string())]
)


@dataclass(frozen=True, slots=True)
class Remaining:
    """The items that a run has to deal with, and how many it has not."""

    todo: pa.Table
    """As of `identify`."""
    done: int
    """Items with a result that counts."""
    failed: int
    """Items that failed before and are not tried again (retry_failed)."""
    left_out: int
    """Items that `limit` leaves for another run."""


def identify(sources: pa.Table, *, output: str, format: str) -> pa.Table:
    """The items of a manifest, each source once: ITEM_SCHEMA, `width`, `height` and `extra`.

    sources: SOURCE_SCHEMA; without a key it is the URI without its scheme. output: absolute URI.
    format: as configured. The key of a source depends on no other row, so it is the same every
    night.
    """
    made = {name: list[Any]() for name in ("item_id", "key", "output_uri", "output_format")}
    names = ("uri", "key", "offset", "version", "size", "mtime")
    columns = [sources[name].to_pylist() for name in names]
    for uri, key, offset, version, size, mtime in zip(*columns, strict=True):
        name = unicodedata.normalize("NFC", key or _path(uri))
        stem, kind, suffix = _target(name, uri, format)
        identity = [name, uri, offset, version if version else [size, mtime]]
        made["item_id"].append(_sha256(identity))
        made["key"].append(name)
        made["output_uri"].append(f"{output}/{stem}{suffix}")
        made["output_format"].append(kind)
    made |= {"shard": [""] * sources.num_rows, "attempts": [0] * sources.num_rows}
    made["made_sha256"] = [None] * sources.num_rows
    schema = _PLANNED
    items = pa.Table.from_arrays(
        [
            pa.chunked_array([pa.array(made[field.name], field.type)])
            if field.name in made
            else sources[field.name]
            for field in schema
        ],
        schema=schema,
    )
    return _each_once(items)


def refuse(
    items: pa.Table,
    earlier: pa.Table,
    *,
    output: str,
    report: str,
    refused: Collection[str] = (),
) -> None:
    """Raises ConfigError if an item would overwrite another's result, the report, or any source.

    items: of `identify`. earlier: `key` and `output_uri` of the report's rows. output, report:
    absolute URIs. refused: ids of items that get a row and no result; a key is theirs all the same,
    for the report has one row of it. Outputs are compared in NFC and without regard to case, as
    file systems do.
    """
    admitted = items.filter(pc.invert(pc.is_in(items["item_id"], pa.array(refused, pa.string()))))
    problems = [*_bad_items(admitted, output, report), *_collisions(items, earlier)]
    if problems:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise ConfigError("refused: " + "; ".join(problems[:_SHOWN]) + more)


def choose(items: pa.Table, sample: float | None) -> pa.Table:
    """A part of the items, the same every night: below 1 a share, else a count, by their hash."""
    if sample is None:
        return items
    if sample >= 1:
        firsts = pc.sort_indices(items["item_id"]).to_numpy()[: int(sample)]
        return items.take(np.sort(firsts))
    bound = f"{int(sample * 2**64):016x}"
    return items.filter(pc.less(items["item_id"], bound))


def remaining(
    items: pa.Table,
    latest: pa.Table,
    *,
    recipe: str,
    on_change: str,
    retry_failed: str,
    limit: int | None = None,
    refused: Collection[str] = (),
    difference: Callable[[str], str] = lambda digest: f"recipe {digest[:12]}",
    raised: Callable[[str], Collection[str]] = lambda run_id: (),
) -> Remaining:
    """What of the items is left to do, given the report's latest view.

    latest: OUTCOME_SCHEMA, one row a key. recipe: digest of this run's. on_change, retry_failed,
    limit: as configured. refused: ids of items that the plan refuses now; what it refused before
    and does not any more is tried. difference: says how another recipe differs from this one.
    raised: codes of failures by limits that were lower in an earlier run; those are tried, too.
    Raises ConfigError where results of another recipe exist and on_change is `refuse`.
    """
    known = _known(items, latest)
    same = pc.equal(known["item_id"], known["known_id"])
    mine = pc.equal(known["known_recipe"], recipe)
    has_result = pc.and_(same, pc.equal(known["status"], "done"))
    other = pc.and_(has_result, pc.invert(mine))
    others = _count(other)
    if others and on_change == "refuse":
        old = known.filter(_true(other))["known_recipe"][0].as_py()
        raise ConfigError(
            f"{others} results in this output were made otherwise ({difference(old)}): "
            "--on-change keep counts them as done, --on-change redo makes them again; or give "
            "another --output"
        )
    done = has_result if on_change == "keep" else pc.and_(has_result, mine)
    failed = pc.and_(pc.and_(same, mine), pc.equal(known["status"], "failed"))
    lifted = pc.and_(
        pc.equal(known["error_stage"], "plan"),
        pc.invert(pc.is_in(known["item_id"], pa.array(list(refused), pa.string()))),
    )
    failed = pc.and_(failed, pc.invert(pc.or_(_true(lifted), _raised(known, raised))))
    if retry_failed == "all":
        failed = pc.and_(failed, False)
    elif retry_failed == "transient":
        failed = pc.and_(failed, pc.equal(known["error_class"], "permanent"))
    open_ = pc.invert(pc.or_(_true(done), _true(failed)))
    tried = pc.fill_null(pc.if_else(_true(same), known["known_attempts"], 0), 0)
    # A row that failed has no result: its key's older one may be there all the same.
    in_place = _true(pc.equal(known["known_output"], items["output_uri"]))
    made = pc.if_else(in_place, known["known_sha256"], pa.scalar(None, pa.string()))
    todo = _with(_with(items, "attempts", tried), "made_sha256", made).filter(open_)
    cut = todo.slice(0, limit) if limit is not None else todo
    return Remaining(cut, _count(done), _count(failed), todo.num_rows - cut.num_rows)


def final_size(width: int, height: int, *, factor: float, long_side: int | None) -> tuple[int, int]:
    """Width and height of a result, rounded to whole pixels, at least one each.

    long_side: pixels, where it is asked for instead of a factor.
    """
    if long_side is not None:
        factor = long_side / max(width, height)
    return max(1, round(width * factor)), max(1, round(height * factor))


def block_rows(todo: pa.Table, workers: int, *, seconds_per_item: float | None = None) -> int:
    """Rows of a block, the unit of retry: about 20 s of work, and enough blocks for everyone.

    todo: items, with `size` where it is known. seconds_per_item: work of one worker, as measured;
    where it is not known yet, a block has 8 MiB of files, or 16 of unknown size.
    """
    file_bytes = pc.mean(todo["size"]).as_py()
    if seconds_per_item:
        wanted = round(_BLOCK_S / seconds_per_item)
    elif file_bytes:
        wanted = round(_BLOCK_BYTES / file_bytes)
    else:
        wanted = _DEFAULT_BLOCK_ROWS
    fair = math.ceil(todo.num_rows / (4 * workers))
    return max(_BLOCK_ROWS[0], min(wanted, fair, _BLOCK_ROWS[1]))


def shards(todo: pa.Table, rows: int) -> Iterator[tuple[str, pa.Table]]:
    """Named parts of the work, each for one execution: at most 50,000 blocks of `rows` rows.

    Every block costs the driver about 10 KB for as long as its execution lasts.
    """
    size = min(_SHARD_BLOCKS * rows, _SHARD_ROWS)
    for number, start in enumerate(range(0, todo.num_rows, size)):
        name, part = f"{number:05d}", todo.slice(start, size)
        names = pa.array([name] * part.num_rows, pa.string())
        yield name, _with(part, "shard", names)


def _path(uri: str) -> str:
    """A URI without its scheme, bucket included; without what may be a password or a signature."""
    scheme, mark, path = uri.partition("://")
    if not mark:
        return uri.lstrip("/")
    if scheme in ("http", "https"):
        path = path.partition("?")[0]
    if scheme not in ("abfs", "abfss"):  # where a container stands before the @
        place, slash, rest = path.partition("/")
        path = place.rpartition("@")[2] + slash + rest
    return path.lstrip("/")


def source_suffix(key: str, uri: str) -> str:
    """The suffix by which a source's own name, else its key, says its format; else empty."""
    return _split(_path(uri))[1] or _split(key)[1]


def _target(key: str, uri: str, format: str) -> tuple[str, str, str]:
    """Stem, format and suffix of the result, from names alone."""
    stem, suffix = _split(key)[0], source_suffix(key, uri)
    own = FORMATS.get(suffix.lower())
    kept = own if own in _SUFFIXES else "tiff" if suffix else "png"
    kind = kept if format == "auto" else format
    return stem, kind, suffix if own == kind else _SUFFIXES[kind]


def _split(name: str) -> tuple[str, str]:
    """Stem and suffix of a picture's name; no suffix where it is none of a picture."""
    stem, dot, ending = name.rpartition(".")
    suffix = (dot + ending).lower()
    if (suffix in FORMATS or suffix in _OTHERS) and stem and not stem.endswith("/"):
        return stem, dot + ending
    return name, ""


def _sha256(identity: Sequence[Any]) -> str:
    text = json.dumps(identity, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _each_once(items: pa.Table) -> pa.Table:
    """The same source listed twice is one item."""
    numbered = items.append_column("row", pa.array(range(items.num_rows), pa.int64()))
    firsts = numbered.group_by("item_id").aggregate([("row", "min")])["row_min"]
    if len(firsts) == items.num_rows:
        return items
    return items.take(pc.take(firsts, pc.sort_indices(firsts)))


def _bad_items(items: pa.Table, output: str, report: str) -> Iterator[str]:
    names = ("key", "uri", "output_uri")
    inside = f"{uris.place(output)}/"
    for key, uri, target in zip(*(items[n].to_pylist() for n in names), strict=True):
        if f"{target}/".startswith(f"{report}/"):
            yield f"{uri} has the key {key!r}, which lies in the report {report} (report.uri)"
        elif uris.place(uri).startswith(inside):
            yield f"{uri} lies in the output {output}, where it could be written over (output)"


def _collisions(items: pa.Table, earlier: pa.Table) -> Iterator[str]:
    earlier_rows = zip(_list(earlier, "output_uri"), _list(earlier, "key"), strict=True)
    nights = {_folded(target): key for target, key in earlier_rows if target}
    taken = dict[str, str]()
    columns = [items[name].to_pylist() for name in ("key", "uri", "offset", "output_uri")]
    for key, uri, offset, target in zip(*columns, strict=True):
        source = uri if offset is None else f"{uri} at {offset}"
        place = _folded(target)
        if nights.get(place, key) != key:
            other = f"the earlier source of {nights[place]!r}"
        else:
            other = taken.setdefault(place, source)
        if other is not source:
            yield (
                f"{other} and {source} would both be written to {target} "
                "(letter case does not count; key or format tells them apart)"
            )


def _folded(target: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", target).casefold())


def _known(items: pa.Table, latest: pa.Table) -> pa.Table:
    """The items in their order, with what the report knows of each key."""
    names = {
        "key": "key",
        "item_id": "known_id",
        "recipe": "known_recipe",
        "attempts": "known_attempts",
        "error_code": "error_code",
        "run_id": "known_run",
        "output_uri": "known_output",
        "output_sha256": "known_sha256",
        "status": "status",
        "error_class": "error_class",
        "error_stage": "error_stage",
    }
    view = latest.select(list(names)).rename_columns(list(names.values()))
    ordered = items.select(["key", "item_id"]).append_column(
        "row", pa.array(range(items.num_rows), pa.int64())
    )
    return ordered.join(view, keys="key", join_type="left outer").sort_by("row")


def _raised(known: pa.Table, raised: Callable[[str], Collection[str]]) -> Any:
    """Which rows failed by a limit that was lower in their run."""
    by_limit = pc.is_in(known["error_code"], pa.array(_LIMITED, pa.string()))
    runs = cast(list[str], pc.unique(known.filter(by_limit)["known_run"]).to_pylist())
    found: Any = pa.array([False] * known.num_rows, pa.bool_())
    for run_id in runs:
        codes = pa.array(list(raised(run_id)), pa.string())
        mine = pc.and_(pc.equal(known["known_run"], run_id), pc.is_in(known["error_code"], codes))
        found = pc.or_(found, _true(mine))
    return found


def _with(items: pa.Table, name: str, values: Any) -> pa.Table:
    """The items with other values in one of their columns."""
    return items.set_column(items.schema.get_field_index(name), ITEM_SCHEMA.field(name), values)


def _true(mask: Any) -> Any:
    """Null is false."""
    return pc.fill_null(mask, False)


def _count(mask: Any) -> int:
    return int(pc.sum(_true(mask)).as_py() or 0)


def _list(table: pa.Table, name: str) -> list[str]:
    return cast(list[str], table[name].to_pylist())
