"""What every store promises, checked on a local disk, on Swift and on rclone; then what only
some of them promise, and what happens when a server misbehaves."""

import http.client
import io
import ipaddress
import os
import pickle
import signal
import string
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fsspec.asyn
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import ROOT, S3Server, start_rclone

from pipeline import web
from pipeline.errors import ConfigError
from pipeline.storage import ANYTHING, Store
from pipeline.store_errors import (
    ConflictError,
    OverLimitError,
    SourceChangedError,
    StoreError,
    ThrottledError,
)
from pipeline.uris import absolute, below, is_local, join, redact, scheme

MIB = 1 << 20
ODD_KEY = "été 2024/a b/100%&=+,?#[x]*'\"~😀.png"


@dataclass(frozen=True)
class Place:
    """A folder of a test's own, and what it takes to reach it."""

    root: str
    options: dict[str, Any] = field(default_factory=dict)

    def store(self) -> Store:
        """A client that shares nothing with others but the bytes."""
        return Store(self.options, part_bytes=5 * MIB)


@pytest.fixture(scope="session")
def buckets() -> dict[str, str]:
    return {}


def _on(server: S3Server, name: str, buckets: dict[str, str]) -> Place:
    if name not in buckets:
        buckets[name] = server.make_bucket("storage-tests")
    return Place(f"{buckets[name]}/{uuid.uuid4().hex}", server.options)


@pytest.fixture(params=["local", "swift", "rclone"])
def place(request: pytest.FixtureRequest, tmp_path: Path, buckets: dict[str, str]) -> Place:
    if request.param == "local":
        # The options of a side with an object store do no harm to its local paths.
        return Place(str(tmp_path / "root"), {"endpoint_url": "http://127.0.0.1:1"})
    return _on(request.getfixturevalue(request.param), request.param, buckets)


@pytest.fixture
def on_swift(swift: S3Server, buckets: dict[str, str]) -> Place:
    return _on(swift, "swift", buckets)


def _uris(store: Store, uri: str) -> list[str]:
    return [found.uri for found in store.list(uri)]


# ----------------------------------------------------------------------------- on every store


@pytest.mark.parametrize("data", [b"", b"\x00", bytes(range(256)) * 17], ids=len)
def test_what_is_published_is_read(place: Place, data: bytes) -> None:
    store, uri = place.store(), f"{place.root}/deep/er/file.bin"
    store.publish(uri, data, content_type="application/octet-stream", metadata={"a": "b"})
    assert store.read(uri) == data
    assert store.size(uri) == len(data)
    assert store.exists(uri)


def test_large_objects_go_in_parts(place: Place) -> None:
    data = os.urandom(12 * MIB)
    store, uri = place.store(), f"{place.root}/large"
    store.publish(uri, memoryview(data))
    assert store.read(uri) == data
    assert store.size(uri) == len(data)


def test_publish_replaces(place: Place) -> None:
    store, uri = place.store(), f"{place.root}/file"
    store.publish(uri, b"a longer first version")
    store.publish(uri, bytearray(b"second"))
    assert store.read(uri) == b"second"
    assert _uris(store, place.root) == [uri]


def test_odd_keys(place: Place) -> None:
    store, uri = place.store(), f"{place.root}/{ODD_KEY}"
    store.publish(uri, b"odd")
    assert store.read(uri) == b"odd"
    assert _uris(store, place.root) == [uri]
    assert _uris(store, uri) == [uri], "a file goes before the glob that its name would be"
    assert store.stat(uri).uri == uri


def test_ranges(place: Place) -> None:
    store, uri = place.store(), f"{place.root}/file"
    store.publish(uri, b"0123456789")
    assert store.read(uri, offset=0, length=4) == b"0123"
    assert store.read(uri, offset=3, length=4) == b"3456"
    assert store.read(uri, offset=7) == b"789"
    assert store.read(uri, length=10) == b"0123456789"
    assert store.read(uri, offset=2, length=0) == b""


@pytest.mark.parametrize(("offset", "length"), [(7, 4), (0, 11), (10, 1), (10, None), (99, None)])
def test_a_range_beyond_the_end_is_an_error(place: Place, offset: int, length: int | None) -> None:
    store, uri = place.store(), f"{place.root}/file"
    store.publish(uri, b"0123456789")
    with pytest.raises(StoreError):
        store.read(uri, offset=offset, length=length)


def test_more_than_the_limit_is_refused_with_both_numbers(place: Place) -> None:
    store, uri = place.store(), f"{place.root}/file"
    store.publish(uri, b"0123456789")
    assert store.read(uri, limit=10) == b"0123456789"
    assert store.read(uri, offset=5, length=2, limit=2) == b"56"
    for options in ({"limit": 9}, {"offset": 5, "limit": 4}, {"length": 3, "limit": 2}):
        with pytest.raises(OverLimitError, match=rf"bytes, limit {options['limit']}"):
            store.read(uri, **options)


