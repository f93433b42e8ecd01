"""What a person may set, and which of it makes a result what it is (the recipe).

How values are read is `settings`. `configs/reference.yaml` is `UpscaleConfig.reference()`, kept
complete by a test.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.errors import ConfigError
from pipeline.settings import CommandConfig, Section

Precision = Literal["fp32", "fp16", "bf16"]
Device = Literal["cuda", "cpu"]
PngEffort = Literal["fast", "balanced", "max"]
Failures = Literal["transient", "all", "none"]


class Workers(Section):
    """How the fleet is sized; changes nothing in the results."""

    count: int | None = Field(
        default=None, ge=1, description="workers; default one per GPU, on CPUs one per node"
    )
    gpus: float | None = Field(
        default=None, ge=0, description="GPUs a worker asks for; default 1 on CUDA, 0 on CPUs"
    )
    cpus: float | None = Field(
        default=None, ge=0, description="CPUs a worker asks for; default 1 on CUDA, 0 on CPUs"
    )
    threads: int | None = Field(
        default=None, ge=1, description="torch threads; default the node's CPUs over its workers"
    )
    in_flight: int = Field(
        default=384, ge=1, le=1024, description="pictures under way in a worker, each in a thread"
    )
    in_flight_bytes: int = Field(
        default=4 * 2**30,
        ge=2**20,
        description="bytes of decoded pictures, results and encoders in a worker",
    )
    fetches: int = Field(
        default=16, ge=1, le=256, description="sources that a worker reads at the same time"
    )
    max_crashes: int = Field(
        default=2,
        ge=1,
        description="times an input may take its worker down before it counts as failed",
    )
    stall_timeout_s: float = Field(
        default=3600,
        gt=0,
        description="seconds without a finished block, or a first worker, that end the run",
    )


class Encode(Section):
    """How results are written."""

    png_effort: PngEffort = Field(
        default="fast",
        description="fast (60 megapixels a second and core), balanced (10; 7 to 11 % smaller), "
        "max (0.5 to 5; 7 to 16 % smaller)",
    )
    jpeg_quality: int = Field(default=95, ge=1, le=100, description="JPEG quality")
    jpeg_subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = Field(
        default="4:4:4", description="JPEG chroma subsampling"
    )
    webp_quality: int = Field(default=90, ge=1, le=100, description="WebP quality")
    webp_lossless: bool = Field(default=False, description="lossless WebP")


class Limits(Section):
    """What a single input may cost; over a limit it becomes a failed row."""

    max_source_bytes: int = Field(default=2**30, ge=1, description="bytes of a source")
    max_input_pixels: int = Field(default=100_000_000, ge=1, description="pixels of a source")
    max_output_pixels: int = Field(default=1_000_000_000, ge=1, description="pixels of a result")
    max_metadata_bytes: int = Field(
        default=64 * 2**20, ge=0, description="bytes of EXIF, XMP, IPTC and ICC profile of a source"
    )
    max_pages: int = Field(default=1000, ge=1, description="pages of a TIFF")
    decode_s: float = Field(
        default=60,
        gt=0,
        description="seconds for all that is read of a file, for each max_input_pixels "
        "of its pages",
    )
    decode_bytes: int = Field(
        default=8 * 2**30, ge=2**26, description="bytes of memory that a decode may take"
    )
    device_bytes: int | None = Field(
        default=None,
        ge=2**20,
        description="bytes of activations on the device; default by its memory",
    )


class Policy(Section):
    """What is done where a source says what not every result can."""

    colour: Literal["reject", "convert"] = Field(
        default="reject", description="CMYK, YCCK and Lab: a failed row, or converted to sRGB"
    )
    depth: Literal["reduce", "reject"] = Field(
        default="reduce",
        description="16 bits where the result's format has 8 (JPEG, WebP): reduced with a warning, "
        "or a failed row",
    )
    animation: Literal["reject", "first_frame"] = Field(
        default="reject", description="animated GIF, WebP and PNG"
    )
    truncated: Literal["reject", "accept"] = Field(
        default="reject", description="files that end too soon: a failed row, or what there is"
    )
    alpha: Literal["network", "lanczos"] = Field(
        default="network", description="what enlarges transparency"
    )
    resolution: Literal["scale", "keep"] = Field(
        default="scale",
        description="pixels per inch of a result: times the factor (the same size in print), or "
        "as in the source",
    )
    source_type: Literal[
        "algorithmicallyEnhanced", "compositeWithTrainedAlgorithmicMedia", "off"
    ] = Field(
        default="algorithmicallyEnhanced",
        description="IPTC digital source type that results are marked with",
    )
    strip_metadata: bool = Field(
        default=False, description="leave out EXIF, XMP and IPTC; the colour profile stays"
    )


class ReportSection(Section):
    """Where the report is and how often it is committed."""

    uri: str | None = Field(default=None, description="report folder; default <output>/_report")
    commit_s: float = Field(
        default=5.0, gt=0, description="seconds between commits and progress lines"
    )


class Scan(Section):
    """How a folder of images is read."""

    suffixes: tuple[str, ...] = Field(
        default=(
            *(".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".jp2", ".j2k"),
            *(".gif", ".bmp", ".pnm", ".pgm", ".ppm", ".pbm"),
        ),
        description="file name endings that count as images, without regard to case",
    )


class Side(Section):
    """One side of the storage: any fsspec URI, with options of its own."""

    endpoint: str | None = Field(default=None, description="URL of an S3-compatible store")
    profile: str | None = Field(default=None, description="AWS profile")
    region: str | None = Field(default=None, description="region")
    kms_key: str | None = Field(
        default=None, description="KMS key id that encrypts what is written"
    )
    storage_class: str | None = Field(default=None, description="storage class of what is written")
    options: dict[str, Any] = Field(default={}, description="further fsspec options, as they are")

    @field_validator("options", mode="after")
    @classmethod
    def _booleans(cls, options: dict[str, Any]) -> dict[str, Any]:
        """On the command line every value is a string, and 'false' would count as true."""
        words = {"true": True, "false": False}
        return {
            name: words.get(value, value) if isinstance(value, str) else value
            for name, value in options.items()
        }

    def fsspec_options(self) -> dict[str, Any]:
        """The options as fsspec's S3 driver names them; `options` wins."""
        extra = {"StorageClass": self.storage_class, "SSEKMSKeyId": self.kms_key}
        if self.kms_key:
            extra["ServerSideEncryption"] = "aws:kms"
        extra = {name: value for name, value in extra.items() if value}
        named: dict[str, Any] = {
            "endpoint_url": self.endpoint,
            "profile": self.profile,
            "client_kwargs": {"region_name": self.region} if self.region else None,
            "s3_additional_kwargs": extra or None,
        }
        return {name: value for name, value in named.items() if value} | self.options


