"""Metadata of a photograph's file: read from it, and prepared for a result."""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from open_supir.base.images import exif, xmp

RECORD_KEY = "restoration"  # of a PNG's text
EXIF_HEADER = b"Exif\0\0"
XMP_TEXT = "XML:com.adobe.xmp"
COMMENT = "Comment"  # the text that JPEG has too
IPTC_RESOURCE = 0x0404
JPEG_SEGMENT = 65533
JPEG_EXIF, JPEG_XMP = JPEG_SEGMENT - len(EXIF_HEADER), JPEG_SEGMENT - 29
JPEG_IPTC = JPEG_SEGMENT - 40
# Descriptions by tifffile, ImageJ and OME, which hold the number of pixels
COUNTED = re.compile(rb'\{"shape"|ImageJ=|<\?xml.{,1000}<OME', re.S)
RAW_PROFILE = re.compile(r"Raw profile type (\w+)")  # ImageMagick's: hexadecimal, in a text


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Metadata of a photograph's file, besides its pixels and colour profile.

    Attributes:
        exif: Block without header, as the file has it; of a TIFF, its own tags.
        xmp: Packet.
        xmp_extension: What a JPEG has no room for in its packet.
        iptc: IPTC-IIM records.
        dpi: Pixels per inch, across and down.
        aspect: Pixels per length, across and down, of a PNG that names no unit.
        texts: Texts of a PNG; the comment of a JPEG or GIF.
    """

    exif: bytes = b""
    xmp: bytes = b""
    xmp_extension: bytes = b""
    iptc: bytes = b""
    dpi: tuple[float, float] | None = None
    aspect: tuple[int, int] | None = None
    texts: Mapping[str, str] = field(default_factory=dict)


def of_image(image: Image.Image) -> Metadata:
    """Return what Pillow found in a JPEG, PNG, WebP, GIF or BMP whose pixels are loaded."""
    info = image.info
    texts = dict(getattr(image, "text", {}))
    profiles = {}
    for key in list(texts):
        match = RAW_PROFILE.fullmatch(key)
        if match:
            profiles[match[1].lower()] = _from_hex(texts.pop(key))
    for key in (XMP_TEXT, RECORD_KEY):
        texts.pop(key, None)
    comment = info.get("comment")
    if isinstance(comment, bytes) and comment.strip(b"\0"):
        texts[COMMENT] = _decoded(comment.strip(b"\0"))
    block = _block_of(image) or profiles.get("exif") or profiles.get("app1") or b""
    resources = _bytes(profiles.get("iptc") or profiles.get("8bim"))
    photoshop = info.get("photoshop")
    iptc = photoshop.get(IPTC_RESOURCE) if isinstance(photoshop, dict) else None
    packet = _bytes(info.get("xmp")) or profiles.get("xmp") or b""
    segments = [data for name, data in getattr(image, "applist", ()) if name == "APP1"]
    return _complete(
        Metadata(
            exif=block.removeprefix(EXIF_HEADER),
            xmp=packet,
            xmp_extension=xmp.extension_of(packet, segments),
            iptc=_bytes(iptc) or _iptc_of(resources),
            dpi=_dpi(image),
            aspect=info.get("aspect") if image.format == "PNG" else None,
            texts={key: str(value) for key, value in texts.items()},
        )
    )


def _block_of(image: Image.Image) -> bytes:
    """Return the EXIF block as the file has it.

    Pillow writes an AVIF's anew where it differs from the container in how to turn the image,
    and letters beyond ASCII do not survive that; its decoder still has the block.
    """
    decoder: Any = getattr(image, "_decoder", None)
    if image.format == "AVIF" and decoder is not None:
        return _bytes(decoder.get_info()[4])
    return _bytes(image.info.get("exif"))


def of_tiff(data: bytes) -> Metadata:
    """Return the metadata of a TIFF file's first page; empty if it is too damaged."""
    try:
        tree = exif.read(data)
    except ValueError:
        return Metadata()

    def value(tag: int) -> bytes:
        return bytes(tree.root[tag].data) if tag in tree.root else b""

    if COUNTED.match(value(exif.DESCRIPTION)):
        del tree.root[exif.DESCRIPTION]
    iptc = value(exif.IPTC)
    if iptc[3:4] == b"\x1c" != iptc[:1]:  # stored as numbers of the other byte order
        words = len(iptc) // 4
        iptc = struct.pack(f">{words}I", *struct.unpack_from(f"<{words}I", iptc))
    return Metadata(
        exif=exif.of_tiff(tree),
        xmp=value(exif.XMP).strip(b"\0"),
        iptc=iptc.rstrip(b"\0") or _iptc_of(value(exif.PHOTOSHOP)),
        dpi=exif.resolution(tree),
    )