def test_a_folder_is_listed_in_order(place: Place) -> None:
    store = place.store()
    keys = ["a/1", "a-b", "a.b", "b/c/d/e", "b/c d", "Z", "é"]
    for key in keys:
        store.publish(f"{place.root}/{key}", key.encode())
    expected = sorted(f"{place.root}/{key}" for key in keys)
    assert _uris(store, place.root) == expected
    assert _uris(store, f"{place.root}/") == expected
    assert _uris(store, f"{place.root}/b") == [f"{place.root}/b/c d", f"{place.root}/b/c/d/e"]
    assert _uris(store, f"{place.root}/a/") == [f"{place.root}/a/1"]
    for found in store.list(place.root):
        one = store.stat(found.uri)
        assert (found.uri, found.size, found.version) == (one.uri, one.size, one.version)
        # rclone rounds a time in listings and cuts it off in headers.
        assert found.mtime == pytest.approx(one.mtime, abs=1)
        assert found.size == len(found.uri.removeprefix(place.root + "/").encode())
        assert found.mtime is not None
        assert abs(found.mtime - time.time()) < 300


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.png", ["1.png", "2.png"]),
        ("?.*", ["1.png", "2.png", "3.jpg"]),
        ("*/*.png", ["x/4.png", "y/5.png"]),
        ("[xz]/*", ["x/4.png"]),
        ("**/*.png", ["1.png", "2.png", "x/4.png", "y/5.png", "y/deep/6.png"]),
        ("y/**", ["y/5.png", "y/deep/6.png"]),
        ("*.gif", []),
    ],
)
def test_globs(place: Place, glob: str, expected: list[str]) -> None:
    store = place.store()
    for key in ("1.png", "2.png", "3.jpg", "x/4.png", "y/5.png", "y/deep/6.png"):
        store.publish(f"{place.root}/{key}", b"")
    assert _uris(store, f"{place.root}/{glob}") == [f"{place.root}/{key}" for key in expected]


def test_a_folder_whose_name_looks_like_a_glob(place: Place) -> None:
    store, uri = place.store(), f"{place.root}/Album [1999]"
    store.publish(f"{uri}/a.png", b"a")
    store.publish(f"{place.root}/Album 1/b.png", b"b")
    assert _uris(store, uri) == [f"{uri}/a.png"]


def test_what_is_not_there(place: Place) -> None:
    store = place.store()
    store.publish(f"{place.root}/folder/file", b"")
    for missing in ("none", "folder", "folder/file/none"):
        uri = f"{place.root}/{missing}"
        assert not store.exists(uri)
        for ask in (store.read, store.stat, store.size):
            with pytest.raises(FileNotFoundError, match=missing):
                ask(uri)
    assert _uris(store, f"{place.root}/none") == []


def test_nothing_is_cached(place: Place) -> None:
    mine, other = place.store(), place.store()
    uri = f"{place.root}/folder/file"
    assert not mine.exists(uri)
    assert _uris(mine, place.root) == []
    other.publish(uri, b"first")
    assert mine.exists(uri)
    assert mine.size(uri) == 5
    assert _uris(mine, place.root) == [uri]
    other.publish(uri, b"the second")
    other.publish(f"{uri}2", b"")
    assert mine.size(uri) == 10
    assert mine.read(uri) == b"the second"
    assert _uris(mine, place.root) == [uri, f"{uri}2"]


def test_many_threads_publish_at_once(place: Place) -> None:
    store = place.store()
    start = threading.Barrier(8)

    def publish(thread: int) -> None:
        start.wait()
        for i in range(20):
            store.publish(f"{place.root}/{thread}/{i}", f"{thread} {i}".encode())

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(publish, range(8)))
    assert len(_uris(store, place.root)) == 8 * 20
    assert store.read(f"{place.root}/7/19") == b"7 19"


# rclone 1.75 is left out: of racing PUTs to one key some fail, and the key may be listed twice.
@pytest.mark.parametrize("place", ["local", "swift"], indirect=True)
def test_of_racing_publishes_one_wins(place: Place) -> None:
    store, uri = place.store(), f"{place.root}/shared"
    contents = [b"%d" % thread * 100_000 for thread in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(partial(store.publish, uri), contents))
    assert store.read(uri) in contents
    assert _uris(store, place.root) == [uri]


def test_a_used_store_pickles(place: Place) -> None:
    store, uri = place.store(), f"{place.root}/file"
    store.publish(uri, b"data")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.read(uri) == b"data"
    copy.publish(uri, b"more")
    assert store.read(uri) == b"more"


