"""The training: a driver that starts workers by Ray Train, and the loop that each of them runs."""

import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any, cast

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig

from pipeline import uris
from pipeline.cluster import Cluster, actor_here, connect
from pipeline.errors import ConfigError, FatalError, PipelineError
from pipeline.report.summary import DONE, STOPPED
from pipeline.storage import Store
from pipeline.training import assembly, pictures, validation
from pipeline.training.config import TrainConfig, seconds
from pipeline.training.crops import Reader
from pipeline.training.pictures import Pictures
from pipeline.training.record import Record
from pipeline.training.state import Checkpoints
from pipeline.training.trainer import Place, Trainer

_LISTENED_S = 0.5  # between looks for what the workers say
_SILENT_S = 300  # without a step, of workers that were told to stop


def run(config: TrainConfig) -> int:
    """Trains until the last step, the deadline or a signal. Returns the exit code.

    Raises ConfigError while nothing is started, FatalError when the training cannot go on.
    """
    until = time.time() + seconds(config.deadline) if config.deadline else math.inf
    try:
        found, looked_at = validation.divide(pictures.find(config), config)
        checkpoints = Checkpoints.of(config)
        changed = checkpoints.changes(config)
        assembly.build(config, Place(torch.device("cpu")))  # what cannot be had is known here
        checkpoints.note(config)
    except OSError as error:  # a store that does not answer, or not to us
        raise ConfigError(str(error)) from error
    step = _step(checkpoints)
    for text in changed:
        print(f"changed since step {step}: {text}")
    if step >= config.iterations:
        print("already finished; more --iterations go on")
    else:
        cluster = connect()
        try:
            _carry_out(config, (found, looked_at), cluster, until)
        finally:
            ray.shutdown()
            checkpoints.store.sweep()  # what a killed worker was publishing
    step, model = _step(checkpoints), uris.join(config.output, "model.safetensors")
    finished = step >= config.iterations
    rest = "" if finished else ", stopped; the same command goes on"
    print(f"step {step} of {config.iterations}{rest}; generator {model}")
    return DONE if finished else STOPPED


def _carry_out(
    config: TrainConfig, found: tuple[Pictures, Pictures], cluster: Cluster, until: float
) -> None:
    device = cluster.device if config.device == "auto" else config.device
    counts = f"{len(found[0])} pictures to learn from, {len(found[1])} to validate with"
    print(f"{counts}; workers on {device}: {config.workers.count}", flush=True)
    if not found[1]:
        print("nothing will be validated: too few pictures to keep any back (validation.images)")
    told = {
        "config": located(config).model_dump(mode="json"),
        "pictures": found,
        "device": device,
        "line": (line := Line.start()),
    }
    with tempfile.TemporaryDirectory(prefix="remaster-train-") as folder:
        trainer = ray.train.torch.TorchTrainer(
            work,
            train_loop_config=told,
            scaling_config=scaling(config, device, cluster),
            # Checkpoints are ours (`state`): this folder only has what Ray notes of itself.
            run_config=RunConfig(
                storage_path=folder,
                name="run",
                failure_config=FailureConfig(max_failures=config.workers.max_restarts),
            ),
        )
        # In a thread: in the main one Ray would take the signals for itself.
        with _stoppable() as stop:
            _follow(_in_a_thread(trainer.fit), line, stop, until)


def _in_a_thread(call: Callable[[], Any]) -> Future[Any]:
    """What it returns or raises. The thread does not keep a driver that is told to end."""
    future = Future[Any]()

    def carry_out() -> None:
        try:
            future.set_result(call())
        except (RayError, ray.train.TrainingFailedError) as error:
            future.set_exception(error)
        finally:
            if not future.done():  # threading itself tells of what nobody foresaw
                future.cancel()

    threading.Thread(target=carry_out, name="fit", daemon=True).start()
    return future


def located(config: TrainConfig) -> TrainConfig:
    """With absolute paths: Ray Train gives each worker a working directory of its own."""
    update: dict[str, Any] = {"output": uris.absolute(config.output)}
    if config.start is not None and os.path.exists(os.path.expanduser(config.start)):
        update["start"] = uris.absolute(config.start)  # else a name or a URI
    if config.start_discriminator is not None:
        update["start_discriminator"] = uris.absolute(config.start_discriminator)
    if config.losses.vgg19 is not None:
        file = uris.absolute(config.losses.vgg19)
        update["losses"] = config.losses.model_copy(update={"vgg19": file})
    return config.model_copy(update=update)