def prepared(
    metadata: Metadata,
    format: str,
    *,
    size: tuple[int, int],
    is_srgb: bool = True,
    record: str | None = None,
) -> tuple[Metadata, tuple[str, ...]]:
    """Make metadata true of a result and fit for its file.

    Args:
        metadata: The input's.
        format: png, jpg, webp or tiff.
        size: (H, W) of the result.
        is_srgb: Whether the result is in sRGB.
        record: Goes into the XMP, or into a PNG's text.

    Returns:
        What the file is to say, and one line for each thing that it cannot.
    """
    notes: list[str] = []
    block, iptc, texts = metadata.exif, metadata.iptc, dict(metadata.texts)
    try:
        block = exif.updated(block, size, is_srgb=is_srgb) if block else b""
        if format == "jpg":
            block, names = exif.limited(block, JPEG_EXIF)
            if names:
                notes.append(f"EXIF {', '.join(names)} left out: a JPEG holds 64 KB of EXIF")
    except ValueError as error:
        block = b""
        notes.append(f"EXIF left out: {error}")
    if format == "webp" and metadata.dpi:
        block = exif.with_resolution(block, metadata.dpi)
    if format == "png" and record is not None:
        texts[RECORD_KEY], record = record, None
    packet, more = b"", b""
    try:
        packet, more = _xmp(metadata, format, size, is_srgb=is_srgb, record=record)
        if b"HasExtendedXMP" in metadata.xmp and not metadata.xmp_extension:
            notes.append("extended XMP left out: it is not whole")
    except ValueError as error:
        packet = xmp.updated(b"", size, is_srgb=is_srgb, record=record)
        notes.append(f"XMP left out: {error}")
    if iptc and (format == "webp" or (format == "jpg" and len(iptc) > JPEG_IPTC)):
        iptc = b""
        notes.append(f"IPTC left out: {format} has no room for it")
    if format != "png":
        lost = [key for key in texts if format != "jpg" or key != COMMENT]
        lost += (
            [COMMENT] if format == "jpg" and len(texts.get(COMMENT, "").encode()) > 60000 else []
        )
        texts = {key: value for key, value in texts.items() if key not in lost}
        if lost:
            notes.append(f"texts {', '.join(lost)} left out: {format} has no place for them")
    if format != "png" and metadata.aspect and len(set(metadata.aspect)) > 1:
        across, down = metadata.aspect
        notes.append(f"pixels of {down} to {across} left out: {format} has no place for them")
    made = replace(metadata, exif=block, xmp=packet, xmp_extension=more, iptc=iptc, texts=texts)
    return made, tuple(notes)


def _xmp(
    metadata: Metadata, format: str, size: tuple[int, int], *, is_srgb: bool, record: str | None
) -> tuple[bytes, bytes]:
    """Return the updated packet and, for a JPEG, its extension; elsewhere the packet holds both.

    Raises:
        ValueError: XMP is damaged, or the packet too large.
    """
    packet, more = metadata.xmp, metadata.xmp_extension
    if format != "jpg":
        whole = xmp.merged(packet, more) if more else packet
        return xmp.updated(whole, size, is_srgb=is_srgb, record=record), b""
    room = JPEG_XMP - xmp.NOTE_ROOM
    made = xmp.updated(packet, size, is_srgb=is_srgb, record=record)
    if len(made) > room:
        made = xmp.updated(packet, size, is_srgb=is_srgb)
    if len(made) > room and not more:  # all of it goes along behind a packet that is empty
        made, more = xmp.updated(b"", size, is_srgb=is_srgb, record=record), packet
    if len(made) > room:
        raise ValueError("a JPEG holds 64 KB of it")
    return made, xmp.updated(more, size, is_srgb=is_srgb)


def photoshop_resource(iptc: bytes) -> bytes:
    """Return IPTC as the image resource that JPEGs and PNGs hold it in."""
    head = b"8BIM" + struct.pack(">HHI", IPTC_RESOURCE, 0, len(iptc))
    return head + iptc + bytes(len(iptc) % 2)


def raw_profile(name: str, data: bytes) -> str:
    """Return bytes as ImageMagick writes them into a PNG's text."""
    digits = data.hex()
    lines = [digits[at : at + 72] for at in range(0, len(digits), 72)]
    return "\n".join(["", name, f"{len(data):8d}", *lines, ""])


def _complete(metadata: Metadata) -> Metadata:
    """Take the resolution from EXIF where the file itself has none."""
    if metadata.dpi or not metadata.exif:
        return metadata
    try:
        return replace(metadata, dpi=exif.resolution(exif.read(metadata.exif)))
    except ValueError:
        return metadata


def _iptc_of(resources: bytes) -> bytes:
    """Find IPTC among image resources; it may also stand alone."""
    if resources[:1] == b"\x1c":
        return resources
    at = 0
    while resources[at : at + 4] == b"8BIM" and at + 12 <= len(resources):
        number, letters = struct.unpack_from(">HB", resources, at + 4)
        at += 6 + (1 + letters + 1) // 2 * 2  # the name, padded
        (size,) = struct.unpack_from(">I", resources.ljust(at + 4, b"\0"), at)
        if number == IPTC_RESOURCE:
            return resources[at + 4 : at + 4 + size]
        at += 4 + size + size % 2
    return b""


def _from_hex(text: str) -> bytes:
    try:
        return bytes.fromhex("".join(text.strip().split("\n")[2:]))
    except ValueError:
        return b""


def _decoded(comment: bytes) -> str:
    try:
        return comment.decode("utf-8")
    except UnicodeDecodeError:
        return comment.decode("latin-1")


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else b""


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    """Return the resolution in a file's header; for a JPEG without one, Pillow makes one up."""
    if image.format in ("JPEG", "MPO") and image.info.get("jfif_unit") not in (1, 2):
        return None
    try:
        across, down = (float(number) for number in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 0 < across < 1e6 and 0 < down < 1e6 else None