def test_arrow_reads_what_is_published(place: Place) -> None:
    store, table = place.store(), pa.table({"key": ["a", "b"], "n": [1, 2]})
    for part in range(2):
        sink = io.BytesIO()
        pa.parquet.write_table(table, sink)
        store.publish(f"{place.root}/t/{part}.parquet", sink.getvalue())
    filesystem, path = pickle.loads(pickle.dumps(store.arrow(f"{place.root}/t/0.parquet")))
    assert pa.parquet.read_table(path, filesystem=filesystem) == table
    filesystem, path = store.arrow(f"{place.root}/t")
    assert pa.parquet.read_table(path, filesystem=filesystem).num_rows == 4
    pa.parquet.write_table(table, f"{path}/2.parquet", filesystem=filesystem)
    assert _files(filesystem, path) == 3
    place.store().publish(f"{place.root}/t/3.parquet", sink.getvalue())
    assert _files(filesystem, path) == 4, "listings are not cached"
    assert pa.dataset.dataset(path, filesystem=filesystem).count_rows() == 8


def _files(filesystem: pyarrow.fs.FileSystem, folder: str) -> int:
    return sum(info.is_file for info in filesystem.get_file_info(pa.fs.FileSelector(folder)))


def test_more_keys_than_a_page_holds(tmp_path: Path, rclone_folder: tuple[S3Server, Path]) -> None:
    server, served = rclone_folder
    for folder in (tmp_path, served):
        (folder / "many").mkdir()
        for i in range(1203):
            (folder / "many" / f"{i:05}.png").touch()
    expected = [f"{i:05}.png" for i in range(1203)]
    for store, uri in (
        (Store(), str(tmp_path / "many")),
        (Store(server.options), "s3://many"),
    ):
        assert [found.uri.removeprefix(f"{uri}/") for found in store.list(uri)] == expected


@pytest.fixture
def rclone_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, Path]]:
    """A server of the test's own, to be ended by it, and the folder that it serves."""
    folder = tmp_path_factory.mktemp("served")
    server = start_rclone(folder)
    yield server, folder
    server.stop()


# --------------------------------------------------------------------------------- local disks


def test_the_umask_decides_the_rights(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Store().publish(str(tmp_path / "file"), b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_failed_publish_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    store = Store(staging=str(tmp_path / "staging"))
    with pytest.raises(IsADirectoryError):
        store.publish(str(tmp_path / "target"), b"data")
    assert list((tmp_path / "staging").iterdir()) == []


_PUBLISH_FOR_EVER = """
import sys
from pipeline.storage import Store
store = Store(staging=sys.argv[2])
while True:
    for letter in (b"a", b"b"):
        store.publish(sys.argv[1], letter * 16_000_000)
"""


def test_a_kill_never_leaves_half_a_file(tmp_path: Path) -> None:
    target, staging = tmp_path / "file", tmp_path / ".staging" / "run"
    for pause in (0.01, 0.03, 0.05):
        target.unlink(missing_ok=True)
        command = [sys.executable, "-c", _PUBLISH_FOR_EVER, str(target), str(staging)]
        with subprocess.Popen(command, cwd=ROOT) as process:
            while not target.exists():
                assert process.poll() is None
                time.sleep(0.005)
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
        content = target.read_bytes()
        assert content in (b"a" * 16_000_000, b"b" * 16_000_000)
    left = len(list(staging.iterdir()))
    assert left > 0, "none of the kills came during a write"
    assert _uris(Store(), str(tmp_path)) == [str(target)], "what is staged is not listed"
    assert Store(staging=str(staging)).sweep() == left
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_sweep_removes_only_what_publish_staged(tmp_path: Path) -> None:
    staging = tmp_path / "by-mistake-a-folder-in-use"
    staging.mkdir()
    (staging / "precious.tif").write_bytes(b"data")
    assert Store(staging=str(staging)).sweep() == 0
    assert (staging / "precious.tif").exists()


def test_sweep_without_a_folder_given(tmp_path: Path) -> None:
    store = Store()
    store.publish(str(tmp_path / "a" / "file"), b"")
    assert store.sweep() == 0
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
    assert Store().sweep() == 0


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / "folder").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"123")
    (root / "folder" / "up").symlink_to(root)
    (root / "folder" / "self").symlink_to("self")
    (root / "linked-file").symlink_to(elsewhere / "file")
    (root / "linked-folder").symlink_to(elsewhere)
    (root / "gone").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    sizes = {found.uri.removeprefix(f"{root}/"): found.size for found in Store().list(str(root))}
    assert sizes == {"folder/self": None, "gone": None, "linked-file": 3, "linked-folder/file": 3}
    with pytest.raises(FileNotFoundError):
        Store().read(str(root / "pipe"))


def test_file_uris_are_paths(tmp_path: Path) -> None:
    store = Store()
    store.publish(f"file://{tmp_path}/a%20b", b"data")
    assert store.read(f"{tmp_path}/a%20b") == b"data"
    assert _uris(store, f"file://{tmp_path}") == [f"{tmp_path}/a%20b"]


# -------------------------------------------------------------------------------- object stores


@pytest.fixture(params=["swift", "rclone"])
def remote(request: pytest.FixtureRequest, buckets: dict[str, str]) -> Place:
    return _on(request.getfixturevalue(request.param), request.param, buckets)


