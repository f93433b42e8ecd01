"""Sources on web servers: public addresses only, and no more bytes than the caller will take.

A manifest may come from anywhere, and a URL in it asks this network's own machines as willingly as
the world's (server-side request forgery). So the address is checked where the socket is made:
after the names are resolved, for every redirect, and for what a name resolves to the second time.
"""

import errno
import ipaddress
import socket
from collections.abc import Mapping
from typing import Any

from fsspec.asyn import sync

from pipeline.store_errors import StoreError, refuse_over
from pipeline.uris import redact

_CHUNK_BYTES = 1 << 18
# Their last 32 bits are an IPv4 address: NAT64 (RFC 6052, RFC 8215) and what came before it.
_EMBEDDING = [ipaddress.IPv6Network(each) for each in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")]
# Options of a side whose store is S3, which say nothing of web servers.
_OF_S3 = ("endpoint_url", "profile", "key", "secret", "token", "s3_additional_kwargs")


def driver_options(options: Mapping[str, Any], *, public_only: bool) -> dict[str, Any]:
    """What fsspec's HTTP driver takes of a side's options."""
    kept = {name: value for name, value in options.items() if name not in _OF_S3}
    kept.pop("config_kwargs", None)
    client = dict(kept.pop("client_kwargs", {}))
    client.pop("region_name", None)
    kept["client_kwargs"] = client
    if public_only:
        kept["get_client"] = _public_client
    return kept


def read(fs: Any, url: str, start: int, length: int | None, limit: int | None) -> bytes:
    """As `Store.read`. A server that answers a range with the whole file is an error."""
    headers = dict(fs.kwargs.get("headers", {}))
    if start or length is not None:
        headers["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
    data: Any = sync(fs.loop, _read, fs, url, headers, limit)
    return data


async def _read(fs: Any, url: str, headers: Mapping[str, str], limit: int | None) -> bytes:
    session = await fs.set_session()
    request = {**fs.kwargs, "headers": headers}
    data = bytearray()
    async with session.get(fs.encode_url(url), **request) as response:
        response.raise_for_status()
        if "Range" in headers and response.status != 206:
            raise StoreError(errno.EIO, "the server gives no ranges of files", redact(url))
        if limit is not None:
            refuse_over(limit, response.content_length or 0, url)
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            data += chunk
            if limit is not None:  # of a body without a stated length
                refuse_over(limit, len(data), url)
    return bytes(data)


async def _public_client(**settings: Any) -> Any:
    import aiohttp  # here and not above: it takes a while, and most manifests name no web server

    connector = aiohttp.TCPConnector(socket_factory=_public_socket)
    return aiohttp.ClientSession(connector=connector, **settings)


def _public_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for one of a name's addresses, as in `socket.getaddrinfo`."""
    family, kind, protocol, _, place = address
    host = ipaddress.ip_address(place[0])
    if not is_public(host):
        raise PermissionError(
            errno.EACCES, f"{host} is no public address (private in storage.source.allow)"
        )
    return socket.socket(family, kind, protocol)


def is_public(host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address leads out of this network; one that stands for another, as that one."""
    if isinstance(host, ipaddress.IPv6Address):
        if host.is_site_local:
            return False
        inner = host.ipv4_mapped or host.sixtofour or (host.teredo and host.teredo[1])
        if any(host in network for network in _EMBEDDING):
            inner = ipaddress.IPv4Address(host.packed[-4:])
        if inner and not is_public(inner):
            return False
    return host.is_global and not host.is_multicast
