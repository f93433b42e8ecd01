"""What is special about Azure's store: what a blob says of itself, and conditions.

`fs` is an `adlfs.AzureBlobFileSystem`. Its `pipe_file` takes no metadata, the client below it does.
Azure's names of metadata may hold no hyphen: ours have underscores there. Errors are the driver's.
"""

import errno
import pkgutil
from collections.abc import Mapping
from typing import Any

from fsspec.asyn import sync

from pipeline.store_errors import ANYTHING, FAILURES, ConflictError, loaded
from pipeline.uris import redact

_CONFLICTS = ("BlobAlreadyExists", "ConditionNotMet")


def labels(fs: Any, uri: str) -> tuple[str, Mapping[str, str]]:
    """Version and metadata of one blob. The driver's error where there is none."""
    found: Any = sync(fs.loop, _properties, fs, uri)
    metadata = {name.replace("_", "-"): text for name, text in (found.metadata or {}).items()}
    return found.etag.strip('"'), metadata


async def _properties(fs: Any, uri: str) -> Any:
    async with _client(fs, uri) as client:
        return await client.get_blob_properties()


def put(
    fs: Any,
    uri: str,
    data: bytes,
    content_type: str | None,
    metadata: Mapping[str, str],
    *,
    replaces: str | None,
) -> None:
    """One upload, by the SDK in blocks where it is large. replaces: as `Store.publish`."""
    condition: dict[str, Any] = {"overwrite": replaces is not None}
    if replaces not in (None, ANYTHING):
        matches = pkgutil.resolve_name("azure.core:MatchConditions").IfNotModified
        condition |= {"etag": f'"{replaces}"', "match_condition": matches}
    settings = pkgutil.resolve_name("azure.storage.blob:ContentSettings")
    said = {
        # As adlfs has it, to tell blobs from its folders.
        "metadata": {"is_directory": "false"}
        | {name.replace("-", "_"): text for name, text in metadata.items()},
        "content_settings": settings(content_type=content_type) if content_type else None,
    }
    try:
        sync(fs.loop, _put, fs, uri, data, {**said, **condition})
    except loaded(FAILURES) as error:
        if getattr(error, "error_code", None) not in _CONFLICTS:
            raise
        text = f"wanted {replaces or 'nothing'} there, the store has something else"
        raise ConflictError(errno.EEXIST, text, redact(uri)) from error


async def _put(fs: Any, uri: str, data: bytes, arguments: Mapping[str, Any]) -> None:
    async with _client(fs, uri) as client:
        await client.upload_blob(data, **arguments)


def _client(fs: Any, uri: str) -> Any:
    container, blob, _ = fs.split_path(uri)
    return fs.service_client.get_blob_client(container=container, blob=blob)
