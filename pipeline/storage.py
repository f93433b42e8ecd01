"""The one door to bytes: read, publish, list, stat, on local disks and object stores.

A URI is a plain path, `file://`, or anything that fsspec has a driver for; `s3://` is the case
that is tuned. What is raised is drawn in `store_errors`.

A publish is atomic: nobody ever sees a part of an object. fsspec's files opened for writing are
not used for it, because leaving their `with` block by an exception publishes what was written so
far. Nothing is cached either: a listing or a stat shows what other clients wrote before it.
"""

import errno
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

import fsspec
import pyarrow.fs
from fsspec.utils import glob_translate

from pipeline import azure, gcs, local, s3, web
from pipeline.errors import ConfigError
from pipeline.store_errors import ANYTHING, StoreError, refuse_over, translating
from pipeline.uris import absolute, family, is_local, redact, scheme

# The extra of this distribution that installs a driver.
_EXTRA = {"gs": "gcs", "az": "azure"}

# botocore does the retrying. s3fs would repeat each of its attempts five times more.
_PATIENCE: dict[str, Any] = {
    "connect_timeout": 10,
    "read_timeout": 60,
    "retries": {"mode": "standard", "total_max_attempts": 5},
    "max_pool_connections": 32,
    # rclone sends the whole object's checksum along with a range of it, which then never fits.
    "response_checksum_validation": "when_required",
}


@dataclass(frozen=True, slots=True)
class Stat:
    """What a store says about one file.

    uri: a plain absolute path for local files, else with its scheme.
    size: bytes, or None when the store does not say (or for a dangling link).
    mtime: Unix seconds, or None.
    version: the ETag without quotes, None for local files.
    """

    uri: str
    size: int | None
    mtime: float | None
    version: str | None


@dataclass(frozen=True, slots=True)
class Labels:
    """What an object says of itself.

    version: the ETag without quotes.
    metadata: as given to `publish`.
    """

    version: str
    metadata: Mapping[str, str]


# --------------------------------------------------------------------------------------- Store