class StorageSection(Section):
    """The four sides of the storage."""

    source: Side = Side()
    output: Side = Side()
    report: Side | None = Field(default=None, description="default as storage.output")
    models: Side = Side()


class SourceSide(Side):
    """The side of the sources: as the others, and what else a manifest may ask for."""

    allow: tuple[str, ...] = Field(
        default=(),
        description="sources beside S3, GCS and Azure: http (http and https), private (web servers "
        "inside this network), file (local files on a cluster, read by each node), sftp and so on",
    )

    @field_validator("allow", mode="after")
    @classmethod
    def _known(cls, allow: tuple[str, ...]) -> tuple[str, ...]:
        from pipeline import uris  # with fsspec, which decoders need not wait for

        for name in allow:
            try:
                named = name in ("file", "private") or uris.scheme(f"{name}://host/path")
            except ConfigError:
                named = False
            if not named:
                raise ValueError(f"no driver knows the scheme {name!r}")
        return allow

    @property
    def families(self) -> frozenset[str]:
        """Of drivers that sources may ask for, local files aside."""
        from pipeline import uris

        named = set(self.allow) - {"file", "private"}
        return uris.OBJECT_STORES | {uris.family(f"{name}://host/path") for name in named}


class UpscaleStorage(StorageSection):
    """The four sides of the storage."""

    source: SourceSide = SourceSide()  # pyright: ignore[reportIncompatibleVariableOverride]


