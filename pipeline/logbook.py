"""What is known of one item on its way through the worker: its row of the report, as it grows."""

import hashlib
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import ItemError
from pipeline.images.image import Facts
from pipeline.plan import FORMATS, source_suffix
from pipeline.records import MESSAGE_LIMIT, Item, Outcome
from pipeline.uris import redact


class Logbook:
    """For one thread at a time."""

    def __init__(self, blank: Outcome) -> None:
        self.outcome = blank

    def add(self, **known: Any) -> None:
        self.outcome = replace(self.outcome, **known)

    def note(self, *codes: str) -> None:
        """Warnings, in the order in which they arise, each once."""
        self.add(warnings=tuple(dict.fromkeys((*self.outcome.warnings, *codes))))

    @contextmanager
    def timed(self, stage: str) -> Generator[None]:
        """Seconds of a stage, without the wait for its turn; of several turns together."""
        start = time.monotonic() - (getattr(self.outcome, f"{stage}_s") or 0)
        try:
            yield
        finally:
            self.add(**{f"{stage}_s": time.monotonic() - start})

    @property
    def source_sha256(self) -> str:
        """Of what was fetched."""
        assert self.outcome.source_sha256, "nothing was fetched"
        return self.outcome.source_sha256

    def fetched(self, data: bytes) -> None:
        self.add(source_bytes=len(data), source_sha256=hashlib.sha256(data).hexdigest())

    def saw(self, facts: Facts, item: Item) -> None:
        self.add(
            source_format=facts.format,
            source_mode=facts.mode,
            source_bit_depth=facts.bit_depth,
            source_frames=facts.frames,
            source_width=facts.width,
            source_height=facts.height,
        )
        named = FORMATS.get(source_suffix(item.key, item.uri).lower())
        if named and named != facts.format:
            self.note("format_mismatch")

    def made(self, file: bytes, item: Item, width: int, height: int) -> None:
        self.add(
            output_uri=redact(item.output_uri),
            output_bytes=len(file),
            output_sha256=hashlib.sha256(file).hexdigest(),
            output_format=item.output_format,
            output_width=width,
            output_height=height,
        )

    def done(self) -> Outcome:
        return replace(self.outcome, status="done", finished_at=datetime.now(UTC))

    def failed(self, error: ItemError) -> Outcome:
        return replace(
            self.outcome,
            status="failed",
            error_code=error.code,
            error_class="transient" if error.transient else "permanent",
            error_stage=error.stage,
            error_message=redact(str(error))[:MESSAGE_LIMIT],
            finished_at=datetime.now(UTC),
        )
