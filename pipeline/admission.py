"""Which items the plan refuses one by one, and their rows in the report.

A manifest of a million rows comes from anywhere, and one bad row must not stop the night: it gets
the row of a failed item, without a byte being fetched. What concerns several items or the run as a
whole (two sources with one result, a result in the report) is refused by `plan.refuse` instead.
"""

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import pyarrow as pa

from pipeline import plan, uris
from pipeline.config import Limits
from pipeline.errors import ConfigError, ItemError, RefusedError, TooLargeError
from pipeline.images.limits import check_size
from pipeline.records import MESSAGE_LIMIT, Outcome, to_table

_KEY_BYTES = 1024  # S3's, Google's and Azure's limit of an object's name
_NAME_BYTES = 255  # file systems' limit of a name between slashes
_QUOTED = 120
_MISREAD_ROWS = 10  # fewer may all be wrong in a night's small addition
# Control characters, and two that XML cannot hold, so no listing of S3's either.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffe\uffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a run admits."""

    output: str
    """Absolute URI."""
    families: frozenset[str]
    """Of drivers that sources may ask for, as `uris.family` names them; `file` for local files."""
    factor: float | None
    """Of the result's size; None where it is not known yet."""
    long_side: int | None
    limits: Limits


def refusals(items: pa.Table, rules: Rules) -> dict[str, ItemError]:
    """What is refused, by `item_id`. items: of `plan.identify`.

    Raises ConfigError when keys or places of all of them are: then it is not the rows that are
    wrong, but how they are read.
    """
    found = dict[str, ItemError]()
    names = ("item_id", "key", "uri", "output_uri", "output_format", "width", "height")
    columns = [cast(list[Any], items[name].to_pylist()) for name in names]
    for item_id, key, uri, output_uri, output_format, width, height in zip(*columns, strict=True):
        try:
            _check_key(key, output_uri, rules.output)
            _check_source(uri, rules.families)
            if (width or 0) > 0 and (height or 0) > 0:
                _check_pixels(width, height, output_format, rules)
        except ItemError as error:
            found[item_id] = error
    if len(found) == items.num_rows >= _MISREAD_ROWS:
        first, uri = next(iter(found.values())), uris.redact(columns[2][0])
        if all(isinstance(error, RefusedError) for error in found.values()):
            raise ConfigError(f"all {len(found)} sources are refused, the first is {uri}: {first}")
    return found


def rows(items: pa.Table, errors: Mapping[str, ItemError], run: Mapping[str, Any]) -> pa.Table:
    """The report's rows of refused items: OUTCOME_SCHEMA. run: what is the same in each of them."""
    now, host = datetime.now(UTC), platform.node()
    return to_table(
        Outcome(
            item_id=row["item_id"],
            key=row["key"],
            source_uri=uris.redact(row["uri"]),
            source_version=row["version"],
            source_width=row["width"],
            source_height=row["height"],
            status="failed",
            error_code=error.code,
            error_class="transient" if error.transient else "permanent",
            error_stage="plan",
            error_message=uris.redact(str(error))[:MESSAGE_LIMIT],
            attempts=row["attempts"] + 1,
            shard="",
            node=host,
            worker="",
            finished_at=now,
            extra=row["extra"],
            **run,
        )
        for row in items.to_pylist()
        if (error := errors.get(row["item_id"]))
    )


def _check_key(key: str, output_uri: str, output: str) -> None:
    fault = _fault(key) or _fault_of_place(output_uri, output)
    if fault:
        raise RefusedError(
            "bad_key",
            f"the key {_quoted(key)} {fault}: wanted a relative path, with the output at most "
            f"{_KEY_BYTES:,} bytes, in files {_NAME_BYTES} a name (key)",
        )


def _fault(key: str) -> str | None:
    """What keeps a key from being a plain relative path."""
    parts = key.split("/")
    size = len(key.encode("utf-8", "surrogatepass"))
    faults = {
        "is empty": not key,
        "holds a control character": _UNPRINTABLE.search(key),
        "holds a backslash": "\\" in key,
        "begins with a slash": key.startswith("/"),
        "begins with a drive": re.match(r"[A-Za-z]:", key),
        "has an empty part": "" in parts,
        "has a part . or ..": "." in parts or ".." in parts,
        "names a version, which belongs into the column version": "?versionId=" in key,
        f"has {size:,} bytes": size > _KEY_BYTES,
    }
    return next((fault for fault, found in faults.items() if found), None)


def _fault_of_place(output_uri: str, output: str) -> str | None:
    """The same for the place that was made of it, whichever way it was made."""
    local, prefix = output.startswith("/"), f"{output.rstrip('/')}/"
    below = output_uri.removeprefix(prefix)
    if below == output_uri or (local and os.path.normpath(output_uri) != output_uri):
        return f"would lead out of {uris.redact(output)}"
    if local:
        longest = max(len(os.fsencode(name)) for name in below.split("/"))
        return None if longest <= _NAME_BYTES else f"makes a file name of {longest} bytes"
    size = len(output_uri.partition("://")[2].partition("/")[2].encode())
    return None if size <= _KEY_BYTES else f"makes an object's name of {size:,} bytes"


def _quoted(key: str) -> str:
    """For messages: control characters escaped, the end of a long one left out."""
    return repr(key) if len(key) <= _QUOTED else f"{key[:_QUOTED]!r}..."


def _check_source(uri: str, families: frozenset[str]) -> None:
    try:
        family = uris.family(uri)
    except ConfigError as error:
        raise RefusedError("source_refused", str(error)) from error
    if family in families:
        return
    why = {
        "file": "a local file, which each node of this cluster would look for on its own disk",
        "http": "on a web server",
    }.get(family, f"neither in an object store nor a file, but behind {family}://")
    raise RefusedError(
        "source_refused",
        f"the source is {why}: refused unless allowed (storage.source.allow: {family})",
    )


def _check_pixels(width: int, height: int, output_format: str, rules: Rules) -> None:
    """By the manifest's width and height, which may be either way round."""
    pixels, limit = width * height, rules.limits.max_input_pixels
    if pixels > limit:
        raise TooLargeError(
            "input_too_large",
            f"by the manifest {width} x {height} = {pixels:,} pixels, "
            f"limit {limit:,} (limits.max_input_pixels)",
        )
    if rules.factor is None and rules.long_side is None:
        return
    made = plan.final_size(width, height, factor=rules.factor or 1, long_side=rules.long_side)
    check_size(output_format, *made, max_pixels=rules.limits.max_output_pixels)
