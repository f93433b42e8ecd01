"""What is special about S3: conditions, pages, bodies that break off, uploads in parts.

`fs` is an `s3fs.S3FileSystem` whose `retries` are 1; errors are the driver's.
"""

import asyncio
import errno
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any

from fsspec.asyn import sync

from pipeline.errors import ConfigError
from pipeline.store_errors import (
    ANYTHING,
    FAILURES,
    SourceChangedError,
    loaded,
    refuse_other,
    refuse_over,
    status_of,
)
from pipeline.uris import redact

_GET_ATTEMPTS = _PUT_ATTEMPTS = 3
_UPLOADS = 8  # parts of one object at a time
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


def head(fs: Any, uri: str) -> Mapping[str, Any]:
    """The store's answer about one object. FileNotFoundError where there is none."""
    bucket, key = bucket_and_key(fs, uri)
    return fs.call_s3("head_object", Bucket=bucket, Key=key)


def labels(fs: Any, uri: str) -> tuple[str, Mapping[str, str]]:
    """Version and metadata of one object. FileNotFoundError where there is none."""
    found = head(fs, uri)
    return found["ETag"].strip('"'), found.get("Metadata", {})


def put(
    fs: Any,
    uri: str,
    data: bytes,
    content_type: str | None,
    metadata: Mapping[str, str],
    *,
    part_bytes: int,
    replaces: str | None,
) -> None:
    """One PUT, or from two parts on an upload in parts.

    replaces: as `Store.publish`. A store that ignores conditions replaces whatever is there. One
    that cannot do the condition is asked for the version instead, and then takes the object.
    """
    said = {"ContentType": content_type, "Metadata": dict(metadata)}
    said = {name: value for name, value in said.items() if value}
    conditions = {None: {"IfNoneMatch": "*"}, ANYTHING: dict[str, str]()}
    condition = conditions.get(replaces, {"IfMatch": f'"{replaces}"'})
    attempt = 1
    while True:
        try:
            sync(fs.loop, _put, fs, uri, data, said, condition, part_bytes)
            return
        except (OSError, *loaded(FAILURES)) as error:
            status, _ = status_of(error)
            if condition and status in (412, 501):
                refuse_other(replaces, _etag(fs, uri), uri)
                # Swift has no If-Match on PUTs (501), Ceph 16 wants it without the quotes (412).
                condition = {}
            elif status != 409 or attempt == _PUT_ATTEMPTS:
                raise
            else:  # another write is under way
                time.sleep(attempt / 2)
                attempt += 1


def _etag(fs: Any, uri: str) -> str | None:
    try:
        return labels(fs, uri)[0]
    except FileNotFoundError:
        return None
    except PermissionError as error:
        text = "something is there, and whose it is may not be asked (s3:GetObject on the output)"
        raise PermissionError(errno.EACCES, text, redact(uri)) from error


async def _put(
    fs: Any,
    uri: str,
    data: bytes,
    said: Mapping[str, Any],
    condition: Mapping[str, str],
    part_bytes: int,
) -> None:
    bucket, key = bucket_and_key(fs, uri)
    place = {"Bucket": bucket, "Key": key}
    if len(data) < 2 * part_bytes:
        await fs._call_s3("put_object", Body=data, **place, **said, **condition)
        return
    upload = await fs._call_s3("create_multipart_upload", **place, **said)
    place["UploadId"] = upload["UploadId"]
    async with AsyncExitStack() as undo:
        undo.push_async_callback(_abort, fs, place)
        parts = await _put_parts(fs, place, data, part_bytes)
        await fs._call_s3(
            "complete_multipart_upload", MultipartUpload={"Parts": parts}, **place, **condition
        )
        undo.pop_all()


async def _abort(fs: Any, place: Mapping[str, str]) -> None:
    """Gives an upload up. Where that fails, what it was given up for is the error to be told:
    its parts stay until the bucket's own rules remove them."""
    with suppress(OSError, *loaded(FAILURES)):
        await fs._call_s3("abort_multipart_upload", **place)


async def _put_parts(
    fs: Any, place: Mapping[str, str], data: bytes, part_bytes: int
) -> list[dict[str, Any]]:
    """Numbers and ETags of the parts, all of one size but the last."""
    turns = asyncio.Semaphore(_UPLOADS)

    async def send(number: int, start: int) -> dict[str, Any]:
        async with turns:
            body = data[start : start + part_bytes]
            sent = await fs._call_s3("upload_part", PartNumber=number, Body=body, **place)
            return {"PartNumber": number, "ETag": sent["ETag"]}

    starts = enumerate(range(0, len(data), part_bytes), 1)
    sending = [asyncio.ensure_future(send(number, start)) for number, start in starts]
    try:
        return await asyncio.gather(*sending)
    finally:
        for task in sending:
            task.cancel()
