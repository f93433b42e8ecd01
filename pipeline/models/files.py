"""One file of weights: fetched at most once per node, and believed only by its sha256."""

import hashlib
import os
import platform
import random
import time
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from filelock import FileLock, Timeout

from pipeline.errors import ConfigError
from pipeline.storage import Store
from pipeline.uris import absolute, is_local, redact, scheme

PACKAGED = "package://"
"""Begins the URI of a file that comes with this package, wherever a node has it installed."""

_ATTEMPTS = 4
_FIRST_BACKOFF_S = 0.5
_TIMEOUT_S = 60.0
_LOCK_TIMEOUT_S = 1800.0
_CHUNK_BYTES = 1 << 20
_IN_THE_BOX = Path(__file__).with_name("weights")
_MAX_BYTES = 4 << 30  # of a download whose size nobody has pinned
_WORTH_RETRYING = frozenset((408, 425, 429, 500, 502, 503, 504))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A file of weights.

    uris: where it may be found; local ones are tried first, else in their order. bytes: its size,
    None for a remote one that was pinned and not looked at.
    """

    name: str
    uris: tuple[str, ...]
    sha256: str
    bytes: int | None


def local_path(file: ModelFile, store: Store, cache_dir: Path) -> Path:
    """A path of this node with the file, verified: its own place on a local disk, or the cache.

    Raises ConfigError with both hashes when there is another file in its place, and when it cannot
    be had.
    """
    for path in map(_on_disk, file.uris):
        if path is not None and os.path.isfile(path):
            check_sha256(str(path), sha256_of(path), file.sha256)
            return path
    cached = cache_dir / file.sha256 / file.name
    if _is_whole(cached, file):
        return cached
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{cached}.lock", timeout=_LOCK_TIMEOUT_S):
            if not _is_whole(cached, file):
                _publish(cached, _fetch_first(file, store))
    except Timeout as error:
        raise ConfigError(
            f"another process has been fetching {file.name} for {_LOCK_TIMEOUT_S:.0f} s, "
            f"or hangs with the lock {cached}.lock"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot keep weights in {cache_dir}: {_reason(error)}") from error
    return cached


def _on_disk(uri: str) -> Path | None:
    """Where a file is on this node without being fetched; None for a remote one."""
    if uri.startswith(PACKAGED):
        return _IN_THE_BOX / uri.removeprefix(PACKAGED)
    return Path(absolute(uri)) if is_local(uri) else None


def _is_whole(cached: Path, file: ModelFile) -> bool:
    return os.path.isfile(cached) and sha256_of(cached) == file.sha256


def sha256_of(path: Path) -> str:
    """Of a local file. Raises ConfigError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise ConfigError(f"no model at {path}") from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {_reason(error)}") from error


def check_sha256(what: str, found: str, wanted: str) -> None:
    """Raise ConfigError with both when they differ."""
    if found != wanted:
        raise ConfigError(f"{what} has sha256 {found}, wanted is {wanted}")


def _publish(path: Path, data: bytes) -> None:
    """Whole or not at all. The lock is held: nobody else writes here."""
    part = path.with_name(f"{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------- remote


def _fetch_first(file: ModelFile, store: Store) -> bytes:
    """The file from the first of its places that has it."""
    for uri in (uri for uri in file.uris if _on_disk(uri) is None):
        data = fetch(uri, store, file.bytes)
        if data is not None:
            check_sha256(redact(uri), hashlib.sha256(data).hexdigest(), file.sha256)
            return data
    tried = " nor at ".join(redact(uri) for uri in file.uris)
    raise ConfigError(
        f"on node {platform.node()} there is no {file.name} at {tried}; "
        "put it where all nodes can read it, a released file into REMASTER_MODELS"
    )


def fetch(uri: str, store: Store, size: int | None) -> bytes | None:
    """All bytes, None when nothing is there. size: how many the file should have, if known.

    Raises ConfigError for whatever else keeps it from being read.
    """
    if scheme(uri) in ("http", "https"):
        return _download(uri, size)
    try:
        return store.read(uri)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {redact(uri)}: {_reason(error)}") from error


def _download(url: str, size: int | None) -> bytes | None:
    """Like `fetch`; tries again what time may cure."""
    reason = ""
    for attempt in range(_ATTEMPTS):
        if attempt:  # jittered, because all nodes of a cluster start at once
            time.sleep(_FIRST_BACKOFF_S * 2**attempt * random.uniform(0.25, 0.75))  # noqa: S311
        try:
            return _get(url, size)
        except HTTPError as error:
            error.close()
            reason = f"HTTP status {error.code} {error.reason}"
            if error.code in (404, 410):
                return None
            if error.code not in _WORTH_RETRYING:
                raise ConfigError(f"cannot download {redact(url)}: {reason}") from error
        except (OSError, HTTPException) as error:
            reason = _reason(error)
    raise ConfigError(
        f"cannot download {redact(url)}: {reason}, at the last of {_ATTEMPTS} attempts; "
        "a released file may also be put into REMASTER_MODELS"
    )


def _get(url: str, size: int | None) -> bytes:
    """One attempt. Raises OSError when the body breaks off, ConfigError when it is too long."""
    request = urllib.request.Request(url, headers={"User-Agent": "remaster"})  # noqa: S310
    limit = _MAX_BYTES if size is None else size
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
        announced = response.length or size or 0  # length: what is left to read, None for chunks
        data = bytearray()
        while chunk := response.read(_CHUNK_BYTES):
            data += chunk
            if len(data) > limit:
                raise ConfigError(f"{redact(url)} has more than the {limit:,} bytes expected")
    if len(data) < announced:
        raise ConnectionError(f"it broke off after {len(data):,} of {announced:,} bytes")
    return bytes(data)


def _reason(error: BaseException) -> str:
    told = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
    return redact(str(told) or type(error).__name__)
