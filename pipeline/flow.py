"""One run, from the manifest to the exit code; the only place that knows Ray Data."""

import io
import logging
import signal
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import ray
from ray.exceptions import RayError

from pipeline import admission, manifest, plan, uris
from pipeline.attempts import AttemptLedger
from pipeline.cluster import Fleet, actor_here, connect, fleet, is_one_machine
from pipeline.config import UpscaleConfig
from pipeline.errors import ConfigError, FatalError
from pipeline.ledger import Recorder
from pipeline.manifest import Manifest
from pipeline.models import zoo
from pipeline.records import ITEM_SCHEMA, OUTCOME_SCHEMA
from pipeline.report import summary
from pipeline.report.progress import Progress
from pipeline.report.summary import Summary, Tally
from pipeline.session import Session, source_store
from pipeline.storage import Store
from pipeline.worker import Job, Worker

pc: Any = pyarrow.compute  # its functions are made at run time, no checker knows them

# Rows that got lost between a worker and the driver are asked for once more.
_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Work:
    """What the plan found: counts, and the items that are left to do."""

    sources: int
    ignored: int
    items: int
    sampled: int
    left: plan.Remaining
    todo: pa.Table
    """Of what is left, the items for workers."""
    refused: pa.Table
    """Of what is left, the rows of items that the plan refuses: OUTCOME_SCHEMA."""
    versioned: bool

    def line(self) -> str:
        """For example `plan: 200 sources: 196 to do, 4 done before`."""
        left = self.left
        counts = {
            "to do": self.todo.num_rows,
            self._refusals(): self.refused.num_rows,
            "done before": left.done,
            "failed before and not tried again (retry_failed)": left.failed,
            "beyond the limit": left.left_out,
            "outside the sample": self.items - self.sampled,
            "listed twice": self.sources - self.items,
        }
        said = [f"{count} {what}" for what, count in counts.items() if count]
        if self.ignored:
            said.append(f"{self.ignored} other files ignored")
        if not self.versioned:
            said.append("no versions or sizes, so a changed source goes unseen (probe)")
        return f"plan: {self.sources} sources: {', '.join(said)}"

    def _refusals(self) -> str:
        codes = Counter(cast(list[str], self.refused["error_code"].to_pylist()))
        return f"refused ({', '.join(f'{n} x {code}' for code, n in codes.most_common())})"


@dataclass(slots=True)
class Result:
    """What came of a run's executions."""

    tally: Tally = field(default_factory=Tally)
    workers: int = 0
    stopped: bool = False
    error: str | None = None


def run(config: UpscaleConfig) -> int:
    """Upscales what the manifest names and is not done yet. Returns the exit code.

    Raises ConfigError while nothing is started, FatalError when the run cannot go on.
    """
    started = time.monotonic()
    try:
        source = config.storage.source
        store = Store(source.fsspec_options())
        found = manifest.read(config, store, sources=source_store(source))
        session = Session.settle(config, lambda: connect().device)
        work = _plan(session, found)
        print(work.line(), session.line(), sep="\n", flush=True)
        if config.dry_run:
            return summary.DONE
        crew = _muster(session, work.todo.num_rows) if work.todo.num_rows else None
        session.open_report()
    except OSError as error:  # a store that does not answer, or not to us
        raise ConfigError(str(error)) from error
    result = _carry_out(session, work, crew) if work.left.todo.num_rows else Result()
    made = _summarise(session, work, result, crew, time.monotonic() - started)
    session.close_report(made.to_json(), seconds_per_item=result.tally.seconds_per_item)
    print("\n".join([*made.lines(), f"results {session.output}", f"report {session.ledger.uri}"]))
    if result.error:
        raise FatalError(result.error)
    return made.exit_code


def _plan(session: Session, found: Manifest) -> Work:
    config = session.config
    view = session.ledger.latest()
    items = plan.identify(found.sources, output=session.output, format=config.format)
    earlier = view.select(["key", "output_uri"])
    refused = admission.refusals(items, _rules(session, items))
    plan.refuse(
        items, earlier, output=session.output, report=session.ledger.uri, refused=refused.keys()
    )
    chosen = plan.choose(items, config.sample)
    left = plan.remaining(
        chosen,
        view,
        recipe=session.digest,
        on_change=config.on_change,
        retry_failed=config.retry_failed,
        limit=config.limit,
        refused=refused,
        difference=session.difference,
        raised=session.raised,
    )
    seen = [found.sources[name].null_count for name in ("version", "size")]
    versioned = min(seen) < found.sources.num_rows
    counts = (found.sources.num_rows, found.ignored, items.num_rows, chosen.num_rows)
    rows = admission.rows(left.todo, refused, session.row())
    return Work(*counts, left, _without(left.todo, set(refused)), rows, versioned)