class Store:
    """Reads and publishes on one side (source, output, report or models) of a run.

    Connects at the first use. May be used from many threads at once; pickles as its arguments.
    """

    def __init__(
        self,
        options: Mapping[str, Any] | None = None,
        *,
        staging: str | None = None,
        part_bytes: int = 16 << 20,
        only: frozenset[str] | None = None,
        public_only: bool = False,
    ) -> None:
        """options: fsspec options for this side's object store; local paths ignore them.

        staging: local folder where files are written before they are moved to their place; on
        the same file system as that. Default: `.staging` beside each file.
        part_bytes: size of a part of a multipart upload, which S3 objects of two and more parts
        are; 5 MiB to 5 GiB by S3's rules.
        only: families of drivers, as `uris.family` names them, that URIs may ask for beside local
        files; others are answered with PermissionError. Default: all.
        public_only: web servers with private, loopback or link-local addresses are too.
        """
        self._options = dict(options or {})
        self._staging = None if staging is None else absolute(staging)
        self._staged_in = set[str]()
        self._part_bytes = part_bytes
        self._only = only
        self._public_only = public_only
        self._filesystems: dict[str, Any] = {}
        self._connecting = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., "Store"], tuple[Mapping[str, Any]]]:
        rebuild = partial(
            Store,
            staging=self._staging,
            part_bytes=self._part_bytes,
            only=self._only,
            public_only=self._public_only,
        )
        return rebuild, (self._options,)

    def read(
        self,
        uri: str,
        *,
        offset: int | None = None,
        length: int | None = None,
        version: str | None = None,
        limit: int | None = None,
    ) -> bytes:
        """The bytes of a file, or `length` of them from `offset` on (default: to the end).

        version: where it has the form of an ETag and the store is S3, the read succeeds only on
        that version, else SourceChangedError. Any other version is the manifest's own label: it
        tells items apart and is not checked, nor is an ETag on other stores.
        limit: bytes that the caller will take; more are refused unread, with OverLimitError.
        Raises StoreError when the range reaches beyond the end.
        """
        start = offset or 0
        if start < 0 or (length is not None and length < 0):
            raise ValueError(f"offset {offset} and length {length} must not be negative")
        if length == 0:
            return b""
        if limit is not None and family(uri) not in ("s3", "http"):
            wanted = (self.stat(uri).size or 0) - start if length is None else length
            refuse_over(limit, wanted, uri)
        with translating(uri):
            if is_local(uri):
                data = local.read(absolute(uri), start, length)
            elif _is_s3(uri):
                data = s3.read(self._filesystem(uri), uri, start, length, version, limit)
            elif family(uri) == "http":
                data = web.read(self._filesystem(uri), uri, start, length, limit)
            else:
                end = None if length is None else start + length
                data = self._filesystem(uri).cat_file(uri, start=start or None, end=end)
        if (length is not None and len(data) < length) or (start and not data):
            wanted = "more" if length is None else f"{length} bytes"
            text = f"wanted {wanted} from offset {start} on, got {len(data)} bytes"
            raise StoreError(errno.EIO, text, redact(uri))
        return data

    def connect(self, uri: str) -> None:
        """Raises ConfigError when there is no driver for the URI, or it refuses its options;
        PermissionError for a family that is not wanted."""
        if not is_local(uri):
            self._filesystem(uri)

    def stat(self, uri: str) -> Stat:
        """Size, time and version of one file. Raises FileNotFoundError when there is none."""
        with translating(uri):
            if is_local(uri):
                path = absolute(uri)
                return _stat_local(path, local.stat(path))
            fs = self._filesystem(uri)
            if _is_s3(uri):
                head = s3.head(fs, uri)
                return _stat_remote(uri, {**head, "size": head["ContentLength"]})
            info = fs.info(uri)
            if info["type"] != "file":
                raise FileNotFoundError(errno.ENOENT, "not a file", redact(uri))
            return _stat_remote(uri, info)

    def exists(self, uri: str) -> bool:
        """Whether a file is there; a folder is none.

        S3 answers 403 for a missing key to those who may not list the bucket: PermissionError.
        """
        try:
            self.stat(uri)
        except FileNotFoundError:
            return False
        return True

    def size(self, uri: str) -> int | None:
        """Bytes of one file. Raises FileNotFoundError when there is none."""
        return self.stat(uri).size

    def list(self, uri: str) -> Iterator[Stat]:
        """The files at `uri`: a file, a folder with all below it, or a glob (`*`, `?`, `[]`, `**`).

        In order of their URIs; nothing is yielded where nothing is. A file or folder whose name
        holds a glob's characters goes before the glob. Placeholder objects (`folder/`) and
        `.staging` are left out; local links are followed, a dangling one has size None.
        Errors surface while iterating. S3 pages are handed on as they come.
        """
        if not uri.endswith("/"):
            # Those who may list a prefix only are refused the stat of a folder: list it.
            with suppress(FileNotFoundError, PermissionError):
                yield self.stat(uri)
                return
        where = absolute(uri)
        below = self._walk(uri, f"{where}/", deep=True)
        magic = re.search(r"[*?[]", where)
        first = next(below, None)
        if first is not None:
            yield first
            yield from below
        if first is not None or magic is None:
            return
        wanted = re.compile(glob_translate(where))
        deep = "/" in where[magic.start() :] or "**" in where
        for found in self._walk(uri, where[: magic.start()], deep=deep):
            if wanted.match(found.uri):
                yield found

    def _walk(self, uri: str, literal: str, *, deep: bool) -> Iterator[Stat]:
        """What begins with `literal`, at least; in one folder unless deep."""
        root, _, prefix = literal.rpartition("/")
        with translating(uri):
            if is_local(uri):
                for path, info in local.walk(root or "/", deep=deep):
                    yield _stat_local(path, info)
            elif _is_s3(uri):
                for found in s3.walk(self._filesystem(uri), root, prefix, deep=deep):
                    yield _stat_remote(*found)
            else:
                yield from _walk_fsspec(self._filesystem(uri), root, deep=deep)

    def publish(
        self,
        uri: str,
        data: bytes | bytearray | memoryview,
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        replaces: str | None = ANYTHING,
    ) -> None:
        """Put `data` at `uri`, whole or not at all.

        Local: staged, flushed to the disk, moved. Stores: one PUT, or a multipart upload that
        is completed at its end and aborted on an error. `content_type` and `metadata` (ASCII;
        other characters are percent-encoded) go along where the store keeps such.
        replaces: the version that may be replaced, None where there must be none: where the store
        has another, ConflictError, and nothing is written. S3 and Azure look and write in one
        step; so does GCS where nothing may be there, a version is compared right before the write.
        Local disks and other stores do not look, nor do those behind S3's interface that ignore
        conditions: they replace what is there.
        """
        with translating(uri):
            if is_local(uri):
                path = absolute(uri)
                staging = self._staging or os.path.join(os.path.dirname(path), local.STAGING)
                self._staged_in.add(staging)
                local.publish(path, data, staging)
                return
            fs, texts = self._filesystem(uri), _ascii(metadata or {})
            says = (uri, bytes(data), content_type, texts)
            match family(uri):
                case "s3":
                    s3.put(fs, *says, part_bytes=self._part_bytes, replaces=replaces)
                case "gs":
                    gcs.put(fs, *says, replaces=replaces)
                case "az":
                    azure.put(fs, *says, replaces=replaces)
                case _:
                    fs.pipe_file(uri, bytes(data))

    def labels(self, uri: str) -> Labels | None:
        """What the object at `uri` says of itself.

        None where nothing is there, or where that cannot be known: on local disks and stores other
        than S3, GCS and Azure, and where the store answers 403, as S3 does for a missing key to
        those who may not list the bucket.
        """
        asked = {"s3": s3.labels, "gs": gcs.labels, "az": azure.labels}.get(family(uri))
        if asked is None:
            return None
        with suppress(FileNotFoundError, PermissionError), translating(uri):
            version, texts = asked(self._filesystem(uri), uri)
            return Labels(version, {name: unquote(text) for name, text in texts.items()})
        return None

    def sweep(self) -> int:
        """Remove the staging folders, with what killed publishes left; how many files that was.

        Files are removed from a folder given as `staging` only: it must be this run's alone.
        Other runs may be using the default one.
        """
        own = [] if self._staging is None else [self._staging]
        leftovers = sum(map(local.clear, own))
        local.remove_empty([*self._staged_in, *own])
        self._staged_in.clear()
        return leftovers

    def arrow(self, uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
        """An Arrow file system for readers (`pyarrow.parquet`, Ray Data), and the path in it.

        It pickles, credentials included. Write with `publish`: a writer of Arrow's that fails
        half-way leaves a truncated object.
        """
        if is_local(uri):
            return pyarrow.fs.LocalFileSystem(), absolute(uri)
        fs = self._filesystem(uri)
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), fs._strip_protocol(uri)

    def _filesystem(self, uri: str) -> Any:
        name, kind = scheme(uri), family(uri)
        if self._only is not None and kind not in self._only:
            text = f"no {kind} wanted here ({kind} in storage.source.allow)"
            raise PermissionError(errno.EACCES, text, redact(uri))
        options = self._options
        if kind == "http":
            options = web.driver_options(options, public_only=self._public_only)
        with self._connecting:
            if name not in self._filesystems:
                self._filesystems[name] = _connect(name, options, uri)
            return self._filesystems[name]


