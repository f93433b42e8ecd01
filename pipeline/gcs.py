"""What is special about Google's store: what an object says of itself, and one condition.

gcsfs (2024.12 and later) has a condition for what is not there yet, none for a version. `fs` is a
`gcsfs.GCSFileSystem`; errors are the driver's.
"""

import errno
from collections.abc import Mapping
from typing import Any

from pipeline.store_errors import ANYTHING, ConflictError, refuse_other
from pipeline.uris import redact


def labels(fs: Any, uri: str) -> tuple[str, Mapping[str, str]]:
    """Version and metadata of one object. FileNotFoundError where there is none."""
    found = fs.info(uri)
    if found["type"] != "file":
        raise FileNotFoundError(errno.ENOENT, "not a file", redact(uri))
    return found["etag"], found.get("metadata") or {}


def put(
    fs: Any,
    uri: str,
    data: bytes,
    content_type: str | None,
    metadata: Mapping[str, str],
    *,
    replaces: str | None,
) -> None:
    """One upload. replaces: as `Store.publish`; a version is compared right before it."""
    said: dict[str, Any] = {"content_type": content_type, "metadata": dict(metadata)}
    said = {name: value for name, value in said.items() if value}
    if replaces not in (None, ANYTHING):
        refuse_other(replaces, _version(fs, uri), uri)
    try:
        fs.pipe_file(uri, data, mode="overwrite" if replaces else "create", **said)
    except FileExistsError as error:
        text = "wanted nothing there, the store has something"
        raise ConflictError(errno.EEXIST, text, redact(uri)) from error


def _version(fs: Any, uri: str) -> str | None:
    try:
        return labels(fs, uri)[0]
    except FileNotFoundError:
        return None