def _follow(fit: Future[Any], line: "Line", stop: Event, until: float) -> None:
    """Prints what the workers say, and tells them to stop, as soon as `stop` or `until` says so.

    until: of `time.time`. Raises FatalError when the training cannot go on.
    """
    told = False
    while not fit.done():
        if stop.wait(_LISTENED_S) or time.time() > until:
            if not told:
                print("stopping: the workers save what they have", flush=True)
            told = line.stop()
            stop.clear()
        heard = _print(line)
        if told and heard.silent_s > _SILENT_S:
            print("no worker is at work: the last checkpoint stands", flush=True)
            return
    if why := _print(line).failure:
        raise FatalError(why)
    try:
        fit.result()
    except (RayError, ray.train.TrainingFailedError) as error:
        raise FatalError(str(error)) from error


def _print(line: "Line") -> "Heard":
    heard = line.heard()
    for text in heard.texts:
        print(text, flush=True)
    return heard


def scaling(config: TrainConfig, device: str, cluster: Cluster) -> ScalingConfig:
    """What Ray is asked for. Raises ConfigError where it would wait for that for ever."""
    workers = config.workers
    gpus = workers.gpus if workers.gpus is not None else float(device == "cuda")
    cpus = 1.0 if workers.cpus is None else workers.cpus
    room = sum(_room(node, (cpus, gpus)) for node in cluster.nodes)
    if room < workers.count:
        wanted = f"{workers.count} workers of {cpus:g} CPUs and {gpus:g} GPUs are asked for"
        there = f"{cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs are there, room for {room:g}"
        if cluster.local:
            raise ConfigError(f"{wanted}, {there} (workers.count, workers.cpus, device)")
        print(f"{wanted}, {there}: waiting for the cluster to grow", flush=True)
    return ScalingConfig(
        num_workers=workers.count,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus},
    )


def _room(there: tuple[float, float], wanted: tuple[float, float]) -> float:
    """Workers that a node can hold. there, wanted: CPUs and GPUs."""
    return min(
        has // asks if asks else float("inf") for has, asks in zip(there, wanted, strict=True)
    )


@contextmanager
def _stoppable() -> Generator[Event]:
    """SIGTERM and SIGINT ask for an end; a second one is obeyed as usual."""
    asked, before = Event(), dict[int, Any]()

    def ask(number: int, _: object) -> None:
        asked.set()
        signal.signal(number, before[number])

    before.update({n: signal.signal(n, ask) for n in (signal.SIGTERM, signal.SIGINT)})
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _step(checkpoints: Checkpoints) -> int:
    latest = checkpoints.latest()
    return latest["step"] if latest else 0


@dataclass(frozen=True, slots=True)
class Heard:
    """What the driver has not heard yet."""

    texts: list[str]
    failure: str | None
    """Why the training cannot go on, in one sentence."""
    silent_s: float
    """Since the first worker last asked whether to stop, which it does at each step."""


class _Noticeboard:
    """The actor behind a line."""

    def __init__(self) -> None:
        self._texts, self._failure = list[str](), cast(str | None, None)
        self._stop, self._asked = False, time.monotonic()

    def say(self, text: str) -> None:
        self._texts.append(text)

    def fail(self, why: str) -> None:
        self._failure = why

    def failed(self) -> bool:
        return self._failure is not None

    def heard(self) -> Heard:
        texts, self._texts = self._texts, []
        return Heard(texts, self._failure, time.monotonic() - self._asked)

    def stop(self) -> bool:
        self._stop = True
        return True

    def stopped(self) -> bool:
        self._asked = time.monotonic()
        return self._stop