def test_wrong_credentials_are_refused(remote: Place) -> None:
    remote.store().publish(f"{remote.root}/file", b"data")
    store = Store({**remote.options, "secret": "wrong"})
    for ask in (store.read, store.exists, lambda uri: store.publish(uri, b""), store.list):
        with pytest.raises(PermissionError) as caught:
            list(ask(f"{remote.root}/file") or ())
        assert f"{remote.root}/file" in str(caught.value)
        assert "wrong" not in str(caught.value)


def test_no_such_bucket(remote: Place) -> None:
    store, uri = remote.store(), "s3://there-is-no-such-bucket/file"
    for ask in (store.read, store.stat, lambda uri: store.publish(uri, b""), store.list):
        with pytest.raises(FileNotFoundError):
            list(ask(uri) or ())


@pytest.mark.parametrize("size", [7, 12 * MIB], ids=["one PUT", "multipart"])
def test_a_read_is_of_the_version_asked_for(remote: Place, size: int) -> None:
    """Swift honours If-Match on GET. rclone does not: there the answer's ETag tells."""
    store, uri = remote.store(), f"{remote.root}/file"
    store.publish(uri, b"1" * size)
    old = store.stat(uri).version
    assert old is not None
    assert store.read(uri, version=old) == b"1" * size
    assert store.read(uri, version=f'"{old}"', offset=1, length=2) == b"11"
    store.publish(uri, b"2" * size)
    with pytest.raises(SourceChangedError, match="file"):
        store.read(uri, version=old)
    assert store.read(uri, version="v17") == b"2" * size, "an opaque label is not checked"


def test_the_condition_goes_with_the_request(on_swift: Place) -> None:
    """So that no store that honours it sends a body which is thrown away."""
    store, uri = on_swift.store(), f"{on_swift.root}/file"
    store.publish(uri, b"data")
    with pytest.raises(SourceChangedError, match="preconditions"):  # in Swift's words
        store.read(uri, version="0" * 32)


def test_rclone_ignores_conditions(rclone: S3Server, buckets: dict[str, str]) -> None:
    """The fact that the comparison of ETags in `read` is there for. If this fails, good."""
    place = _on(rclone, "rclone", buckets)
    place.store().publish(f"{place.root}/file", b"data")
    client = fsspec.filesystem("s3", skip_instance_cache=True, **place.options)
    bucket, key, _ = client.split_path(f"{place.root}/file")
    answer = client.call_s3("get_object", Bucket=bucket, Key=key, IfMatch=f'"{"0" * 32}"')
    assert fsspec.asyn.sync(client.loop, answer["Body"].read) == b"data"


@pytest.mark.parametrize("size", [7, 12 * MIB], ids=["one PUT", "multipart"])
def test_content_type_and_metadata_are_kept(on_swift: Place, size: int) -> None:
    uri = f"{on_swift.root}/file"
    on_swift.store().publish(
        uri, bytes(size), content_type="image/png", metadata={"remaster-item": "ab12", "name": "é%"}
    )
    client = fsspec.filesystem("s3", skip_instance_cache=True, **on_swift.options)
    bucket, key, _ = client.split_path(uri)
    head = client.call_s3("head_object", Bucket=bucket, Key=key)
    assert head["ContentType"] == "image/png"
    assert head["Metadata"] == {"remaster-item": "ab12", "name": "%C3%A9%25"}


@pytest.mark.parametrize("size", [7, 12 * MIB], ids=["one PUT", "multipart"])
def test_a_first_publication_never_replaces(on_swift: Place, size: int) -> None:
    store, uri = on_swift.store(), f"{on_swift.root}/file"
    assert store.labels(uri) is None
    store.publish(uri, b"1" * size, metadata={"name": "é%"}, replaces=None)
    there = store.labels(uri)
    assert there is not None
    assert there.version == store.stat(uri).version
    assert there.metadata == {"name": "é%"}
    with pytest.raises(ConflictError, match=f"wanted nothing there, the store has {there.version}"):
        store.publish(uri, b"2" * size, replaces=None)
    assert store.read(uri) == b"1" * size
    assert store.labels(uri) == there


@pytest.mark.parametrize("size", [7, 12 * MIB], ids=["one PUT", "multipart"])
def test_a_replacement_is_of_the_version_seen(remote: Place, size: int) -> None:
    """Swift refuses If-Match on a PUT: there the version is compared before. rclone ignores it."""
    store, uri = remote.store(), f"{remote.root}/file"
    store.publish(uri, b"1" * size, replaces=None)
    there = store.labels(uri)
    assert there is not None
    store.publish(uri, b"2" * size, replaces=there.version)
    assert store.read(uri) == b"2" * size


def test_another_version_is_not_replaced(on_swift: Place) -> None:
    store, uri = on_swift.store(), f"{on_swift.root}/file"
    for _ in range(2):
        with pytest.raises(ConflictError, match=f"wanted {'0' * 32} there, the store has"):
            store.publish(uri, b"2", replaces="0" * 32)
        store.publish(uri, b"1")
    assert store.read(uri) == b"1"