def _rules(session: Session, items: pa.Table) -> admission.Rules:
    config, families = session.config, session.config.storage.source.families
    places = cast(list[str], items["uri"].to_pylist())
    files = any(uris.is_local(uri) for uri in places if uris.is_uri(uri))
    if "file" in config.storage.source.allow or (files and is_one_machine()):
        families |= {"file"}
    return admission.Rules(
        output=session.output,
        families=families,
        factor=config.scale or session.model.scale,
        long_side=config.long_side,
        limits=config.limits,
    )


def _muster(session: Session, items: int) -> Fleet:
    """The workers to be. Raises ConfigError for weights or devices that cannot be had."""
    cache = zoo.default_cache_dir()
    zoo.materialise(session.model, store=session.model_store, cache_dir=cache)
    return fleet(connect(), session.config.workers, device=session.device, items=items)


def _carry_out(session: Session, work: Work, crew: Fleet | None) -> Result:
    """Everything that makes rows. Commits outcomes as they arrive; the refused ones are there."""
    result = Result(workers=crew.count if crew else 0)
    if crew:
        print(f"starting {result.workers} workers", file=sys.stderr, flush=True)
    progress = Progress(work.left.todo.num_rows, result.tally)
    every_s = session.config.report.commit_s
    recorder = Recorder(session.ledger, session.run_id, every_s=every_s, tick=progress.tick)
    try:
        with recorder, _stoppable() as stop:
            made = _rounds(session, work.todo, crew) if crew else ()
            refused = [work.refused] if work.refused.num_rows else []
            for outcomes in chain(refused, made):
                with stop.held_off():
                    result.tally.add(outcomes)
                    recorder.add(outcomes)
    except KeyboardInterrupt:
        result.stopped = True
    except FatalError as error:
        result.error = str(error)
    finally:
        progress.close()
        ray.shutdown()  # the workers end with it, and then their staging folder can be swept
    return result


def _rounds(session: Session, todo: pa.Table, crew: Fleet) -> Iterator[pa.Table]:
    """Outcomes of all items, each once. Raises FatalError when some never come."""
    for number in range(_ROUNDS):
        pace = session.head.get("seconds_per_item")
        rows, seen = plan.block_rows(todo, crew.count, seconds_per_item=pace), set[str]()
        for name, shard in plan.shards(todo, rows):
            extras = _extras(shard)
            uri = _write_shard(session, f"{number}-{name}", shard.select(ITEM_SCHEMA.names))
            for outcomes in _execute(session, uri, rows, crew):
                fresh = _without(outcomes, seen)
                seen.update(cast(list[str], fresh["item_id"].to_pylist()))
                yield _with_extras(fresh, extras)
        todo = _without(todo, seen)
        if not todo.num_rows:
            return
    raise FatalError(f"{todo.num_rows} items were handed out {_ROUNDS} times and never came back")


def _execute(session: Session, shard_uri: str, rows: int, crew: Fleet) -> Iterator[pa.Table]:
    """One execution of Ray Data over one shard: outcomes as they are ready, in any order.

    Raises FatalError when Ray gives up.
    """
    import ray.data  # it takes a second to import: `cluster.connect` did that while Ray started
    from ray.data.exceptions import ExecutionTimeoutError, SystemException

    _set_context(session.config)
    filesystem, path = session.report_store.arrow(shard_uri)
    two_blocks = ray.data.ActorPoolStrategy(
        size=crew.count, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
    )
    try:
        arguments = {"job": _job(session, crew), "attempts": _Attempts.start()}
        yield from (
            ray.data.read_parquet(path, filesystem=filesystem, override_num_blocks=1)
            .repartition(target_num_rows_per_block=rows)
            .map_batches(
                Worker,
                fn_constructor_kwargs=arguments,
                batch_size=rows,
                batch_format="pyarrow",
                compute=two_blocks,
                num_cpus=crew.cpus,
                num_gpus=crew.gpus,
                udf_modifying_row_count=False,
            )
            .iter_batches(batch_size=None, batch_format="pyarrow")
        )
    except (RayError, SystemException, ExecutionTimeoutError) as error:
        raise FatalError(str(error)) from error


def _set_context(config: UpscaleConfig) -> None:
    """Ray Data's settings, which every dataset copies; its bars and chatter off."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.max_errored_blocks = 0  # any other value drops rows without a word
    context.use_datasource_v2 = False  # its 32 actors for footers outweigh a shard of one file
    context.execution_no_progress_timeout_s = config.workers.stall_timeout_s
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if not hasattr(handler, "baseFilename") and isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)


def _job(session: Session, crew: Fleet) -> Job:
    config = session.config
    return Job(
        run_id=session.run_id,
        recipe=session.digest,
        model=session.model,
        precision=session.precision,
        device=session.device,
        scale=config.scale,
        long_side=config.long_side,
        encode=config.encode,
        policy=config.policy,
        limits=config.limits,
        source=session.source_store,
        output=session.output_store,
        models=session.model_store,
        in_flight=config.workers.in_flight,
        fetches=config.workers.fetches,
        in_flight_bytes=config.workers.in_flight_bytes,
        max_crashes=config.workers.max_crashes,
        threads=config.workers.threads,
        workers_on_node=crew.per_node,
    )


class _Attempts:
    """The attempt ledger as workers see it: an actor on the driver's node, which dies with it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    @classmethod
    def start(cls) -> "_Attempts":
        return cls(actor_here(AttemptLedger))

    def begin(self, item_id: str) -> None:
        ray.get(self._actor.begin.remote(item_id))

    def end(self, item_id: str) -> None:
        self._actor.end.remote(item_id)  # calls keep their order: the next `begin` waits for it

    def crashes(self, item_ids: Sequence[str]) -> dict[str, int]:
        return cast(dict[str, int], ray.get(self._actor.crashes.remote(list(item_ids))))


