"""One worker per device: fetch, decode, upscale, encode and publish, overlapped by threads.

An item has one thread from its first byte to its last, and up to `in_flight` of them are under way
at once; what they share they take turns at: fetches, memory (a budget of bytes), the codecs (one
per core) and the device, which takes small pictures many at a time. So the network never waits for
a codec or the store, and neither for it. Blocks overlap too: Ray calls the worker for the next
block while the last items of this one finish, and what is packed comes from all of them. Files are
read in a sandbox's processes: what one does to its decoder costs no more than its own row.
"""

import os
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from pipeline import __version__
from pipeline.config import Encode, Limits, Policy
from pipeline.delivery import Delivery
from pipeline.errors import (
    ConfigError,
    FetchError,
    ItemError,
    TooLargeError,
    WorkerCrashError,
)
from pipeline.images.consistency import Consistency, measure
from pipeline.images.encode import encode
from pipeline.images.image import Facts, Image, Metadata
from pipeline.images.limits import check_kind, check_pages, check_size, held_bytes
from pipeline.images.metadata import Provenance, derive
from pipeline.images.page import Page
from pipeline.images.sandbox import File, Sandbox
from pipeline.logbook import Logbook
from pipeline.models import zoo
from pipeline.models.zoo import ModelSpec
from pipeline.plan import final_size
from pipeline.records import Item, Outcome, to_table
from pipeline.storage import Store
from pipeline.store_errors import OverLimitError, SourceChangedError, said
from pipeline.turns import Budget, Company
from pipeline.uris import redact

