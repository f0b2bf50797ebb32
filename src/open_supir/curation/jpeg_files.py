"""Strip the metadata of JPEG files, without decoding."""

import re

APP1, APP14, APP15, COMMENT = 0xE1, 0xEE, 0xEF, 0xFE
START_OF_FRAME, START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN = 0xC0, 0xD8, 0xD9, 0xDA
# Ends the data of a scan: a marker that is not a stuffed byte, fill byte or restart marker
AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def strip_metadata(data: bytes) -> bytes:
    """Return a JPEG file without EXIF, XMP, colour profile and comments; pixels are unchanged.

    The JFIF header and Adobe's marker, which affect colours, are kept. Data appended by cameras and
    phones (previews with their own EXIF, gain maps, videos) is removed. A file whose segments
    cannot be parsed is returned unchanged.
    """
    kept, at = [data[:2]], 2
    while data[at : at + 1] == b"\xff" and at + 1 < len(data):
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == END_OF_IMAGE:
            return b"".join([*kept, data[at : at + 2]])
        lost = marker < START_OF_FRAME or marker == 0xFF or 0xD0 <= marker <= START_OF_IMAGE
        after = AFTER_SCAN.search(data, end) if marker == START_OF_SCAN else None
        if lost or end > len(data) or (marker == START_OF_SCAN and after is None):
            return data
        end = after.start() if after else end
        dropped = APP1 <= marker <= APP15 and marker != APP14 or marker == COMMENT
        if not dropped:
            kept.append(data[at:end])
        at = end
    return data