class Line:
    """Between the driver and the first worker: words one way, the wish to stop the other."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._answer: Any = None

    @classmethod
    def start(cls) -> "Line":
        """Lives on the driver's node and ends with it."""
        return cls(actor_here(_Noticeboard))

    def __reduce__(self) -> tuple[type["Line"], tuple[Any]]:
        return Line, (self._actor,)

    def say(self, text: str) -> None:
        self._actor.say.remote(text)

    def fail(self, why: str) -> None:
        """Waits until it is known: the worker ends with it."""
        ray.get(self._actor.fail.remote(why))

    def failed(self) -> bool:
        return cast(bool, ray.get(self._actor.failed.remote()))

    def heard(self) -> Heard:
        return cast(Heard, ray.get(self._actor.heard.remote()))

    def stop(self) -> bool:
        return cast(bool, ray.get(self._actor.stop.remote()))

    def stopped(self) -> bool:
        """Whether the driver wants an end; as it was a moment ago, for a step does not wait."""
        if self._answer is None:
            self._answer = self._actor.stopped.remote()
        ready, _ = ray.wait([self._answer], timeout=0)
        if not ready:
            return False
        answer, self._answer = ray.get(self._answer), None
        return cast(bool, answer)


# ------------------------------------------------------------------------------- in every worker


def work(told: Mapping[str, Any]) -> None:
    """A worker's training, from the last checkpoint on."""
    line: Line = told["line"]
    if line.failed():  # another worker's, which took the whole group down
        return
    try:
        _work(TrainConfig.model_validate(told["config"]), told, line)
    except PipelineError as error:
        line.fail(str(error))  # raised, Ray would try again, as if a machine had failed


def _work(config: TrainConfig, told: Mapping[str, Any], line: Line) -> None:
    place = _place(config, told["device"])
    trainer, checkpoints = assembly.build(config, place), Checkpoints.of(config)
    passed = _restore(trainer, checkpoints)
    if place.rank == 0:
        for text in passed:
            line.say(text)
        if trainer.step:
            line.say(f"goes on after step {trainer.step}")
    learnt_from, looked_at = told["pictures"]
    shape, record = trainer.generator.shape, None
    source = Store(config.storage.source.fsspec_options())
    reader = Reader(learnt_from, config, source, scale=shape.scale)
    if place.rank == 0:
        cases = validation.cases(looked_at, config, shape)
        if len(cases) < len(looked_at):
            line.say(f"{len(cases)} of {len(looked_at)} pictures to validate with can be used")
        record = Record(trainer, checkpoints, cases, learnt_from.digest())
        for text in record.begin():
            line.say(text)
    steps = range(trainer.step, config.iterations)
    with closing(reader.ahead(steps, list(trainer.pools))) as crops:
        stop = False
        while trainer.step < config.iterations and not stop:
            losses, stop = trainer.advance(crops, stop=record is not None and line.stopped())
            last = stop or trainer.step == config.iterations
            if record is not None:
                for text in record.see(losses, reader.skipped, last=last):
                    line.say(text)
            if last or trainer.step % config.save_every == 0:
                save(trainer, checkpoints, record)
    if record is not None:
        record.close()


def _restore(trainer: Trainer, checkpoints: Checkpoints) -> list[str]:
    """See `Checkpoints.restore`. Raises FatalError unless all workers go on from the same step."""
    passed = checkpoints.restore(trainer)
    if trainer.place.world > 1:
        steps: list[Any] = [None] * trainer.place.world
        torch.distributed.all_gather_object(steps, trainer.step)
        if len(set(steps)) > 1:
            raise FatalError(
                f"the workers can read different checkpoints, of steps {sorted(set(steps))}: "
                "is the output on a storage that all of them share? (output)"
            )
    return passed


def save(trainer: Trainer, checkpoints: Checkpoints, record: Record | None) -> None:
    """A checkpoint of all workers: it counts when every one of them has published its part."""
    files = checkpoints.save_part(trainer)
    if trainer.place.world > 1:
        parts: list[Any] = [None] * trainer.place.world
        torch.distributed.all_gather_object(parts, files)
        files = {name: sha256 for part in parts for name, sha256 in part.items()}
    if record is not None:  # before it counts: the last export must not be missed
        record.publish()
        checkpoints.complete(trainer.step, files)


def _place(config: TrainConfig, device: str) -> Place:
    context: Any = ray.train.get_context()
    world = context.get_world_size()
    if device == "cpu":
        # Ray gives a worker one thread for the CPU that it asks for.
        cores = len(os.sched_getaffinity(0)) // context.get_local_world_size()
        torch.set_num_threads(config.workers.threads or max(1, cores))
    where = ray.train.torch.get_device() if device == "cuda" else torch.device("cpu")
    return Place(where, context.get_world_rank(), world)