class UpscaleConfig(CommandConfig):
    """Upscale every picture of a manifest with a Real-ESRGAN generator."""

    program = "upscale.py"

    manifest: str = Field(
        description="Parquet, CSV or JSONL (file, folder or glob), or a folder or glob of images"
    )
    output: str = Field(description="folder or prefix that the results are published under")
    model: str = Field(
        default="remaster-compact-x4",
        description="zoo name, checkpoint path or URI, or model YAML",
    )
    model_sha256: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="pins a checkpoint that is not in the zoo",
    )
    denoise: float | None = Field(
        default=None, ge=0, le=1, description="denoise strength of realesr-general-x4v3; default 1"
    )
    scale: float | None = Field(
        default=None, gt=0, le=64, description="final factor, any number; default the model's"
    )
    long_side: int | None = Field(
        default=None, ge=1, description="final long side in pixels, instead of a factor"
    )
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        default="auto",
        description="auto: fp16 on CUDA, bf16 on CPUs that are fast at it, or fp32",
    )
    format: Literal["auto", "png", "jpeg", "tiff", "webp"] = Field(
        default="auto", description="auto keeps the source's"
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto", description="auto is CUDA on a cluster; on a laptop what there is"
    )
    limit: int | None = Field(default=None, ge=1, description="at most so many items in this run")
    sample: float | None = Field(
        default=None, gt=0, description="below 1 a share of the items, else a count; chosen by hash"
    )
    dry_run: bool = Field(default=False, description="print what would be done and stop")
    retry_failed: Failures = Field(default="transient", description="failed items to try again")
    on_change: Literal["refuse", "keep", "redo"] = Field(
        default="refuse", description="what a result made by another recipe means"
    )
    ok_failed: float = Field(
        default=0,
        ge=0,
        description="failures that still count as success: below 1 a share, else a count",
    )
    probe: bool = Field(
        default=False,
        description="ask the store for missing versions (part of identity: from the first run on)",
    )
    columns: dict[str, str] = Field(
        default={},
        description="our column -> theirs, by name or template such as s3://{Bucket}/{Key}",
    )
    carry: Literal["all", "none"] | list[str] = Field(
        default="all", description="columns of the manifest that the report carries in `extra`"
    )
    workers: Workers = Workers()
    encode: Encode = Encode()
    limits: Limits = Limits()
    policy: Policy = Policy()
    report: ReportSection = ReportSection()
    scan: Scan = Scan()
    storage: UpscaleStorage = UpscaleStorage()

    @field_validator("carry", mode="before")
    @classmethod
    def _word_or_names(cls, value: Any) -> Any:
        """On the command line a word is a list of one."""
        return value[0] if value in (["all"], ["none"]) else value

    @model_validator(mode="after")
    def _one_size(self) -> "UpscaleConfig":
        if self.scale is not None and self.long_side is not None:
            raise ValueError(
                f"scale ({self.scale:g}) and long_side ({self.long_side}) exclude each other"
            )
        return self

    @property
    def report_uri(self) -> str:
        """The report's folder."""
        return self.report.uri or f"{self.output.rstrip('/')}/_report"


# Raised when the same settings make another result. 2: results keep depth, profile and metadata.
_RECIPE_VERSION = 2


def recipe(
    config: UpscaleConfig,
    *,
    model_sha256: str,
    model_scale: float | None,
    precision: Precision,
    stated: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What makes a result what it is, and nothing else; settings at their default stay out of it.

    model_scale: the network's own factor, None where it is not known. stated: what a model YAML
    says of the network beyond its weights.
    """
    made: dict[str, Any] = {
        "version": _RECIPE_VERSION,
        "model": model_sha256,
        "precision": precision,
    }
    if stated:
        made["stated"] = dict(stated)
    if config.long_side is not None:
        made["long_side"] = config.long_side
    elif config.scale is not None and config.scale != model_scale:
        made["scale"] = config.scale
    if config.format != "auto":
        made["format"] = config.format
    sections: dict[str, Section] = {"encode": config.encode, "policy": config.policy}
    for name, section in sections.items():
        if chosen := section.model_dump(exclude_defaults=True):
            made[name] = chosen
    return made


def digest(made: Mapping[str, Any]) -> str:
    """sha256 of a recipe's canonical JSON, as 64 hexadecimal digits."""
    canonical = json.dumps(made, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
