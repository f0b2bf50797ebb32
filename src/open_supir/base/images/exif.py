"""EXIF blocks, changed in place: everything unknown here is kept byte for byte.

A block has the structure of a TIFF file: directories of entries, some of which point to inner
directories. Libraries that write it anew lose what they do not know: Pillow letters beyond ASCII,
piexif unknown tags, all of them makers' notes with positions inside.
"""

import io
import struct
from dataclasses import dataclass
from typing import NamedTuple

from PIL import ExifTags

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
WIDE_SIZES = {16: 8, 17: 8, 18: 8}  # of BigTIFF only
BYTE, LONG, UNDEFINED, LONG8 = 1, 4, 7, 16
DESCRIPTION, ORIENTATION, XMP, IPTC, PHOTOSHOP = 0x010E, 0x0112, 700, 33723, 34377
DETAILS, PLACE, INTEROP = 0x8769, 0x8825, 0xA005  # the inner directories
COLOUR_SPACE, SRGB, UNCALIBRATED = 0xA001, 1, 0xFFFF
RESOLUTION = (0x011A, 0x011B, 0x0128)  # across, down, and the unit: 1 none, 2 inch, 3 cm
# What describes the pixels of a TIFF, or is kept elsewhere (XMP, IPTC, profile, Photoshop's layers)
PIXEL_TAGS = frozenset(
    [*range(254, 260), *range(262, 267), 273, *range(277, 282), 284, *range(288, 294), 297, 301]
    + [*range(317, 348), *range(512, 522), *range(529, 533), XMP, 32997, 32998, 33421, 33422]
    + [IPTC, PHOTOSHOP, 34675, 37724, *range(50706, 52600)]
)


class Form(NamedTuple):
    """How a structure is laid out: byte order, and whether its positions have 64 bits."""

    order: str
    is_wide: bool = False

    @property
    def head(self) -> str:
        """Format of a directory's number of entries."""
        return self.order + ("Q" if self.is_wide else "H")

    @property
    def word(self) -> str:
        """Format of positions and counts."""
        return self.order + ("Q" if self.is_wide else "I")

    @property
    def room(self) -> int:
        """Bytes of a value that lies in its entry."""
        return 8 if self.is_wide else 4


@dataclass(frozen=True)
class Entry:
    """One entry: its values in the structure's byte order, where it lies, and its directory."""

    kind: int
    data: bytes | memoryview
    at: int = 0
    inner: "dict[int, Entry] | None" = None


Directory = dict[int, Entry]


@dataclass(frozen=True)
class Tree:
    """The first directory with all inner ones; `link` is where the place of the next is written."""

    form: Form
    root: Directory
    link: int
    end: int


class _DirectoryReader:
    """Reads directories; `end` is past everything read so far."""

    def __init__(self, data: memoryview, form: Form) -> None:
        self.data, self.form = data, form
        self.end, self.total, self.met = 0, 0, set()

    def directory(self, at: int) -> tuple[Directory, int]:
        """Read the directory at a position; also returns where its link is."""
        form, found = self.form, {}
        (count,) = struct.unpack_from(form.head, self.data, at)
        at += struct.calcsize(form.head)
        self.met.add(at)
        link = at + count * (4 + 2 * form.room)
        if link > len(self.data):
            raise ValueError("a directory ends too early")
        for place in range(at, link, 4 + 2 * form.room):
            entry = self._entry(place)
            if entry is not None:
                found[struct.unpack_from(form.order + "H", self.data, place)[0]] = entry
        self.end = max(self.end, min(link + form.room, len(self.data)))
        return found, link

    def _entry(self, place: int) -> Entry | None:
        """Read one entry; None if its values are not there or of an unknown kind."""
        form = self.form
        tag, kind = struct.unpack_from(form.order + "HH", self.data, place)
        (count,) = struct.unpack_from(form.word, self.data, place + 4)
        length = (SIZES | WIDE_SIZES).get(kind, 0) * count
        start = place + 4 + form.room
        if length > form.room:
            (start,) = struct.unpack_from(form.word, self.data, start)
        self.total += length
        if not length or start + length > len(self.data):
            return None
        if self.total > 2 * len(self.data):
            raise ValueError("its values overlap")
        self.end, inner = max(self.end, start + length), None
        if tag in (DETAILS, PLACE, INTEROP):
            whole = {2: "H", 4: "I", 8: "Q"}.get(length)
            where = struct.unpack_from(form.order + whole, self.data, start)[0] if whole else 0
            if not 8 <= where < len(self.data) - 2 or where in self.met:
                return None
            inner = self.directory(where)[0]
        return Entry(kind, self.data[start : start + length], place, inner)


def read(data: bytes | memoryview) -> Tree:
    """Read an EXIF block, or the first page of a TIFF file.

    Raises:
        ValueError: It is damaged.
    """
    view = memoryview(data)
    order = {b"II": "<", b"MM": ">"}.get(bytes(view[:2]))
    if order is None:
        raise ValueError("it has no header")
    try:
        form = Form(order, struct.unpack_from(order + "H", view, 2)[0] == 43)
        reader = _DirectoryReader(view, form)
        root, link = reader.directory(struct.unpack_from(form.word, view, form.room)[0])
    except (struct.error, RecursionError) as error:
        raise ValueError("it ends too early") from error
    return Tree(form, root, link, reader.end)


def inner(directory: Directory, tag: int) -> Directory:
    """Return the directory that a tag points to; empty where there is none."""
    return (directory[tag].inner or {}) if tag in directory else {}