if TYPE_CHECKING:
    from pipeline.engine.packer import Visit


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that a worker needs to know, the same for all of them."""

    run_id: str
    recipe: str
    model: ModelSpec
    precision: str
    device: str
    scale: float | None
    long_side: int | None
    encode: Encode
    policy: Policy
    limits: Limits
    source: Store
    output: Store
    models: Store
    in_flight: int
    fetches: int
    in_flight_bytes: int
    max_crashes: int
    threads: int | None
    workers_on_node: int


class Attempts(Protocol):
    """What the worker asks of the attempt ledger; see `pipeline.attempts`."""

    def begin(self, item_id: str) -> None: ...
    def end(self, item_id: str) -> None: ...
    def crashes(self, item_ids: Sequence[str]) -> dict[str, int]: ...


class Worker:
    """Holds one generator on one device; called with blocks of items, from several threads."""

    def __init__(self, job: Job, attempts: Attempts) -> None:
        """Loads the generator. Raises ConfigError where the model cannot be had or used."""
        # Here and not above: torch takes seconds to import, and the driver only names this class.
        from pipeline.engine.packer import Packer
        from pipeline.engine.upscaler import Upscaler

        self._job = job
        self._attempts = attempts
        cache = zoo.default_cache_dir()
        upscaler = Upscaler(
            zoo.load_generator(job.model, store=job.models, cache_dir=cache),
            device=job.device,
            precision=job.precision,
            budget_bytes=job.limits.device_bytes,
            alpha=job.policy.alpha,
        )
        self._scale = upscaler.scale
        cores = len(os.sched_getaffinity(0))
        # Ray gives actors that ask for no CPU one thread.
        threads = job.threads or max(1, cores // job.workers_on_node)
        lanes = threads if job.device == "cpu" else 1
        self._packer = Packer(upscaler, threads=threads, lanes=lanes)
        self._threads = ThreadPoolExecutor(job.in_flight, "item")
        self._fetches = threading.Semaphore(job.fetches)
        codecs = max(1, cores // job.workers_on_node)
        self._codecs = threading.Semaphore(codecs)
        self._sandbox = Sandbox(codecs, job.limits, job.policy)
        self._memory = Budget(job.in_flight_bytes)
        self._company = Company()
        self._delivery = Delivery(job.output, job.recipe)
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def __call__(self, block: pa.Table) -> pa.Table:
        """Outcomes of a block: ITEM_SCHEMA in, OUTCOME_SCHEMA out, one row each in their order."""
        items = [Item.from_row(row) for row in block.to_pylist()]
        crashes = self._attempts.crashes([item.item_id for item in items])
        futures = {
            index: self._threads.submit(self._in_company, item)
            for index, item in enumerate(items)
            if item.item_id not in crashes
        }
        return to_table(
            futures[index].result()
            if index in futures
            else self._suspect(item, crashes[item.item_id])
            for index, item in enumerate(items)
        )

    def _in_company(self, item: Item) -> Outcome:
        with self._company.joined():
            return self._attempt(item)

    def _suspect(self, item: Item, crashes: int) -> Outcome:
        """An item that was under way when a worker died: the verdict, or once more, alone."""
        if crashes >= self._job.max_crashes:
            limit = f"limit {self._job.max_crashes} (workers.max_crashes)"
            message = f"its worker died {crashes} times while it was under way, {limit}"
            log = Logbook(self._blank(item))
            return log.failed(WorkerCrashError("worker_crash", message))
        with self._company.alone():
            return self._attempt(item)

    def _attempt(self, item: Item) -> Outcome:
        log = Logbook(self._blank(item))
        try:
            self._work(item, log)
        except ItemError as error:
            return log.failed(error)
        finally:
            self._attempts.end(item.item_id)
        return log.done()

    def _work(self, item: Item, log: Logbook) -> None:
        """The way of one picture. Raises ItemError."""
        with self._packer.announced() as visit, ExitStack() as held:
            # Fetched files are not in the budget: as many wait for memory as may be fetched.
            with self._fetches:
                self._attempts.begin(item.item_id)  # before its first byte, and no sooner
                there = self._delivery.there(item)
                with log.timed("fetch"):
                    data = self._fetch(item, log)
                file = self._sandbox.file(data)
                sources = self._admit(file, item, log)
                held.enter_context(self._memory.held(self._bytes(len(data), sources, item)))
                del data
            if self._delivery.is_made(item, log.source_sha256, there):
                self._adopt(item, sources[0], log)
                return
            made = [self._page(file, index, visit, log) for index in range(len(sources))]
            del file
            pages = [page for page, _ in made]
            # Of several pages the one that agrees least with its source.
            log.add(**min((agrees for _, agrees in made), key=lambda one: one.psnr).columns())
            del made
            with self._codecs, log.timed("encode"):
                result, lost = encode(pages, item.output_format, self._job.encode, self._job.policy)
            log.note(*lost)
            height, width = pages[0].samples.shape[:2]
            del pages
            with log.timed("publish"):
                result, warnings = self._delivery.publish(item, log.source_sha256, result, there)
            log.note(*warnings)
            log.made(result, item, width, height)

    def _adopt(self, item: Item, facts: Facts, log: Logbook) -> None:
        """The row of a result that an earlier attempt published and did not live to report.

        Its bytes are read, so that the row says of them what it says of others. Not how they agree
        with their source: that is measured before a result is written, and a JPEG or a result that
        is larger than what is let in as a source would not be measured alike, or not at all.
        """
        with log.timed("publish"):
            file = self._delivery.read_back(item)
        turned = facts.orientation >= 5  # EXIF's orientations that swap width and height
        before = (facts.height, facts.width) if turned else (facts.width, facts.height)
        width, height = self._final_size(*before)
        log.note("adopted")
        log.add(scale=width / before[0])
        if facts.sample_bytes > 1:
            log.add(precision="fp32")
        log.made(file, item, width, height)

    def _fetch(self, item: Item, log: Logbook) -> bytes:
        limit = self._job.limits.max_source_bytes
        try:
            data = self._job.source.read(
                item.uri,
                offset=item.offset,
                length=item.length,
                version=item.version,
                limit=limit,
            )
        except OverLimitError as error:
            message = f"{said(error)} (limits.max_source_bytes)"
            raise TooLargeError("source_too_large", message) from error
        except FileNotFoundError as error:
            raise FetchError("not_found", said(error)) from error
        except PermissionError as error:
            raise FetchError("access_denied", said(error)) from error
        except SourceChangedError as error:
            raise FetchError("source_changed", said(error)) from error
        except OSError as error:
            raise FetchError("fetch_failed", said(error)) from error
        except (ConfigError, ValueError) as error:  # a bucket with a space, a NUL in a path
            raise FetchError("bad_uri", said(error)) from error
        log.fetched(data)
        self._check_source(item, data, log)
        return data

    def _check_source(self, item: Item, data: bytes, log: Logbook) -> None:
        """Raises FetchError where the manifest says otherwise of the source."""
        whole = item.offset is None and item.length is None
        if whole and item.size is not None and item.size != len(data):
            raise FetchError(
                "source_changed", f"{len(data):,} bytes, the manifest says {item.size:,} (size)"
            )
        if item.sha256 and item.sha256.lower() != log.source_sha256:
            raise FetchError(
                "source_changed",
                f"sha256 {log.source_sha256}, the manifest says {item.sha256} (sha256)",
            )

    def _admit(self, file: File, item: Item, log: Logbook) -> tuple[Facts, ...]:
        """What the header says of each page. Raises ItemError if one of them is refused.

        The other frames of an animation, or of what a camera puts into a JPEG, are no pages.
        """
        first = file.probe()
        log.saw(first, item)
        count = first.frames if first.format == "tiff" else 1
        self._check_page(first, count, item)
        if count == 1:
            return (first,)
        pages = file.probe_pages()
        for page in pages:
            self._check_page(page, count, item)
        check_pages(self._sizes(pages), max_pixels=self._job.limits.max_output_pixels)
        return pages

    def _check_page(self, facts: Facts, pages: int, item: Item) -> None:
        """Raises TooLargeError or UnsupportedError where the result could not be written."""
        policy, most = self._job.policy.depth, self._job.limits.max_output_pixels
        check_kind(item.output_format, pages=pages, bit_depth=facts.bit_depth, depth_policy=policy)
        width, height = self._final_size(facts.width, facts.height)
        check_size(item.output_format, width, height, max_pixels=most)

    def _bytes(self, file: int, sources: Sequence[Facts], item: Item) -> int:
        """The memory that a picture takes at most. file: bytes of the source."""
        lossless = self._job.encode.webp_lossless
        return held_bytes(
            file, sources, self._sizes(sources), item.output_format, lossless=lossless
        )

    def _sizes(self, sources: Sequence[Facts]) -> list[tuple[int, int]]:
        """Of the results, as their pages are stored."""
        return [self._final_size(one.width, one.height) for one in sources]

    def _page(
        self, file: File, index: int, visit: "Visit", log: Logbook
    ) -> tuple[Page, Consistency]:
        """One page upscaled, with what it will say, and how it agrees with its source."""
        with self._codecs, log.timed("decode"):
            image = file.decode(index)
        log.note(*image.warnings)
        if index == 0 and image.pixels.itemsize > 1:
            log.add(precision="fp32")  # 16 bits are more than a half-precision network has
        size = self._final_size(image.width, image.height)
        try:
            upscaled = visit.upscale(image.pixels, size)
        finally:
            log.add(upscale_s=visit.device_s)
        log.note(*upscaled.warnings)
        if index == 0:
            log.add(scale=size[0] / image.width)
        with self._codecs, log.timed("encode"):
            says, lost = self._derived(image, size, log)
            agrees = measure(image.pixels, upscaled.pixels)
        log.note(*lost)
        return Page(upscaled.pixels, says), agrees

    def _derived(
        self, image: Image, size: tuple[int, int], log: Logbook
    ) -> tuple[Metadata, tuple[str, ...]]:
        """What a result says beside its samples, and the codes of what it cannot."""
        model = self._job.model
        made = Provenance(
            model=model.name.rpartition("/")[2],  # no folder: it is nobody's business
            model_sha256=model.sha256,
            scale=size[0] / image.width,
            source_sha256=log.source_sha256,
            version=__version__,
        )
        return derive(
            image.metadata,
            source=image.facts,
            size=size,
            provenance=made,
            policy=self._job.policy,
        )

    def _final_size(self, width: int, height: int) -> tuple[int, int]:
        factor = self._job.scale or self._scale
        return final_size(width, height, factor=factor, long_side=self._job.long_side)

    def _blank(self, item: Item) -> Outcome:
        """The row of an item of which nothing is known yet but who has it."""
        job = self._job
        return Outcome(
            item_id=item.item_id,
            key=item.key,
            source_uri=redact(item.uri),
            source_version=item.version,
            status="skipped",
            attempts=item.attempts + 1,
            model=job.model.name,
            model_sha256=job.model.sha256,
            model_licence=job.model.licence,
            recipe=job.recipe,
            precision=job.precision,
            device=job.device,
            run_id=job.run_id,
            last_run_id=job.run_id,
            shard=item.shard,
            node=socket.gethostname(),
            worker=self._name,
            started_at=datetime.now(UTC),
        )
