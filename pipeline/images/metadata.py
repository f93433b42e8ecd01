"""What a picture says beside its samples: read from its file, and made true of the result."""

import hashlib
from dataclasses import dataclass, replace

from pipeline.config import Policy
from pipeline.images import blocks, exif, exif_edit, profiles, xmp, xmp_edit, xmp_stale
from pipeline.images.exif_edit import Change
from pipeline.images.found import Found
from pipeline.images.ifd import Data
from pipeline.images.image import Facts, Metadata

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
"""IPTC's vocabulary of where a picture comes from."""

# From the least to the most of a picture that is not its subject's. What is below is replaced.
_SYNTHETIC = (
    "algorithmicallyEnhanced",
    "compositeSynthetic",
    "compositeWithTrainedAlgorithmicMedia",
    "trainedAlgorithmicMedia",
)

_CONVERTED = ("cmyk", "ycck", "lab")  # to sRGB
_PLAIN = ("gray", "rgb")
_SOURCE_TYPE = "Iptc4xmpExt:DigitalSourceType"
_MOST_DPI = 1e6  # what says more is not meant
_MOST_ASPECT = 1e4
_ICC_HEADER = 128


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a result was made of and with."""

    model: str
    model_sha256: str
    """Of its weights."""
    scale: float
    """Final factor."""
    source_sha256: str
    """Of the source file."""
    version: str
    """Ours."""


def read(
    data: Data, format: str, *, page: int = 0, at: int = 0, limit: int
) -> tuple[Metadata, tuple[str, ...]]:
    """What the file says beside its samples, and the codes of what it says and a result will not.

    data: the whole file; format: as in Facts; page: which of a TIFF's directories, from 0,
    thumbnails included, or at: where that begins; limit: limits.max_metadata_bytes. Blocks are as
    they stand, but for extended XMP, which is joined, TIFF's tags, which become a stream of their
    own, and sRGB that is only named (by PNG, JPEG 2000 and BMP), which becomes a profile; dpi is
    across and down as stored.
    What is broken is left out, whatever it is.
    Codes: icc_untagged; {icc,exif,xmp,iptc,text}_broken; exif_repaired: single tags are lost;
    maker_note_moved: of a TIFF, too far from the file's beginning to stay so;
    text_dropped: comments and PNG's texts; tiff_tags_dropped: tags of other programs;
    gamma_dropped: PNG's gAMA, cHRM or cICP, if not sRGB's and without a profile; c2pa_dropped: a
    signed manifest, not true of another file; xmp_extension_dropped; blocks_dropped: whatever else
    lies beside the samples and has no place in a result.
    Raises TooLargeError, and DecodeError where the file's own blocks are broken or too many.
    """
    found = blocks.find(data, format, page=page, at=at, limit=limit)
    profile = _sound_profile(found)
    if profile is None:
        found.warn("icc_untagged")
    stream = _sound_exif(found)
    dpi = _plausible(found.dpi) or (_plausible(exif.resolution(stream)) if stream else None)
    said = Metadata(
        icc_profile=profile,
        exif=stream,
        xmp=_sound_xmp(found),
        iptc=_sound_iptc(found),
        dpi=dpi,
        aspect=None if dpi else _odd(found.aspect),
    )
    return said, tuple(found.warnings)


def count(data: Data, format: str, *, at: int = 0, limit: int) -> int:
    """Bytes of what `read` finds, inflated. Arguments and errors as of `read`."""
    return blocks.find(data, format, page=0, at=at, limit=limit).taken


def derive(
    said: Metadata,
    *,
    source: Facts,
    size: tuple[int, int],
    provenance: Provenance,
    policy: Policy,
) -> tuple[Metadata, tuple[str, ...]]:
    """What the result says, and the codes of what was broken or is true no more.

    said: of the source, upright (dpi, aspect); its EXIF as the file had it. source: its header.
    size: width and height of the result. The same arguments give the same bytes.
    Codes: {exif,xmp}_broken, icc_dropped: a profile of other samples, and those of
    `xmp_stale.corrections`.
    """
    turned = source.orientation >= 5
    stored = source.width, source.height
    width, height = stored[::-1] if turned else stored
    dpi = said.dpi
    if dpi and policy.resolution == "scale":
        dpi = dpi[0] * size[0] / width, dpi[1] * size[1] / height
    fits = said.icc_profile is None or _fits(said.icc_profile, source)
    kept = Metadata(said.icc_profile if fits else None, dpi=dpi, aspect=said.aspect)
    warnings = [] if fits else ["icc_dropped"]
    if policy.strip_metadata:
        return replace(kept, xmp=_mark(said.xmp, policy)), tuple(warnings)
    change = Change(
        source.orientation,
        stored,
        size,
        scale_resolution=policy.resolution == "scale",
        into_srgb=source.colour in _CONVERTED,
    )
    stream = said.exif
    if stream:
        try:
            stream = exif_edit.edit(stream, change)
        except exif.BrokenExifError:
            stream = None
            warnings.append("exif_broken")
    packet, mark, codes = _derived(said.xmp, source, change, dpi, provenance, policy)
    made = replace(kept, exif=stream, xmp=packet, mark=mark, iptc=said.iptc)
    return made, (*warnings, *codes)


def _fits(profile: bytes, source: Facts) -> bool:
    """Whether a profile is one of such samples as are decoded: a palette is always one of RGB,
    also where it holds only grays."""
    if source.colour in _CONVERTED:
        return True
    space = profiles.space(profile)
    if source.colour == "palette" and space == profiles.RGB:
        return True
    return space == (profiles.GRAY if source.channels < 3 else profiles.RGB)


def _mark(packet: bytes | None, policy: Policy) -> bytes | None:
    """A packet that says where the picture comes from and nothing else."""
    if policy.source_type == "off":
        return None
    try:
        before = xmp.parse(packet or xmp_edit.EMPTY).text(_SOURCE_TYPE)
    except xmp.BrokenXmpError:
        before = ""
    kind = before.rpartition("/")[2] if _is_stronger(before, policy) else policy.source_type
    says = {_SOURCE_TYPE: SOURCE_TYPES + kind}
    return xmp_edit.edit(xmp.parse(xmp_edit.EMPTY), says=says, corrects={}, event=None)


def _is_stronger(before: str, policy: Policy) -> bool:
    """Whether a source already says more of machines than its result would: enlarged, what a
    network made is still made by a network."""
    kind = before.rpartition("/")[2]
    ours = _SYNTHETIC.index(policy.source_type)
    return kind in _SYNTHETIC[ours + 1 :]


def _derived(
    packet: bytes | None,
    source: Facts,
    change: Change,
    dpi: tuple[float, float] | None,
    provenance: Provenance,
    policy: Policy,
) -> tuple[bytes, bytes, tuple[str, ...]]:
    """The packet without what is not true of the result and with what that was made of, the latter
    alone, and the codes.

    A large one takes seconds to parse, with all other threads waiting: that is done once.
    """
    broken: tuple[str, ...] = ()
    try:
        before = xmp.parse(packet or xmp_edit.EMPTY)
        regions = xmp_stale.regions_turned(before, change)
    except xmp.BrokenXmpError:
        before, regions, broken = xmp.parse(xmp_edit.EMPTY), [], ("xmp_broken",)
    plain = source.colour in _PLAIN
    corrects, codes = xmp_stale.corrections(before, change, dpi, plain=plain)
    says, event = _mark_of(before, packet or b"", change.size, provenance, policy)
    made = xmp_edit.edit(before, says=says, corrects=corrects, event=event, inside=regions)
    empty = xmp.parse(xmp_edit.EMPTY)
    mark = xmp_edit.edit(empty, says=says, corrects={}, event=event)
    return made, mark, (*broken, *codes)


def _mark_of(
    before: xmp.Packet,
    source: bytes,
    size: tuple[int, int],
    provenance: Provenance,
    policy: Policy,
) -> tuple[dict[str, str | dict[str, str]], dict[str, str]]:
    """Statements of what the result was made of and with, and the event of its history.

    source: the packet as it was.
    """
    made = {
        "model": provenance.model,
        "model_sha256": provenance.model_sha256,
        "scale": f"{provenance.scale:g}",
        "source_sha256": provenance.source_sha256,
    }
    # Identifiers come from what is identified: no clock and no chance in a result.
    recipe = "\n".join((*made.values(), provenance.version, str(size)))
    name = hashlib.sha256(source + recipe.encode(errors="replace")).hexdigest()[:32]
    document, instance, original = (
        before.text(f"xmpMM:{one}") for one in ("DocumentID", "InstanceID", "OriginalDocumentID")
    )
    agent = f"Remaster {provenance.version}"
    origin = {"stRef:documentID": document, "stRef:instanceID": instance}
    origin = {field: value for field, value in origin.items() if value}
    says: dict[str, str | dict[str, str]] = {
        "xmp:CreatorTool": agent,
        "xmpMM:DocumentID": f"xmp.did:{name}",
        "xmpMM:InstanceID": f"xmp.iid:{name}",
        "xmpMM:DerivedFrom": origin | {"remaster:sha256": provenance.source_sha256},
    }
    if original or document:
        says["xmpMM:OriginalDocumentID"] = original or document
    source_type = before.text(_SOURCE_TYPE)
    if policy.source_type != "off" and not _is_stronger(source_type, policy):
        says[_SOURCE_TYPE] = SOURCE_TYPES + policy.source_type
        if source_type:
            made["source_type"] = source_type
    event = {
        "stEvt:action": "edited",
        "stEvt:instanceID": f"xmp.iid:{name}",
        "stEvt:softwareAgent": agent,
        "stEvt:parameters": "; ".join(f"{key}={value}" for key, value in made.items()),
    }
    return says, event


def _sound_profile(found: Found) -> bytes | None:
    profile = found.blocks.get("icc")
    if not profile:
        return None
    if (
        len(profile) >= _ICC_HEADER
        and profile[36:40] == b"acsp"
        and _ICC_HEADER <= int.from_bytes(profile[:4], "big") <= len(profile)
    ):
        return profile
    found.warn("icc_broken")
    return None


def _sound_exif(found: Found) -> bytes | None:
    stream = found.blocks.get("exif")
    if not stream:
        return None
    try:
        if not exif.check(stream):
            found.warn("exif_repaired")
    except exif.BrokenExifError:
        found.warn("exif_broken")
        return None
    return stream


def _sound_xmp(found: Found) -> bytes | None:
    packet = found.blocks.get("xmp")
    if not packet:
        return None
    try:
        return xmp.normalised(packet)
    except xmp.BrokenXmpError:
        found.warn("xmp_broken")
        return None


def _sound_iptc(found: Found) -> bytes | None:
    """Records one after another, each `1C record dataset length`; zeros may follow."""
    records = found.blocks.get("iptc")
    if not records:
        return None
    at = 0
    while records[at : at + 1] == b"\x1c":
        size = int.from_bytes(records[at + 3 : at + 5], "big")
        if size & 0x8000:  # the length of a length
            wide = size & 0x7FFF
            size = wide + int.from_bytes(records[at + 5 : at + 5 + min(wide, 8)], "big")
        at += 5 + size
    if not 0 < at <= len(records) or records[at:].strip(b"\0"):
        found.warn("iptc_broken")
        return None
    return records[:at]


def _odd(sides: tuple[float, float] | None) -> float | None:
    """What pixels are that are not square."""
    if not sides or min(sides) <= 0 or sides[0] == sides[1]:
        return None
    aspect = sides[0] / sides[1]
    return aspect if 1 / _MOST_ASPECT < aspect < _MOST_ASPECT else None


def _plausible(dpi: tuple[float, float] | None) -> tuple[float, float] | None:
    return dpi if dpi and min(dpi) > 0 and max(dpi) < _MOST_DPI else None