def packed(directory: Directory, form: Form, at: int) -> bytes:
    """Lay a directory and its inner ones out for position `at` of a file."""
    start = at + struct.calcsize(form.head) + len(directory) * (4 + 2 * form.room) + form.room
    table, body = struct.pack(form.head, len(directory)), bytearray()
    for tag, entry in sorted(directory.items()):
        kind, count = entry.kind, len(entry.data) // (SIZES | WIDE_SIZES)[entry.kind]
        where = start + len(body)
        if entry.inner is not None:
            kind, count = LONG8 if form.is_wide else LONG, 1
            value = struct.pack(form.word, where)
            body += packed(entry.inner, form, where)
        elif len(entry.data) > form.room:
            value = struct.pack(form.word, where)
            body += bytes(entry.data) + bytes(len(entry.data) % 2)
        else:
            value = bytes(entry.data).ljust(form.room, b"\0")
        table += struct.pack(form.order + "HH", tag, kind) + struct.pack(form.word, count) + value
    return table + bytes(form.room) + bytes(body)


def block_of(directory: Directory, order: str) -> bytes:
    """Return an EXIF block with these entries; nothing of none."""
    if not directory:
        return b""
    header = b"II*\0" if order == "<" else b"MM\0*"
    return header + struct.pack(order + "I", 8) + packed(directory, Form(order), 8)


def of_tiff(tree: Tree) -> bytes:
    """Return the metadata of a TIFF file as an EXIF block."""
    kept = {tag: e for tag, e in tree.root.items() if tag not in PIXEL_TAGS and e.kind in SIZES}
    return block_of(kept, tree.form.order)


def into_tiff(file: io.BytesIO, added: Directory) -> None:
    """Add entries to the first directory of a TIFF file of the same byte order.

    The directory is written anew at the end; what the file itself says of its pixels stays.
    """
    tree = read(file.getbuffer())
    own = {tag: Entry(e.kind, bytes(e.data), e.at) for tag, e in tree.root.items()}
    form = tree.form
    del tree  # it holds the file's buffer
    at = file.seek(0, io.SEEK_END)
    at += file.write(bytes(at % 2))
    file.write(packed({**added, **own}, form, at))
    file.seek(form.room)
    file.write(struct.pack(form.word, at))


def updated(block: bytes, size: tuple[int, int], *, is_srgb: bool) -> bytes:
    """Make a block true of a result of (H, W): upright, of that size, without a thumbnail.

    Raises:
        ValueError: The block is damaged.
    """
    tree, (height, width) = read(block), size
    order, out = tree.form.order, bytearray(block[: tree.end])
    if tree.form.is_wide:
        raise ValueError("it has positions of 64 bits")
    if tree.link + 4 <= len(out):
        struct.pack_into(order + "I", out, tree.link, 0)  # no second directory
    details = inner(tree.root, DETAILS)
    space = SRGB if is_srgb else UNCALIBRATED
    for directory, values in (
        (tree.root, {ORIENTATION: 1, 0x0100: width, 0x0101: height}),
        (details, {COLOUR_SPACE: space, 0xA002: width, 0xA003: height}),
    ):
        for tag in values.keys() & directory.keys():
            kind, end = (3, "H2x") if values[tag] < 65536 else (LONG, "I")
            place = directory[tag].at + 2
            struct.pack_into(f"{order}HI{end}", out, place, kind, 1, values[tag])
    index = inner(details, INTEROP).get(1)
    if is_srgb and index is not None and len(index.data) == 4:
        out[index.at + 8 : index.at + 12] = b"R98\0"  # DCF basic: sRGB
    return bytes(out)


def limited(block: bytes, limit: int) -> tuple[bytes, list[str]]:
    """Leave out the longest values until a block has at most `limit` bytes; returns their names."""
    names: list[str] = []
    while len(block) > limit:
        tree = read(block)
        places = [tree.root, inner(tree.root, DETAILS), inner(tree.root, PLACE)]
        lengths = {
            (number, tag): len(entry.data)
            for number, directory in enumerate(places)
            for tag, entry in directory.items()
            if entry.inner is None
        }
        if not lengths:
            return b"", [*names, "the rest"]
        number, tag = max(lengths, key=lambda key: lengths[key])
        del places[number][tag]
        known = ExifTags.GPSTAGS if number == 2 else ExifTags.TAGS
        names.append(known.get(tag, f"{tag:#06x}"))
        block = block_of(tree.root, tree.form.order)
    return block, names


def resolution(tree: Tree) -> tuple[float, float] | None:
    """Return pixels per inch across and down; None where the file does not say."""
    across, down, unit = (tree.root.get(tag) for tag in RESOLUTION)
    if across is None or down is None or len(across.data) != 8 or len(down.data) != 8:
        return None
    number = 2 if unit is None else int.from_bytes(
        unit.data[:2], "little" if tree.form.order == "<" else "big"
    )  # fmt: skip
    values = []
    for entry in (across, down):
        above, below = struct.unpack(tree.form.order + "II", entry.data)
        values.append((above / below if below else 0.0) * (2.54 if number == 3 else 1))
    return (values[0], values[1]) if number in (2, 3) and min(values) > 0 else None


def with_resolution(block: bytes, dpi: tuple[float, float]) -> bytes:
    """Return a block with the resolution in pixels per inch; only an empty one is changed."""
    if block:
        return block
    values = [struct.pack("<II", round(value * 1000), 1000) for value in dpi]
    entries = [Entry(5, values[0]), Entry(5, values[1]), Entry(3, struct.pack("<H", 2))]
    return block_of(dict(zip(RESOLUTION, entries, strict=True)), "<")
