"""What goes wrong with a store, whichever driver says so.

Everything a driver raises comes out as one of these:

    ConfigError              the URI, the options or the installation is wrong
    OSError
    ├── FileNotFoundError    no such object, bucket or file
    ├── PermissionError      refused: rights, or credentials that are missing, wrong or expired
    └── StoreError           anything else; time may cure it
        ├── SourceChangedError   the object is no longer the version asked for
        ├── ConflictError        what is at the place is not what was to be replaced
        ├── ThrottledError       the store asks for patience
        └── OverLimitError       more bytes than the caller will take; time cures nothing
"""

import errno
import pkgutil
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, cast

from pipeline.errors import ConfigError
from pipeline.uris import redact

# What drivers let through, by name: only what is loaded can raise, and loading it takes a while.
_CLIENT_ERROR = "botocore.exceptions:ClientError"
FAILURES = (
    _CLIENT_ERROR,
    "botocore.exceptions:BotoCoreError",
    "botocore.parsers:ResponseParserError",
    "aiohttp:ClientError",
    "gcsfs.retry:HttpError",
    "google.auth.exceptions:GoogleAuthError",
    "azure.core.exceptions:AzureError",
)
_MISCONFIGURED = (
    "botocore.exceptions:ProfileNotFound",
    "botocore.exceptions:ConfigParseError",
    "botocore.exceptions:ConfigNotFound",
    "botocore.exceptions:InvalidConfigError",
    "botocore.exceptions:PartialCredentialsError",
    "botocore.exceptions:ParamValidationError",
    "botocore.exceptions:ValidationError",
)
_LOCKED_OUT = (
    "botocore.exceptions:NoCredentialsError",
    "botocore.exceptions:NoAuthTokenError",
    "botocore.exceptions:CredentialRetrievalError",
    "botocore.exceptions:TokenRetrievalError",
    "botocore.exceptions:SSOError",
)
# S3 answers 400, not 403, to credentials that have run out.
_EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}


ANYTHING = "*"
"""In place of a version: whatever is there, or nothing."""


class StoreError(OSError):
    """The store or the network failed."""


class SourceChangedError(StoreError):
    """The object is no longer the version asked for."""


class ConflictError(StoreError):
    """What is at the place is not what was to be replaced; nothing was written."""


class ThrottledError(StoreError):
    """The store is overloaded, or asks for fewer requests."""


class OverLimitError(StoreError):
    """There are more bytes than the caller will take; none of them were read."""


def refuse_over(limit: int, wanted: int, uri: str) -> None:
    """Raises OverLimitError with both numbers if `wanted` bytes are more than `limit`."""
    if wanted > limit:
        raise OverLimitError(errno.EFBIG, f"{wanted:,} bytes, limit {limit:,}", redact(uri))


def refuse_other(wanted: str | None, found: str | None, uri: str) -> None:
    """Raises ConflictError unless the version that is there is the one wanted; None is nothing."""
    if found != wanted:
        text = f"wanted {wanted or 'nothing'} there, the store has {found or 'nothing'}"
        raise ConflictError(errno.EEXIST, text, redact(uri))


def loaded(names: Iterable[str]) -> tuple[type[Exception], ...]:
    """Of these errors, named as `module:name`, those whose module has been imported."""
    loaded = [name for name in names if name.partition(":")[0] in sys.modules]
    return tuple(map(pkgutil.resolve_name, loaded))


@contextmanager
def translating(uri: str) -> Generator[None]:
    """Turn what the driver of `uri` raises into the errors at the top of this module."""
    try:
        yield
    except (OSError, *loaded(FAILURES)) as error:
        if getattr(error, "filename", None):
            raise  # the operating system's, or translated already: it names its place
        raise _translated(redact(uri), error) from error


def _translated(place: str, error: Exception) -> Exception:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = redact(" ".join(text.split()))
    status, code = status_of(error)
    if isinstance(error, loaded(_MISCONFIGURED)):
        return ConfigError(f"{place}: {text}")
    locked_out = isinstance(error, (PermissionError, *loaded(_LOCKED_OUT)))
    locked_out |= getattr(error, "errno", None) == errno.EACCES  # aiohttp's, about a socket
    locked_out |= type(error) is OSError and text.startswith("Forbidden: ")  # gcsfs's word for 403
    if locked_out or status in (401, 403) or code in _EXPIRED_CODES:
        return PermissionError(errno.EACCES, text, place)
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(errno.ENOENT, text, place)
    if status == 412:
        return SourceChangedError(errno.ESTALE, text, place)
    if status in (429, 503):
        return ThrottledError(errno.EBUSY, text, place)
    return StoreError(getattr(error, "errno", None) or errno.EIO, text, place)


def status_of(error: BaseException) -> tuple[int | None, str]:
    """HTTP status and the store's own code of a driver's error, or of its cause."""
    for blamed in (error, error.__cause__):
        if isinstance(blamed, loaded([_CLIENT_ERROR])):
            answer = cast(Any, blamed).response
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, str(answer.get("Error", {}).get("Code", ""))
        for name in ("status_code", "status", "code"):  # Azure, aiohttp, Google
            if isinstance(status := getattr(blamed, name, None), int):
                return status, ""
    return None, ""


def said(error: Exception) -> str:
    """Kind and words of an error, for a report's row."""
    return f"{type(error).__name__}: {error}"