class _Stop:
    """A handler of signals that interrupts the wait for outcomes, never their bookkeeping."""

    def __init__(self) -> None:
        self._asked = False
        self._held_off = False

    def __call__(self, *_: object) -> None:
        self._asked = True
        if not self._held_off:
            raise KeyboardInterrupt  # the one exception that Ray's own waiting passes on

    @contextmanager
    def held_off(self) -> Generator[None]:
        self._held_off = True
        yield
        self._held_off = False
        if self._asked:
            raise KeyboardInterrupt


@contextmanager
def _stoppable() -> Generator[_Stop]:
    """SIGTERM and SIGINT end the loop inside; what has arrived is committed all the same."""
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_shard(session: Session, name: str, shard: pa.Table) -> str:
    file = io.BytesIO()
    pyarrow.parquet.write_table(shard, file, compression="zstd")
    relative = session.of_run(f"shards/{name}.parquet")
    session.ledger.write(relative, file.getvalue(), "application/vnd.apache.parquet")
    return uris.join(session.ledger.uri, relative)


def _extras(shard: pa.Table) -> dict[str, str]:
    """The manifest's other columns by item: they stay with the driver."""
    carried = shard.filter(pc.is_valid(shard["extra"]))
    pairs = zip(carried["item_id"].to_pylist(), carried["extra"].to_pylist(), strict=True)
    return cast(dict[str, str], dict(pairs))


def _with_extras(outcomes: pa.Table, extras: Mapping[str, str]) -> pa.Table:
    values = [extras.get(item_id) for item_id in cast(list[str], outcomes["item_id"].to_pylist())]
    index = outcomes.schema.get_field_index("extra")
    joined = outcomes.set_column(
        index, OUTCOME_SCHEMA.field("extra"), pa.array(values, pa.string())
    )
    return joined.cast(OUTCOME_SCHEMA)


def _without(table: pa.Table, item_ids: set[str]) -> pa.Table:
    if not item_ids:
        return table
    kept = [item_id not in item_ids for item_id in table["item_id"].to_pylist()]
    return table.filter(pa.array(kept, pa.bool_()))


def _at_once(session: Session, crew: Fleet | None) -> dict[str, float]:
    """How many pictures may be in each stage beside the device, in all workers."""
    if crew is None:
        return {}
    workers, codecs = session.config.workers, max(1.0, crew.cores)
    slots = {"fetch": workers.fetches, "decode": codecs, "encode": codecs}
    return {name: count * crew.count for name, count in slots.items()} | {
        "publish": float(workers.in_flight * crew.count)
    }


def _summarise(
    session: Session, work: Work, result: Result, crew: Fleet | None, wall_s: float
) -> Summary:
    tally, left = result.tally, work.left
    busy_s, shift_s = tally.device_seconds()
    code = summary.exit_code(tally, ok_failed=session.config.ok_failed, stopped=result.stopped)
    return Summary(
        run_id=session.run_id,
        recipe=session.digest,
        model=session.model.name,
        precision=session.precision,
        device=session.device,
        manifest=work.sources,
        ignored=work.ignored,
        duplicates=work.sources - work.items,
        not_sampled=work.items - work.sampled,
        done_before=left.done,
        failed_before=left.failed,
        done=tally.done,
        failed=tally.failed,
        skipped=tally.skipped,
        not_started=left.left_out + left.todo.num_rows - tally.seen,
        failures=dict(tally.codes.most_common()),
        workers=result.workers,
        wall_s=wall_s,
        stage_s=tally.stage_s,
        at_once=_at_once(session, crew),
        work_s=tally.work_s,
        device_busy_s=busy_s,
        device_busy_share=busy_s / shift_s if shift_s else 0.0,
        device_busy={
            worker: {"busy_s": shift.busy_s, "seconds": shift.seconds, "share": shift.share}
            for worker, shift in tally.shifts.items()
        },
        input_megapixels=tally.input_pixels / 1e6,
        output_megapixels=tally.output_pixels / 1e6,
        output_bytes=tally.output_bytes,
        exit_code=summary.CRASHED if result.error else code,
    )
