"""What is special about S3: conditions, pages, bodies that break off, uploads in parts.

`fs` is an `s3fs.S3FileSystem` whose `retries` are 1; errors are the driver's.
"""

import errno
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from fsspec.asyn import sync

from pipeline.errors import ConfigError
from pipeline.store_errors import FAILURES, SourceChangedError, loaded, refuse_over
from pipeline.uris import redact

_GET_ATTEMPTS = 3
_ETAG = re.compile(r'"?([0-9a-f]{32}(?:-[0-9]+)?)"?')


def bucket_and_key(fs: Any, uri: str) -> tuple[str, str]:
    """Raises ConfigError for a URI with a version, FileNotFoundError for a bucket alone."""
    if "?versionId=" in uri:  # s3fs would silently use the key before it
        raise ConfigError(f"{redact(uri)}: a version belongs into the manifest's version column")
    bucket, key, _ = fs.split_path(uri)  # knows access point ARNs, which hold slashes
    if not key:
        raise FileNotFoundError(errno.ENOENT, "a bucket, not an object in it", redact(uri))
    return bucket, key


def read(
    fs: Any, uri: str, start: int, length: int | None, version: str | None, limit: int | None
) -> bytes:
    """As `Store.read`."""
    bucket, key = bucket_and_key(fs, uri)
    request = {"Bucket": bucket, "Key": key}
    if start or length is not None:
        request["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
    asked = _ETAG.fullmatch(version or "")
    if asked:
        request["IfMatch"] = f'"{asked[1]}"'
    data, etag = _get(fs, request, uri, limit)
    if asked and etag != asked[1]:  # the store ignores If-Match, as rclone does
        text = f"wanted version {asked[1]}, the store has {etag}"
        raise SourceChangedError(errno.ESTALE, text, redact(uri))
    return data


def _get(fs: Any, request: Mapping[str, str], uri: str, limit: int | None) -> tuple[bytes, str]:
    """Body and ETag of one GET. botocore's retries end with the headers: a body that breaks off
    is asked for again here."""
    attempt = 1
    while True:
        response = fs.call_s3("get_object", **request)
        if limit is not None and response["ContentLength"] > limit:
            response["Body"].close()
            refuse_over(limit, response["ContentLength"], uri)
        try:
            body: Any = sync(fs.loop, _drain, response["Body"])
            return body, response["ETag"].strip('"')
        except (OSError, *loaded(FAILURES)):
            if attempt == _GET_ATTEMPTS:
                raise
        time.sleep(attempt / 2)
        attempt += 1


async def _drain(body: Any) -> bytes:
    try:
        return await body.read()
    finally:
        body.close()


def walk(fs: Any, root: str, prefix: str, *, deep: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """URIs below `root` that go on with `prefix`, and what the listing says of them."""
    bucket, folder, _ = fs.split_path(root)
    base = root[: len(root) - len(folder)].rstrip("/")
    request = {"Bucket": bucket, "Prefix": f"{folder}/{prefix}".lstrip("/")}
    if not deep:
        request["Delimiter"] = "/"
    while True:
        page = fs.call_s3("list_objects_v2", **request)
        for found in page.get("Contents", ()):
            if not found["Key"].endswith("/"):
                yield f"{base}/{found['Key']}", {**found, "size": found["Size"]}
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]