def test_rclone_replaces_in_spite_of_conditions(rclone: S3Server, buckets: dict[str, str]) -> None:
    """The fact that a publication cannot rest on conditions alone. If this fails, good."""
    place = _on(rclone, "rclone", buckets)
    store, uri = place.store(), f"{place.root}/file"
    for replaces in (None, None, "0" * 32):
        store.publish(uri, b"data", metadata={"a": "b"}, replaces=replaces)
    there = store.labels(uri)
    assert there is not None
    assert there.metadata["a"] == "b"


def test_local_files_have_no_labels_and_are_replaced(tmp_path: Path) -> None:
    store, uri = Store(), str(tmp_path / "file")
    for data in (b"1", b"2"):
        store.publish(uri, data, metadata={"a": "b"}, replaces=None)
        assert store.labels(uri) is None
        assert store.read(uri) == data


@contextmanager
def _refusing(server: S3Server, method: str) -> Iterator[dict[str, Any]]:
    """Options for a server that hands everything on to another, but refuses one method."""
    behind = urlsplit(server.endpoint)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.command == method:
                self.send_error(403, "no rights to this")
                return
            onward = http.client.HTTPConnection(behind.hostname, behind.port, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name != "Expect"}
            onward.request(self.command, self.path, body, headers)
            answer = onward.getresponse()
            said = answer.read()
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name not in ("Content-Length", "Transfer-Encoding", "Connection"):
                    self.send_header(name, value)
            size = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", size or str(len(said)))
            self.end_headers()
            self.wfile.write(said)
            onward.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as between:
        thread = threading.Thread(target=between.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{between.server_address[1]}"
            yield {**server.options, "endpoint_url": address}
        finally:
            between.shutdown()
            thread.join()


def test_a_conflict_is_one_where_its_upload_cannot_be_given_up(
    swift: S3Server, on_swift: Place
) -> None:
    uri = f"{on_swift.root}/file"
    on_swift.store().publish(uri, b"first")
    with _refusing(swift, "DELETE") as options:
        store = Store(options, part_bytes=5 * MIB)
        assert store.read(uri) == b"first"
        with pytest.raises(ConflictError, match="wanted nothing there"):
            store.publish(uri, bytes(12 * MIB), replaces=None)
    assert on_swift.store().read(uri) == b"first"


def test_an_object_and_a_folder_of_one_name(on_swift: Place) -> None:
    store, root = on_swift.store(), on_swift.root
    store.publish(f"{root}/a", b"")
    store.publish(f"{root}/a/1", b"")
    assert _uris(store, f"{root}/a") == [f"{root}/a"]
    assert _uris(store, f"{root}/a/") == [f"{root}/a/1"]
    assert _uris(store, root) == [f"{root}/a", f"{root}/a/1"]


def test_placeholders_are_no_files(on_swift: Place) -> None:
    store = on_swift.store()
    client = fsspec.filesystem("s3", skip_instance_cache=True, **on_swift.options)
    bucket, key, _ = client.split_path(f"{on_swift.root}/folder/")
    client.call_s3("put_object", Bucket=bucket, Key=key)
    store.publish(f"{on_swift.root}/folder/file", b"")
    assert _uris(store, on_swift.root) == [f"{on_swift.root}/folder/file"]


def test_a_server_that_is_gone(rclone_folder: tuple[S3Server, Path]) -> None:
    server, folder = rclone_folder
    (folder / "bucket").mkdir()
    store = Store({**server.options, "config_kwargs": {"retries": {"total_max_attempts": 2}}})
    store.publish("s3://bucket/file", b"data")
    server.stop()
    started = time.monotonic()
    for ask in (store.read, store.exists, lambda uri: store.publish(uri, b"")):
        with pytest.raises(StoreError, match="s3://bucket/file"):
            ask("s3://bucket/file")
    assert time.monotonic() - started < 15


# -------------------------------------------------------------------------- misbehaving servers


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


Respond = Callable[[str, str, Message], Answer]


@contextmanager
def _answering(respond: Respond) -> Iterator[dict[str, Any]]:
    """Options for a server that answers (method, path with query, headers) by `respond`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # botocore waits for "100 Continue" before it sends a body

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = respond(self.command, self.path, self.headers)
            self.send_response(answer.status)
            headers = {"Content-Length": str(len(answer.body)), "Connection": "close"}
            for name, value in (headers | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)
            self.close_connection = True

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield {
                "endpoint_url": f"http://127.0.0.1:{server.server_address[1]}",
                "key": "AKIDEXAMPLE",
                "secret": "verysecret",
                "config_kwargs": {"retries": {"total_max_attempts": 1}},
            }
        finally:
            server.shutdown()
            thread.join()


def _refusal(status: int, code: str) -> Answer:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
    return Answer(status, body.encode(), {"Content-Type": "application/xml"})


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (503, "SlowDown", ThrottledError),
        (429, "TooManyRequests", ThrottledError),
        (500, "InternalError", StoreError),
        (400, "ExpiredToken", PermissionError),
        (400, "InvalidToken", PermissionError),
        (403, "AccessDenied", PermissionError),
        (403, "SomethingOfTheirOwn", PermissionError),
        (404, "NoSuchKey", FileNotFoundError),
        (412, "PreconditionFailed", SourceChangedError),
        (418, "Teapot", StoreError),
    ],
)
def test_refusals_are_classified(status: int, code: str, expected: type[OSError]) -> None:
    asked: list[str] = []

    def respond(method: str, path: str, headers: Message) -> Answer:
        asked.append(method)
        return _refusal(status, code)

    with _answering(respond) as options:
        store = Store(options)
        for ask in (store.read, lambda uri: store.publish(uri, b"data")):
            with pytest.raises(expected, match="s3://bucket/file") as caught:
                ask("s3://bucket/file")
            assert type(caught.value) is expected
            assert type(pickle.loads(pickle.dumps(caught.value))) is expected
    assert asked == ["GET", "PUT"], "s3fs must not retry on top of botocore"


@dataclass
class OneObject:
    """A bucket of one object, whose store honours conditions as S3 says; ETags are 1, 2, 3..."""

    version: int = 0
    conflicts: int = 0
    quotes: str = '"'
    asked: list[str] = field(default_factory=list)

    def respond(self, method: str, path: str, headers: Message) -> Answer:
        etag = {"ETag": f'"{self.version}"'}
        if method == "HEAD":
            return Answer(200, b"", etag) if self.version else _refusal(404, "NoSuchKey")
        condition = headers.get("If-Match") or headers.get("If-None-Match") or ""
        self.asked.append(f"{method} {condition}")
        ending = method == "PUT" or "uploadId" in path
        if ending and self.conflicts:
            self.conflicts -= 1
            return _refusal(409, "ConditionalRequestConflict")
        fits = {"": True, "*": not self.version}
        if not fits.get(condition, condition == f"{self.quotes}{self.version}{self.quotes}"):
            return _refusal(412, "PreconditionFailed")
        self.version += 1
        return Answer(200, b"", {"ETag": f'"{self.version}"'})


def test_conditions_are_those_of_s3() -> None:
    bucket = OneObject()
    with _answering(bucket.respond) as options:
        store = Store(options)
        for replaces in (None, "1", ANYTHING):
            store.publish("s3://bucket/file", b"", replaces=replaces)
        for replaces in (None, "1"):
            with pytest.raises(ConflictError):
                store.publish("s3://bucket/file", b"", replaces=replaces)
    assert bucket.asked == ["PUT *", 'PUT "1"', "PUT ", "PUT *", 'PUT "1"']
    assert bucket.version == 3


def test_a_write_under_way_is_waited_for() -> None:
    bucket = OneObject(conflicts=2)
    with _answering(bucket.respond) as options:
        Store(options).publish("s3://bucket/file", b"", replaces=None)
        assert bucket.asked == ["PUT *"] * 3
        bucket.conflicts = 3
        with pytest.raises(StoreError, match="s3://bucket/file"):
            Store(options).publish("s3://bucket/file", b"", replaces="1")
    assert bucket.version == 1


def test_a_store_that_misreads_a_condition_is_asked_for_the_version() -> None:
    """As Ceph 16, which knows ETags in If-Match without their quotes only."""
    bucket = OneObject(version=1, quotes="")
    with _answering(bucket.respond) as options:
        Store(options).publish("s3://bucket/file", b"", replaces="1")
    assert bucket.asked == ['PUT "1"', "PUT "]
    assert bucket.version == 2


def test_labels_that_may_not_be_seen_are_none() -> None:
    def respond(method: str, path: str, headers: Message) -> Answer:
        return _refusal(403, "AccessDenied")

    with _answering(respond) as options:
        assert Store(options).labels("s3://bucket/file") is None


def test_a_body_that_breaks_off_is_asked_for_again() -> None:
    asked: list[str] = []

    def respond(method: str, path: str, headers: Message) -> Answer:
        asked.append(method)
        body = b"whole" if len(asked) == 2 else b"wh"
        return Answer(200, body, {"ETag": '"x"', "Content-Length": "5"})

    with _answering(respond) as options:
        assert Store(options).read("s3://bucket/file") == b"whole"
    assert asked == ["GET", "GET"]


def test_a_body_that_always_breaks_off_is_an_error() -> None:
    cut = Answer(200, b"wh", {"ETag": '"x"', "Content-Length": "5"})
    with (
        _answering(lambda method, path, headers: cut) as options,
        pytest.raises(StoreError, match="file"),
    ):
        Store(options).read("s3://bucket/file")


def test_a_failed_multipart_upload_is_aborted() -> None:
    seen: list[str] = []

    def respond(method: str, path: str, headers: Message) -> Answer:
        query = parse_qs(urlsplit(path).query, keep_blank_values=True)
        seen.append(f"{method} {' '.join(sorted(query))}")
        if method == "POST" and "uploads" in query:
            body = b"<InitiateMultipartUploadResult><UploadId>u</UploadId>"
            return Answer(200, body + b"</InitiateMultipartUploadResult>")
        if query.get("partNumber") == ["2"]:
            return _refusal(500, "InternalError")
        return Answer(204 if method == "DELETE" else 200, b"", {"ETag": '"x"'})

    with _answering(respond) as options, pytest.raises(StoreError):
        Store(options, part_bytes=MIB).publish("s3://bucket/file", bytes(3 * MIB))
    assert "DELETE uploadId" in seen
    assert "POST uploadId" not in seen, "the upload must not be completed"
    assert "PUT " not in seen


# ----------------------------------------------------------------------------------- web servers


@contextmanager
def _web(respond: Respond) -> Iterator[str]:
    with _answering(respond) as options:
        yield options["endpoint_url"]


def test_web_servers_are_read_whole_and_in_ranges() -> None:
    def respond(method: str, path: str, headers: Message) -> Answer:
        if path == "/none":
            return Answer(404)
        if headers.get("Range") == "bytes=2-3" and path == "/ranges":
            return Answer(206, b"23")
        return Answer(200, b"0123456789")

    # What a side says of its S3 store says nothing of web servers.
    store = Store({"endpoint_url": "http://s3", "client_kwargs": {"region_name": "here"}})
    with _web(respond) as web:
        assert store.read(f"{web}/file") == b"0123456789"
        assert store.read(f"{web}/ranges", offset=2, length=2) == b"23"
        with pytest.raises(StoreError, match="no ranges"):
            store.read(f"{web}/file", offset=2, length=2)
        with pytest.raises(FileNotFoundError):
            store.read(f"{web}/none")
        with pytest.raises(OverLimitError, match="10 bytes, limit 9"):
            store.read(f"{web}/file", limit=9)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"])
def test_addresses_inside_the_network_are_refused(host: str) -> None:
    """Where the socket is made: so after names are resolved, and for redirects too."""
    asked: list[str] = []

    def respond(method: str, path: str, headers: Message) -> Answer:
        asked.append(method)
        return Answer(200, b"secret")

    with _web(respond) as web:
        port = web.rpartition(":")[2]
        store = pickle.loads(pickle.dumps(Store(public_only=True)))
        with pytest.raises(PermissionError, match=r"no public address \(private in"):
            store.read(f"http://{host}:{port}/file")
    assert asked == []


@pytest.mark.parametrize("host", ["169.254.169.254", "10.0.0.1", "[fe80::1]", "[fd00::1]"])
def test_addresses_of_others_inside_the_network_are_refused(host: str) -> None:
    with pytest.raises(PermissionError, match="no public address"):
        Store(public_only=True).read(f"http://{host}/latest/meta-data")


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("64:ff9b::5db8:d822", True),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::a9fe:a9fe", False),
        ("2002:a9fe:a9fe::1", False),
        ("2001:0:4136:e378:8000:63bf:f5ff:fffe", False),
        ("::7f00:1", False),
        ("fec0::1", False),
        ("ff0e::1", False),
        ("224.0.1.1", False),
    ],
)
def test_addresses_that_stand_for_others_are_judged_as_those(address: str, is_public: bool) -> None:
    assert web.is_public(ipaddress.ip_address(address)) is is_public


def test_families_that_are_not_wanted_are_not_connected() -> None:
    store = Store(only=frozenset({"s3"}))
    for ask in (store.read, store.exists, store.connect):
        with pytest.raises(PermissionError, match=r"http in storage\.source\.allow"):
            ask("https://host/file")


# ---------------------------------------------------------------------- configuration and URIs


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3:/bucket/x", "malformed"),
        ("s3://", "malformed"),
        ("s3:///x", "malformed"),
        ("s3:bucket/x", "malformed"),
        ("file://relative/x", "malformed"),
        ("S3://bucket/x", "no driver knows"),
        ("nope://bucket/x", "no driver knows"),
        ("s3://bucket/x?versionId=3", "version"),
        ("s3://not a bucket!/x", "Invalid bucket name"),
    ],
)
def test_malformed_uris(uri: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Store({"key": "k", "secret": "s"}).read(uri)
    assert uri in str(caught.value)


_READ_WITHOUT_DRIVER = """
import sys
sys.modules["gcsfs"] = None  # as if it were not installed
from pipeline.storage import Store
Store().read("gs://bucket/x")
"""


def test_a_missing_driver_names_its_cure() -> None:
    command = [sys.executable, "-c", _READ_WITHOUT_DRIVER]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stderr
    assert "ConfigError" in said
    assert "pip install 'remaster-ray[gcs]'" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "no-such-profile"}, "no-such-profile"),
        ({"endpont_url": "http://x"}, "endpont_url"),
        ({"endpoint_url": "no scheme"}, "Invalid endpoint"),
        ({"config_kwargs": {"retires": 3}}, "retires"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Store(options).read("s3://bucket/x")


def test_the_environment_is_enough(
    swift: S3Server, buckets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = _on(swift, "swift", buckets)
    for name, value in swift.environment.items():
        monkeypatch.setenv(name, value)
    Store().publish(f"{place.root}/file", b"data")
    assert place.store().read(f"{place.root}/file") == b"data"


def test_no_credentials_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(PermissionError, match="credentials"):
        Store({"endpoint_url": "http://127.0.0.1:1"}).read("s3://bucket/x")


def test_other_drivers_work_without_tuning() -> None:
    root = f"memory://{uuid.uuid4().hex}"
    store = Store()
    store.publish(f"{root}/a/file", b"0123", content_type="image/png")
    assert store.read(f"{root}/a/file", offset=1, length=2) == b"12"
    assert _uris(store, f"{root}/*/f*") == [f"{root}/a/file"]
    assert _uris(store, root) == [f"{root}/a/file"]
    assert not store.exists(f"{root}/a")
    assert store.stat(f"{root}/a/file").size == 4


def test_schemes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert scheme("s3a://bucket/key") == "s3a"
    assert all(is_local(uri) for uri in ("/a/b", "a/b", "12:30.png", "file:///a", "~/a"))
    assert not is_local("s3://bucket")
    assert absolute("a/../b/") == str(tmp_path / "b")
    assert absolute("~/x") == os.path.join(os.path.expanduser("~"), "x")
    assert absolute("file:///a/b/") == "/a/b"
    assert absolute("s3://bucket/a/") == "s3://bucket/a"
    assert absolute("s3://bucket/a/../b") == "s3://bucket/a/../b"


def test_below() -> None:
    assert below("s3://b/a/x.png", "s3://b/a/") == "x.png"
    assert below("s3a://b/a/x.png", "s3://b") == "a/x.png"
    assert below("s3://b/ab", "s3://b/a") is None
    assert below("s3://b/a", "s3://b/a/") == ""
    assert below("s3://b/a", "s3://b/a/x") is None
    assert below("/b/a", "s3://b") is None
    assert below("file:///b/a", "/b") == "a"
    assert below("/b/c/../a", "/b") == "a"
    assert below("/a", "/") == "a"


segments = st.text(string.ascii_letters + " .%é#?", min_size=1).filter(lambda s: s not in "..")


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.sampled_from(["/r", "s3://bucket", "s3://bucket/p/"]), st.lists(segments, max_size=4))
def test_join_and_below_are_inverse(base: str, names: list[str]) -> None:
    relative = "/".join(names)
    assert below(join(base, relative), base) == relative


@pytest.mark.parametrize("relative", ["../x", "a/../../x", "/etc/passwd", "a/.."])
def test_join_stays_inside(relative: str) -> None:
    with pytest.raises(ValueError, match="not a path below"):
        join("s3://bucket/folder", relative)


# --------------------------------------------------------------------------------------- redact

quick = settings(deadline=None, derandomize=True, max_examples=100)
capitals = st.text(string.ascii_uppercase, min_size=6, max_size=40)  # occur nowhere else below
names = st.text(string.ascii_lowercase + string.digits + "-", min_size=1, max_size=20)


@quick
@given(st.sampled_from(["s3", "https", "sftp"]), names, capitals, capitals, names)
def test_redact_userinfo(name: str, user: str, secret: str, tail: str, host: str) -> None:
    for password in (secret, f"{secret}/{tail}+{tail}=", f"{secret}@{tail}"):
        shown = redact(f"no answer from {name}://{user}:{password}@{host}/a/b.png: 503")
        assert secret not in shown
        assert tail not in shown
        assert shown == f"no answer from {name}://***@{host}/a/b.png: 503"


@quick
@given(
    st.sampled_from(
        [
            *("X-Amz-Signature", "x-amz-credential", "X-Amz-Security-Token", "X-Goog-Signature"),
            *("sig", "SIG", "token", "access_token", "AWSAccessKeyId", "Signature", "password"),
        ]
    ),
    st.text(string.ascii_uppercase + "%/+=.~_-", min_size=6, max_size=60),
    st.sampled_from(["?", "?v=1&"]),
    st.sampled_from(["", "&se=2", " refused", '"']),
)
def test_redact_queries(name: str, secret: str, before: str, after: str) -> None:
    shown = redact(f"GET https://h/a.png{before}{name}={secret}{after}")
    assert shown == f"GET https://h/a.png{before}{name}=***{after}"


@quick
@given(st.text(max_size=60) | st.from_regex(r"s3://[a-z:@/?&=]{1,30}"))
def test_redact_is_idempotent(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "harmless",
    [
        "s3://bucket/a@b.png",
        "http://127.0.0.1:9000/bucket/me@home.png",
        "abfs://container@account.dfs.core.windows.net/x",
        "wanted 5 bytes from offset 2 on, got 1",
        "design=3 and next_tokens",
    ],
)
def test_redact_leaves_the_rest(harmless: str) -> None:
    assert redact(harmless) == harmless
