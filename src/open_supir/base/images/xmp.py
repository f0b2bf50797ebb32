"""XMP packets: updated to match a result, with our record added.

A packet is XML around one `rdf:RDF`, whose `rdf:Description`s anybody may add to. It is changed as
text, so that all else stays as its writer wrote it.
"""

import re
from xml.sax.saxutils import escape

NAMESPACE = "urn:open-supir:"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
OURS = re.compile(r"\s*<rdf:Description[^>]*xmlns:opensupir=[^>]*>.*?</rdf:Description>", re.S)
THUMBNAILS = re.compile(r"\s*<xmp:Thumbnails>.*?</xmp:Thumbnails>", re.S)
MORE = re.compile(r"""\s*xmpNote:HasExtendedXMP=(["']).*?\1""")  # points to parts in other segments
PADDING = re.compile(r"\s+(<\?xpacket end)")
END = re.compile(r"</\w+:RDF>")
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
