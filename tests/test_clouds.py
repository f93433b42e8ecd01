"""Google's and Azure's stores through their own drivers: labels, and publications on conditions.

The servers keep objects and honour conditions as the two stores' references say; nothing else of
them is here.
"""

import base64
import json
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from pipeline.delivery import Delivery
from pipeline.errors import PublishError
from pipeline.records import ITEM_SCHEMA, Item
from pipeline.storage import ANYTHING, Store
from pipeline.store_errors import ConflictError


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Kept:
    """An object. version: GCS's generation, Azure's and GCS's ETag."""

    version: int
    data: bytes
    content_type: str | None
    metadata: dict[str, str]


@dataclass
class Cloud:
    """A store's objects by their paths below the server, and the writes that were asked for."""

    objects: dict[str, Kept] = field(default_factory=dict)
    conditions: list[str] = field(default_factory=list)
    forbidden: str = ""
    written: int = 0

    def write(self, path: str, *kept: Any) -> None:
        self.written += 1
        self.objects[path] = Kept(self.written, *kept)


class Google(Cloud):
    """As `storage.googleapis.com/storage/v1`: get, and insert by one request of two parts."""

    def answer(self, method: str, path: str, headers: Message, body: bytes) -> Answer:
        asked = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(asked.query).items()}
        if method == self.forbidden:
            return self._error(403, "no rights")
        if method == "GET" and asked.path.endswith("/o"):
            return Answer(200, b"{}")
        if method == "GET":
            name = unquote(asked.path.rpartition("/o/")[2])
            kept = self.objects.get(name)
            if kept is None:
                return self._error(404, "none")
            if query.get("alt") == "media" or "/download/" in asked.path:
                return Answer(200, kept.data)
            return Answer(200, json.dumps(self._resource(name, kept)).encode())
        _, head, data, _ = body.split(b"--==0==")
        said = json.loads(head.partition(b"\n\n")[2])
        kind, _, data = data.partition(b"\n\n")
        name = said["name"]
        self.conditions.append(query.get("ifGenerationMatch", ""))
        if query.get("ifGenerationMatch") == "0" and name in self.objects:
            return self._error(
                412, "At least one of the pre-conditions you specified did not hold."
            )
        kind = kind.decode().partition(": ")[2]
        self.write(name, data.removesuffix(b"\n"), kind, said.get("metadata", {}))
        return Answer(200, json.dumps(self._resource(name, self.objects[name])).encode())

    def _resource(self, name: str, kept: Kept) -> dict[str, Any]:
        return {
            "name": name,
            "bucket": "box",
            "size": str(len(kept.data)),
            "generation": str(kept.version),
            "etag": f"CJ{kept.version}=",
            "contentType": kept.content_type,
            "metadata": kept.metadata,
            "updated": "2026-01-02T03:04:05.678Z",
        }

    def _error(self, status: int, message: str) -> Answer:
        error = {"error": {"code": status, "message": message}}
        return Answer(status, json.dumps(error).encode())


class Azure(Cloud):
    """As `<account>.blob.core.windows.net`: Put Blob, Get Blob and Get Blob Properties."""

    def answer(self, method: str, path: str, headers: Message, body: bytes) -> Answer:
        name = unquote(urlsplit(path).path)
        kept = self.objects.get(name)
        if method == self.forbidden:
            return self._error(403, "AuthorizationPermissionMismatch")
        if method in ("HEAD", "GET"):
            if kept is None:
                return self._error(404, "BlobNotFound")
            said = self._headers(kept)
            if headers.get("x-ms-range"):
                last = len(kept.data) - 1
                said["Content-Range"] = f"bytes 0-{last}/{last + 1}"
                return Answer(206, kept.data, said)
            return Answer(200, kept.data, said | {"Content-Length": str(len(kept.data))})
        if_match, if_none = headers.get("If-Match"), headers.get("If-None-Match")
        self.conditions.append(if_match or if_none or "")
        if if_none == "*" and kept:
            return self._error(409, "BlobAlreadyExists")
        if if_match and (kept is None or if_match != f'"0x{kept.version}"'):
            return self._error(412, "ConditionNotMet")
        prefix = "x-ms-meta-"
        metadata = {n[len(prefix) :]: v for n, v in headers.items() if n.lower().startswith(prefix)}
        assert all(n.isidentifier() for n in metadata), "Azure refuses other names"
        self.write(name, body, headers.get("x-ms-blob-content-type"), metadata)
        return Answer(201, b"", self._headers(self.objects[name]) | {"Content-Length": "0"})

    def _headers(self, kept: Kept) -> dict[str, str]:
        said = {"ETag": f'"0x{kept.version}"', "Last-Modified": formatdate(0, usegmt=True)}
        said |= {"x-ms-blob-type": "BlockBlob", "Content-Type": kept.content_type or "x/y"}
        return said | {f"x-ms-meta-{name}": text for name, text in kept.metadata.items()}

    def _error(self, status: int, code: str) -> Answer:
        return Answer(status, b"", {"x-ms-error-code": code})


