"""What an encoder is given: a picture, and what its file shall say of it."""

from dataclasses import dataclass, field

from pipeline.images.image import Metadata, Samples


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a file. Only a TIFF has several."""

    samples: Samples
    """The right way up."""
    said: Metadata = field(default_factory=Metadata)
