"""What was found of the metadata in a file, block by block, within a limit."""

import zlib
from dataclasses import dataclass, field

from pipeline.errors import TooLargeError
from pipeline.images import profiles
from pipeline.images.walk import IPTC_RESOURCE, METRES_PER_INCH, begins, image_resources

# Resolution, thumbnails, and IPTC with its checksum.
_RESOURCE_COPIES = frozenset({0x03ED, 0x0409, 0x040C, IPTC_RESOURCE, 0x0425})


@dataclass(slots=True)
class Found:
    """What was found. The first block of a kind counts."""

    limit: int
    """limits.max_metadata_bytes."""
    blocks: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """icc, exif, xmp and iptc."""
    dpi: tuple[float, float] | None = None
    """Pixels an inch, across and down as stored."""
    aspect: tuple[float, float] | None = None
    """The same without a unit: how many pixels across, for how many down."""
    warnings: dict[str, None] = field(default_factory=dict[str, None])
    """Codes of what is left out or broken, each once, in order."""
    taken: int = 0

    def take(self, size: int) -> None:
        """Counts bytes before they are copied. Raises TooLargeError."""
        self.taken += size
        if self.taken > self.limit:
            raise TooLargeError(
                "metadata_too_large",
                f"{self.taken:,} bytes of metadata and maybe more, limit {self.limit:,} "
                "(limits.max_metadata_bytes)",
            )

    def add(self, kind: str, block: bytes | memoryview) -> None:
        """Keeps a block, unless there is one of its kind. Raises TooLargeError.

        Of a second one is told that it is lost, unless it says nothing else.
        """
        if kind not in self.blocks and len(block):
            self.take(len(block))
            self.blocks[kind] = bytes(block)
        elif len(block) and not self.blocks[kind].startswith(bytes(block).rstrip(b"\0")):
            self.warn("blocks_dropped")

    def warn(self, code: str) -> None:
        """Notes a code."""
        self.warnings[code] = None

    def name_srgb(self, *, gray: bool) -> None:
        """Notes that the samples are in sRGB; a profile counts for more."""
        self.blocks.setdefault("icc", profiles.srgb(gray=gray))

    def per_metre(self, across: float, down: float) -> None:
        """Notes the resolution."""
        self.dpi = across * METRES_PER_INCH, down * METRES_PER_INCH

    def inflated(self, stream: bytes | memoryview) -> bytes | None:
        """What a zlib stream holds; None if it is broken. Raises TooLargeError."""
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(stream, self.limit - self.taken + 1)
        except zlib.error:
            return None
        if len(data) > self.limit - self.taken:
            self.take(len(data))
        return data if inflater.eof else None

    def add_resources(self, resources: bytes) -> None:
        """Keeps the IPTC of Photoshop's image resources. Raises TooLargeError."""
        for number, content in image_resources(resources):
            if number == IPTC_RESOURCE:
                self.add("iptc", content)
            if number not in _RESOURCE_COPIES:
                self.warn("blocks_dropped")


def without(prefix: bytes, block: memoryview) -> memoryview:
    """A block without what some write before it."""
    return block[len(prefix) :] if begins(block, prefix) else block
