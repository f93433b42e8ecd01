"""URIs as people write them: which driver, which place, and what of them may be shown.

Nothing here asks a store. A plain path is a URI too.
"""

import os
import re

from fsspec.registry import known_implementations

from pipeline.errors import ConfigError

# Schemes that name the same driver.
_FAMILY = {"local": "file", "s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "https": "http"}

OBJECT_STORES = frozenset({"s3", "gs", "az"})
"""Families of stores that answer only to credentials of their own."""


def scheme(uri: str) -> str:
    """The URI's scheme; "file" for `file://` and plain paths.

    Raises ConfigError for a scheme without a driver and for a malformed URI.
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.\-]*):(/*)([^/]*)", uri)
    if found is None or (found[1] not in known_implementations and len(found[2]) < 2):
        return "file"  # a path, perhaps with a colon in its first name
    name, slashes, place = found.groups()
    if name not in known_implementations:
        raise ConfigError(f"{redact(uri)}: no driver knows the scheme {name}://")
    if _FAMILY.get(name, name) == "file":
        if slashes != "///":
            raise ConfigError(f"{uri}: malformed; wanted {name}:///<absolute path>")
        return "file"
    if slashes != "//" or not place:
        raise ConfigError(f"{redact(uri)}: malformed; wanted {name}://<bucket or host>/<key>")
    return name


def is_uri(uri: str) -> bool:
    """Whether it is a URI that some driver knows, or a path."""
    try:
        return bool(scheme(uri))
    except ConfigError:
        return False


def family(uri: str) -> str:
    """The one scheme of all that name the URI's driver: s3 for s3a, http for https."""
    name = scheme(uri)
    return _FAMILY.get(name, name)


def is_local(uri: str) -> bool:
    """Whether the URI is a plain path or `file://`."""
    return scheme(uri) == "file"


def absolute(uri: str) -> str:
    """The URI without a trailing slash; a local one as an absolute plain path, `~` expanded.

    The path of a `file://` URI is taken as it stands, as fsspec does: `%20` is not a space.
    """
    if not is_local(uri):
        return uri.rstrip("/")
    return os.path.abspath(os.path.expanduser(re.sub(r"^(?:file|local)://", "", uri)))


def join(base: str, relative: str) -> str:
    """`base/relative`. Raises ValueError when `relative` could lead out of `base`."""
    if relative.startswith("/") or ".." in relative.split("/"):
        raise ValueError(f"{relative!r} is not a path below {redact(base)}")
    return f"{base.rstrip('/')}/{relative}" if relative else base


def below(uri: str, root: str) -> str | None:
    """The path of `uri` relative to `root`: "" when equal, None when it is not inside."""
    inner, outer = place(uri), place(root)
    if inner == outer:
        return ""
    outer = outer.rstrip("/") + "/"
    return inner[len(outer) :] if inner.startswith(outer) else None


def place(uri: str) -> str:
    """The URI by the one scheme of its family, as `absolute`: what is equal is one place.

    Raises ConfigError as `scheme`.
    """
    text = absolute(uri)
    return text if is_local(uri) else family(uri) + text.removeprefix(scheme(uri))


# A password may hold a slash (AWS secrets do); a port may not be taken for one. The container
# in abfs://container@account is none.
_USERINFO = re.compile(
    r"""(?<!abfs)(?<!abfss)://(?:[^\s/@:"'<>]*:(?!\d*(?:/|$))[^\s"'<>]*|[^\s/@:"'<>]+)@"""
)
_SECRETS = re.compile(
    r"""(?ix) (?<![\w-]) ( X-(?:Amz|Goog)-[\w-]* | AWSAccessKeyId | sig | signature | password
    | (?:\w+[_-])? (?:token|secret) (?:_\w+)? ) = [^&;,\s"'<>]*"""
)


def redact(text: str) -> str:
    """`text` without credentials: userinfo in URIs, signatures and tokens in query strings."""
    return _SECRETS.sub(r"\1=***", _USERINFO.sub("://***@", text))
