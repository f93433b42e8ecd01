"""The Ray cluster that a run finds or starts, and how many workers fit it."""

import logging
import math
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any, cast

import ray
from ray._common.utils import get_ray_address_file
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import Workers
from pipeline.errors import ConfigError

# A run's rows are tiny; the default would reserve a third of the memory.
_LOCAL_STORE_BYTES = 256 * 2**20
# Where this package lies; workers need not have it installed.
_ROOT = Path(__file__).resolve().parent.parent
# Set by Ray in the environment of a submitted job's driver.
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is."""

    local: bool
    """Started by this run, on this machine alone."""
    nodes: tuple[tuple[float, float], ...]
    """CPUs and GPUs of each node that offers any."""

    @property
    def cpus(self) -> float:
        """Of all nodes."""
        return sum(cpus for cpus, _ in self.nodes)

    @property
    def gpus(self) -> float:
        """Of all nodes."""
        return sum(gpus for _, gpus in self.nodes)

    @property
    def device(self) -> str:
        """What `device: auto` means here: a laptop without a GPU computes on its CPU."""
        return "cpu" if self.local and not self.gpus else "cuda"


@dataclass(frozen=True, slots=True)
class Fleet:
    """The workers of a run."""

    count: int
    per_node: int
    cpus: float
    gpus: float
    cores: float
    """Of the cluster, for each worker: what its codecs may use, whatever it asks Ray for."""


def connect() -> Cluster:
    """Joins the cluster that Ray's own settings name, else starts a local one.

    Raises ConfigError when the named one does not answer.
    """
    # Ray reports a harmless detail of every actor pool at its highest level (ray#53727).
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # What workers print stays in Ray's logs; what they raise comes to the driver.
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = _named_address()
    if not ray.is_initialized() and address is None:
        inherited = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), inherited]))
        # `ray.shutdown` waits a second for the older autoscaler, which misses its ended server.
        os.environ.setdefault("RAY_enable_autoscaler_v2", "1")
        # Ray's workers are nice to a cluster's other users; on a CPU of a few cores its own
        # services, which are not, cost the network a tenth of its speed that way.
        os.environ.setdefault("RAY_worker_niceness", "0")
        with _hushed(), _meanwhile_importing("ray.data"):
            ray.init(
                "local", include_dashboard=False, object_store_memory=_LOCAL_STORE_BYTES, **quiet
            )
        return _survey(local=True)
    if not ray.is_initialized():
        try:
            with _hushed(), _meanwhile_importing("ray.data"):
                ray.init(address, runtime_env=_our_code(), **quiet)
        except ConnectionError as error:
            raise ConfigError(f"no Ray cluster answers at {address} (RAY_ADDRESS)") from error
    return _survey(local=False)


def is_one_machine() -> bool:
    """Whether every worker sees this machine's files. Joins the cluster that is named, if any."""
    if not ray.is_initialized() and _named_address() is None:
        return True
    cluster = connect()
    alive = [node for node in cast(list[dict[str, Any]], ray.nodes()) if node["Alive"]]
    # A head that computes nothing is waiting for nodes that do.
    return len(alive) == len(cluster.nodes) == 1


def actor_here(kind: type) -> Any:
    """The handle of an actor without CPUs on the driver's node, which dies with it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(kind)
    return remote.options(num_cpus=0, scheduling_strategy=here).remote()


@contextmanager
def _hushed() -> Generator[None]:
    """Ray's core announces its log level on stderr at every start, whatever the level."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


@contextmanager
def _meanwhile_importing(module: str) -> Generator[None]:
    """Uses the wait for other processes. Who imports the module again hears of its errors."""
    thread = Thread(target=import_module, args=(module,), name="import")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _named_address() -> str | None:
    """RAY_ADDRESS, else the head that `ray start` noted on this machine.

    Ray's own `auto` also joins whatever other Ray process it finds here, private ones included.
    """
    noted = Path(get_ray_address_file(None))
    return os.environ.get("RAY_ADDRESS") or (noted.read_text().strip() if noted.exists() else None)


def fleet(cluster: Cluster, wanted: Workers, *, device: str, items: int) -> Fleet:
    """As many workers as asked for, or one per GPU, on CPUs one per node; no more than items.

    Raises ConfigError when the cluster cannot hold them beside the tasks that read the plan.
    """
    gpus = wanted.gpus if wanted.gpus is not None else float(device == "cuda")
    found = sum(int(there // gpus) for _, there in cluster.nodes) if gpus else len(cluster.nodes)
    count = wanted.count or found
    if not count:
        raise ConfigError(
            f"the cluster has {cluster.gpus:g} GPUs now and a worker asks for {gpus:g}: "
            "device cpu, or workers.count for a cluster that grows by itself"
        )
    cpus = wanted.cpus
    if cpus is None:
        cpus = float(device == "cuda" and cluster.cpus > count)
    if count <= found and cluster.cpus - count * cpus < 1:
        raise ConfigError(
            f"{count} workers of {cpus:g} CPUs leave {cluster.cpus - count * cpus:g} of the "
            f"cluster's {cluster.cpus:g} CPUs, 1 is needed to read the plan (workers.cpus)"
        )
    needed = min(count, items)
    per_node = math.ceil(needed / max(1, len(cluster.nodes)))
    return Fleet(needed, per_node, cpus, gpus, cluster.cpus / needed)


def _our_code() -> dict[str, Any] | None:
    """Brings this package to a cluster that we were not submitted to as a job."""
    if os.environ.get(_SUBMITTED):
        return None
    return {"py_modules": [str(_ROOT / "pipeline")]}


def _survey(*, local: bool) -> Cluster:
    alive = [node for node in cast(list[dict[str, Any]], ray.nodes()) if node["Alive"]]
    offers = [cast(dict[str, float], node["Resources"]) for node in alive]
    nodes = tuple((offer.get("CPU", 0.0), offer.get("GPU", 0.0)) for offer in offers)
    return Cluster(local=local, nodes=tuple(node for node in nodes if any(node)))
