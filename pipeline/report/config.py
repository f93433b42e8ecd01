"""What the list of outliers may be told.

The defaults of the thresholds are set by measurement: 39 results of `remaster-compact-x4` (Kodak at
192 x 128, plain, gray, noisy, as a bad JPEG, blurred; at 768 x 512; other photographs), and all but
the large ones spoilt on purpose. README.md has the ranges. realesr-animevideov3 on seven of these
has psnr 28 to 36, delta_e 1.4 to 7.1, local_difference 7 to 15, bias 0.9 to 2.6.

No good one is beyond the defaults. Of 36 spoilt ones each are found: constant, their mean, blue 10
levels up, bicubic enlargement all; blue 6 up 34, 4 up 2; a black tile of 64 pixels 33, of 32 31 (in
black it is none); shifted by 2 pixels of the source 35, by 1 27, by a half 7; Lanczos enlargement
11, bilinear 10.
"""

from pydantic import Field, field_validator

from pipeline.config import Side
from pipeline.settings import CommandConfig, Section

FORMATS = (".parquet", ".csv", ".jsonl")
"""Of tables that can be written."""


class Thresholds(Section):
    """From where on a result is an outlier; see the columns quality_* of the report."""

    psnr: float = Field(default=27, gt=0, description="dB; outliers are below it")
    delta_e: float = Field(default=3, gt=0, description="colour difference, CIEDE2000")
    local_difference: float = Field(
        default=25, gt=0, description="levels of 255, of the block of 8 x 8 pixels that is worst"
    )
    bias: float = Field(
        default=4, gt=0, description="levels of 255, of the channel whose mean has moved most"
    )
    clipped_share: float = Field(default=0.15, gt=0, description="0 to 1")
    constant_share: float = Field(default=0.02, gt=0, description="0 to 1")
    plain_psnr: float = Field(
        default=50, gt=0, description="dB, against plain interpolation; outliers are above it"
    )
    spread: float = Field(
        default=6,
        gt=0,
        description="all but bias and plain_psnr are this many standard deviations (as 1.48 times "
        "the median distance from the median) off the report's median where that is farther",
    )


class ReportPlace(Section):
    """Where the report is."""

    uri: str | None = Field(default=None, description="report folder; default <output>/_report")


class ReportStorage(Section):
    """The two sides of the storage."""

    output: Side = Side()
    report: Side | None = Field(default=None, description="default as storage.output")


class ReportConfig(CommandConfig):
    """List the results that agree least with their sources, as the report's columns say."""

    program = "report.py"

    output: str = Field(description="folder or prefix that the results were published under")
    outliers: str | None = Field(
        default=None,
        description="file to write the outliers to, which upscale.py takes as a manifest: "
        ".parquet, .csv or .jsonl; holds the sources' URIs as they were given",
    )
    top: int = Field(default=100, ge=1, description="outliers that are listed at most, the worst")
    thresholds: Thresholds = Thresholds()
    report: ReportPlace = ReportPlace()
    storage: ReportStorage = ReportStorage()

    @field_validator("outliers", mode="after")
    @classmethod
    def _known_format(cls, outliers: str | None) -> str | None:
        if outliers is not None and not outliers.lower().endswith(FORMATS):
            raise ValueError(f"the file's name ends in one of {', '.join(FORMATS)}")
        return outliers

    @property
    def report_uri(self) -> str:
        """The report's folder."""
        return self.report.uri or f"{self.output.rstrip('/')}/_report"
