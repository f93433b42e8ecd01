"""The error tree; each leaf says who must act.

    PipelineError
    ├── ConfigError           the person who started the run: nothing was started (exit code 2)
    ├── ItemError             one input: becomes its report row, the run goes on
    │   ├── RefusedError          the manifest's author: a row that the plan does not admit
    │   ├── FetchError            the store or the network
    │   ├── DecodeError           the file's owner: the file is broken
    │   ├── TooLargeError         the operator: a limit of ours, raised or kept
    │   ├── UnsupportedError      nobody: a kind of picture that we do not handle
    │   ├── UpscaleError          us, or whoever trained the model
    │   ├── EncodeError           the operator: another format or size
    │   ├── PublishError          the store or the network
    │   └── WorkerCrashError      us: the input took its worker process down
    └── FatalError            the run stops (exit code 1), what is committed stays

Only an `ItemError` becomes a report row; everything else stops the run.
"""

from dataclasses import dataclass
from typing import Literal

Stage = Literal["plan", "fetch", "decode", "upscale", "encode", "publish"]


class PipelineError(Exception):
    """Anything that this package raises on purpose."""


class ConfigError(PipelineError):
    """The command or its configuration is wrong; nothing was started."""


class FatalError(PipelineError):
    """The run cannot go on. What it has committed stays, running again finishes the rest."""


class ItemError(PipelineError):
    """One input failed.

    code: a key of `CODES`, for programs; the message is for people and carries the numbers.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["ItemError"], tuple[str, str]]:
        return type(self), (self.code, str(self))

    @property
    def stage(self) -> Stage:
        """Where on its way the input stopped."""
        return CODES[self.code].stage

    @property
    def transient(self) -> bool:
        """Whether the same input may succeed another night, without anyone changing it."""
        return CODES[self.code].transient


class RefusedError(ItemError):
    """The plan does not admit the row; nothing of it was fetched."""


class FetchError(ItemError):
    """The source's bytes could not be read."""


class DecodeError(ItemError):
    """The bytes are not a whole, well-formed picture."""


class TooLargeError(ItemError):
    """Over one of our limits; the message names the limit and both numbers."""


class UnsupportedError(ItemError):
    """A well-formed picture of a kind that is not handled."""


class UpscaleError(ItemError):
    """The network's result is unusable."""


class EncodeError(ItemError):
    """The result cannot be written in the format asked for."""


class PublishError(ItemError):
    """The result could not be stored."""


class WorkerCrashError(ItemError):
    """The input was in work each time its worker process died."""


@dataclass(frozen=True, slots=True)
class Code:
    """What an error code means: where it arises, and whether time alone may cure it."""

    stage: Stage
    transient: bool
    meaning: str
    limit: str | None = None
    """The setting below `limits` that this is over; raised, it lifts the failure."""


CODES: dict[str, Code] = {
    "bad_key": Code("plan", False, "no place below the output that stores could have"),
    "source_refused": Code("plan", False, "a kind of place that storage.source.allow lacks"),
    "not_found": Code("fetch", False, "no such object or file"),
    # Rights and expired credentials are mended outside, without the source changing.
    "access_denied": Code("fetch", True, "the store refused to hand out the source"),
    "source_changed": Code("fetch", True, "the source is no longer the version that was planned"),
    "fetch_failed": Code("fetch", True, "the network or the store failed"),
    "bad_uri": Code("fetch", False, "no URI that its store could have"),
    "source_too_large": Code("fetch", False, "more bytes than the limit", "max_source_bytes"),
    "not_an_image": Code("decode", False, "no picture format that we know"),
    "decode_failed": Code("decode", False, "the file is broken or cut short"),
    "decode_memory": Code("decode", True, "the node ran out of memory"),
    "decode_memory_limit": Code("decode", False, "more memory to decode", "decode_bytes"),
    "decode_timeout": Code("decode", False, "more time to decode", "decode_s"),
    # The same bytes, in a fresh process as well: not before the codec is mended.
    "decoder_crash": Code("decode", False, "the decoder's process died of it"),
    "unsupported_format": Code("decode", False, "a picture format that is not read yet"),
    "unsupported_depth": Code("decode", False, "more than 16 bits a sample, or no plain integers"),
    "unsupported_colour": Code("decode", False, "CMYK, Lab or another colour model"),
    "unsupported_frames": Code("decode", False, "an animation or several pages"),
    "input_too_large": Code("decode", False, "more pixels of a source", "max_input_pixels"),
    "too_many_pages": Code("decode", False, "more pages", "max_pages"),
    "metadata_too_large": Code("decode", False, "more metadata", "max_metadata_bytes"),
    "output_too_large": Code(
        "encode", False, "more pixels than the limit, or a format's own", "max_output_pixels"
    ),
    "output_depth": Code("encode", False, "more bits a sample than the format has (policy.depth)"),
    "output_pages": Code("encode", False, "more pages than the format has"),
    "device_memory": Code("upscale", True, "does not fit the device even in the smallest strips"),
    "non_finite": Code("upscale", False, "the network yields NaN or infinity even in fp32"),
    "encode_failed": Code("encode", False, "the encoder refused the result"),
    "encode_memory": Code("encode", True, "the node ran out of memory"),
    # Cured outside, without the source changing, as rights are.
    "output_exists": Code("publish", True, "an object that is no result of ours is in the way"),
    "output_changed": Code("publish", True, "another run wrote the result's place meanwhile"),
    "publish_denied": Code("publish", True, "the store refused to take the result"),
    "publish_failed": Code("publish", True, "the network or the store failed"),
    "worker_crash": Code("upscale", True, "its worker died each time it was in work"),
}