@contextmanager
def serving(cloud: Google | Azure) -> Iterator[str]:
    """The address of a server of these objects."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = cloud.answer(self.command, self.path, self.headers, body)
            self.send_response(answer.status)
            for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
                self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)
            self.close_connection = True

        do_GET = do_PUT = do_POST = do_HEAD = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Place:
    cloud: Google | Azure
    uri: str
    options: dict[str, Any]

    def store(self) -> Store:
        return Store(self.options)


@pytest.fixture(params=["gs", "az", "abfs"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    google = request.param == "gs"
    # Read when gcsfs is imported: else it asks by gRPC what kind of bucket it has, for a minute.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    pytest.importorskip("gcsfs" if google else "adlfs")
    cloud = Google() if google else Azure()
    with serving(cloud) as address:
        options: dict[str, Any] = {"endpoint_url": address, "token": "anon"}
        if not google:
            key = base64.b64encode(b"key").decode()
            account = f"AccountName=me;AccountKey={key};BlobEndpoint={address}/me;"
            options = {"connection_string": f"DefaultEndpointsProtocol=http;{account}"}
        yield Place(cloud, f"{request.param}://box/a folder/é.png", options)


def test_labels_are_kept(place: Place) -> None:
    store = place.store()
    assert store.labels(place.uri) is None
    metadata = {"remaster-item": "ab12", "name": "é%"}
    store.publish(place.uri, b"data", content_type="image/png", metadata=metadata)
    there = store.labels(place.uri)
    assert there is not None
    assert metadata.items() <= there.metadata.items()
    assert there.version == store.stat(place.uri).version
    assert pickle.loads(pickle.dumps(store)).read(place.uri) == b"data"
    (kept,) = place.cloud.objects.values()
    assert kept.content_type == "image/png"


def test_a_first_publication_never_replaces(place: Place) -> None:
    store = place.store()
    store.publish(place.uri, b"first", replaces=None)
    with pytest.raises(ConflictError, match="wanted nothing there, the store has something"):
        store.publish(place.uri, b"second", replaces=None)
    assert store.read(place.uri) == b"first"
    assert place.cloud.conditions == (["0"] * 2 if place.uri.startswith("gs") else ["*"] * 2)


def test_a_replacement_is_of_the_version_seen(place: Place) -> None:
    store = place.store()
    store.publish(place.uri, b"first")
    there = store.labels(place.uri)
    assert there is not None
    store.publish(place.uri, b"second", replaces=there.version)
    with pytest.raises(ConflictError, match=f"wanted {there.version} there, the store has"):
        store.publish(place.uri, b"third", replaces=there.version)
    assert store.read(place.uri) == b"second"
    store.publish(place.uri, b"fourth", replaces=ANYTHING)
    place.cloud.objects.clear()
    with pytest.raises(ConflictError):
        store.publish(place.uri, b"fifth", replaces="1")
    assert place.cloud.objects == {}


def test_who_may_write_but_not_read_writes_first_publications(place: Place) -> None:
    store = place.store()
    place.cloud.forbidden = "GET" if place.uri.startswith("gs") else "HEAD"
    assert store.labels(place.uri) is None
    store.publish(place.uri, b"first", replaces=None)
    with pytest.raises(ConflictError):
        store.publish(place.uri, b"second", replaces=None)


def test_results_are_adopted_replaced_or_left_alone(place: Place) -> None:
    store = place.store()
    row = dict.fromkeys(ITEM_SCHEMA.names) | {"item_id": "ab", "key": "x.png"}
    one = Item.from_row(row | {"output_uri": place.uri, "output_format": "png"})
    mine, newer = Delivery(store, "mine"), Delivery(store, "newer")
    assert mine.publish(one, "cd", b"first", mine.there(one)) == (b"first", ())
    assert mine.is_made(one, "cd", mine.there(one))
    assert mine.publish(one, "cd", b"again", None) == (b"first", ("adopted",))
    assert not newer.is_made(one, "cd", newer.there(one))
    assert newer.publish(one, "cd", b"second", newer.there(one)) == (b"second", ())
    store.publish(place.uri, b"precious")
    with pytest.raises(PublishError, match="is no result of ours"):
        mine.there(one)
