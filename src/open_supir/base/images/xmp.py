"""XMP packets: updated to match a result, with our record added.

A packet is XML around one `rdf:RDF`, whose `rdf:Description`s anybody may add to. It is changed as
text, so that all else stays as its writer wrote it.
"""

import hashlib
import re
import struct
from collections.abc import Sequence
from xml.sax.saxutils import escape

NAMESPACE = "urn:open-supir:"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
OURS = re.compile(r"\s*<rdf:Description[^>]*xmlns:opensupir=[^>]*>.*?</rdf:Description>", re.S)
THUMBNAILS = re.compile(r"\s*<xmp:Thumbnails>.*?</xmp:Thumbnails>", re.S)
MORE = re.compile(r"""\s*xmpNote:HasExtendedXMP=(["']).*?\1""")  # points to parts in other segments
EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"  # begins a JPEG's segments of more XMP
NOTE_ROOM = 500  # bytes, enough for the name of an extension
PART = 65000  # bytes of it in a segment
PADDING = re.compile(r"\s+(<\?xpacket end)")
END = re.compile(r"</\w+:RDF>")
INSIDE = re.compile(r"<\w+:RDF\b[^>]*>(.*)</\w+:RDF>", re.S)
EMPTY = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">\n</rdf:RDF></x:xmpmeta>\n'
    '<?xpacket end="w"?>'
)


def updated(
    packet: bytes, size: tuple[int, int], *, is_srgb: bool, record: str | None = None
) -> bytes:
    """Update a packet to match a result of (H, W), and add our record.

    Args:
        packet: The input's; may be empty.
        size: Of the result.
        is_srgb: Whether the result is in sRGB.
        record: Replaces that of an earlier restoration; None adds none.

    Raises:
        ValueError: The packet is damaged.
    """
    if not packet and record is None:
        return b""
    text = PADDING.sub(r"\n\1", OURS.sub("", _text(packet) if packet else EMPTY))
    text = MORE.sub("", THUMBNAILS.sub("", text))
    height, width = size
    values = {
        "tiff:Orientation": 1,
        "tiff:ImageWidth": width,
        "tiff:ImageLength": height,
        "exif:PixelXDimension": width,
        "exif:PixelYDimension": height,
        "exif:ColorSpace": 1 if is_srgb else 65535,
    }
    for name, value in values.items():  # as attribute and as element
        text = re.sub(rf"""(\b{name}(?:=["']|>))\s*\d+""", rf"\g<1>{value}", text)
    if record is not None:
        end = [match.start() for match in END.finditer(text)][-1]
        ours = (
            f'<rdf:Description xmlns:rdf="{RDF}" rdf:about="" xmlns:opensupir="{NAMESPACE}">'
            f"<opensupir:restoration>{escape(record)}</opensupir:restoration></rdf:Description>\n"
        )
        text = text[:end] + ours + text[end:]
    return text.encode("utf-8")


def _text(packet: bytes) -> str:
    for encoding in ("utf-8", "utf-16", "utf-16-le", "utf-16-be"):
        try:
            text = packet.decode(encoding).strip("\0")
        except UnicodeDecodeError:
            continue
        if END.search(text):
            return text
    raise ValueError("not an RDF document")


def extension_of(packet: bytes, segments: Sequence[bytes]) -> bytes:
    """Return the XMP that did not fit into a JPEG's packet: b"" if it is not whole.

    Args:
        packet: It names its extension.
        segments: Contents of the file's APP1 segments.
    """
    parts: dict[int, bytes] = {}
    size, head = 0, len(EXTENSION) + 32
    for segment in segments:
        named = segment[len(EXTENSION) : head]
        if segment.startswith(EXTENSION) and len(segment) > head + 8 and named in packet:
            size, offset = struct.unpack_from(">II", segment, head)
            parts[offset] = segment[head + 8 :]
    whole = b"".join(parts[offset] for offset in sorted(parts))
    return whole if len(whole) == size and END.search(whole.decode("utf-8", "ignore")) else b""


def merged(packet: bytes, extension: bytes) -> bytes:
    """Return a packet with what its extension says, for files that hold it all.

    Raises:
        ValueError: One of them is damaged.
    """
    inside, text = INSIDE.search(_text(extension)), _text(packet)
    if inside is None:
        raise ValueError("not an RDF document")
    end = [match.start() for match in END.finditer(text)][-1]
    return (text[:end] + inside[1] + text[end:]).encode("utf-8")


def extended(packet: bytes, extension: bytes) -> tuple[bytes, bytes]:
    """Return a packet that names an extension, and the JPEG segments (APP1) that hold it."""
    name = hashlib.md5(extension).hexdigest().upper()
    text = packet.decode("utf-8") if packet else EMPTY
    end = [match.start() for match in END.finditer(text)][-1]
    note = (
        f'<rdf:Description xmlns:rdf="{RDF}" rdf:about="" '
        f'xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="{name}"/>\n'
    )
    segments = b""
    for offset in range(0, len(extension), PART):
        body = EXTENSION + name.encode() + struct.pack(">II", len(extension), offset)
        body += extension[offset : offset + PART]
        segments += b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    return (text[:end] + note + text[end:]).encode("utf-8"), segments