# ------------------------------------------------------------------------------------- remote


def _connect(name: str, options: Mapping[str, Any], uri: str) -> Any:
    kind = family(uri)
    try:
        driver = fsspec.get_filesystem_class(name)
    except ImportError as error:
        extra = _EXTRA.get(kind)
        cure = f"pip install 'remaster-ray[{extra}]'" if extra else str(error)
        raise ConfigError(f"{redact(uri)}: no driver for {name}:// is installed: {cure}") from error
    # An instance of our own: fsspec's shared ones outlive a change of the environment.
    settings = {**options, "use_listings_cache": False, "skip_instance_cache": True}
    if kind == "s3":
        settings["config_kwargs"] = {**_PATIENCE, **options.get("config_kwargs", {})}
    try:
        with translating(uri):
            fs: Any = driver(**settings)
            if kind == "s3":
                fs.retries = 1
                fs.connect()
    except (TypeError, ValueError, KeyError) as error:
        text = f"{redact(uri)}: {name}:// refuses its options ({', '.join(sorted(options))})"
        raise ConfigError(f"{text}: {redact(str(error))}") from error
    return fs


def _is_s3(uri: str) -> bool:
    return family(uri) == "s3"


def _walk_fsspec(fs: Any, root: str, *, deep: bool) -> Iterator[Stat]:
    try:
        found = fs.find(root, detail=True, maxdepth=None if deep else 1)
    except FileNotFoundError:
        return
    named = {n if "://" in n else f"{scheme(root)}://{n.lstrip('/')}": i for n, i in found.items()}
    for uri, info in sorted(named.items()):
        if info["type"] == "file" and not uri.endswith("/"):
            yield _stat_remote(uri, info)


def _stat_local(path: str, found: os.stat_result | None) -> Stat:
    return Stat(path, found and found.st_size, found and found.st_mtime, None)


def _stat_remote(uri: str, info: Mapping[str, Any]) -> Stat:
    """From a driver's answer; each has names of its own for the same facts."""
    changed = info.get("LastModified") or info.get("updated") or info.get("last_modified")
    if isinstance(changed, str):
        changed = datetime.fromisoformat(changed)
    # Listings may carry a fraction that HTTP's headers do not.
    mtime = changed.timestamp() // 1 if isinstance(changed, datetime) else None
    version = str(info.get("ETag") or info.get("etag") or "")
    return Stat(uri, info.get("size"), mtime, version.removeprefix("W/").strip('"') or None)


def _ascii(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name: quote(value, safe=" !#$&'()*+,/:;=?@[]") for name, value in metadata.items()}
