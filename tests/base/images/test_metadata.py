"""What a file says beside its pixels comes through from every kind of file to every other.

Files are made by Pillow and tifffile, and read back by Pillow.
"""

import io
import json
import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, PngImagePlugin

from open_supir.base.images import Photo, read_photo
from open_supir.base.images.metadata import Metadata
from open_supir.base.images.write import encode_photo, left_out
from open_supir.base.images.xmp import EXTENSION, RDF
from tests.other_tools import needs_exiftool

SIZE = (6, 9)
DETAILS, PLACE = 0x8769, 0x8825
ARTIST, COPYRIGHT = "Zo\u00eb Mu\u00f1oz".encode(), "\u732b".encode()
COMMENT = b"ASCII\0\0\0Grandmother at the lake"
MAKER_NOTE = bytes(range(256)) * 4
IPTC = b"\x1c\x02\x50\x00\x03Ana\x1c\x02\x78\x00\x0aOma am See"
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
    'tiff:Orientation="6" xmp:Rating="5"><tiff:ImageWidth>9</tiff:ImageWidth></rdf:Description>'
    '</rdf:RDF></x:xmpmeta>' + " " * 2000 + '<?xpacket end="w"?>'
).encode()  # fmt: skip
INPUTS = ["jpg", "png", "png16", "webp", "tif", "tif16"]
OUTPUTS = [("png", 8), ("png", 16), ("jpg", 8), ("webp", 8), ("tiff", 8), ("tiff", 16)]
RECORD = {"prompt": "<caf\u00e9> & \u732b"}


def camera(order: str = ">") -> bytes:
    """Return an EXIF block as a camera writes it, with a tag of a wrong type and a thumbnail."""
    thumbnail = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(thumbnail, "JPEG")

    def directory(at: int, entries: list[tuple[int, int, bytes]], following: int = 0) -> bytes:
        sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1}
        table, body = struct.pack(order + "H", len(entries)), b""
        start = at + 2 + 12 * len(entries) + 4
        for tag, kind, data in entries:
            table += struct.pack(order + "HHI", tag, kind, len(data) // sizes[kind])
            if len(data) <= 4:
                table += data.ljust(4, b"\0")
            else:
                table += struct.pack(order + "I", start + len(body))
                body += data + bytes(len(data) % 2)
        return table + struct.pack(order + "I", following) + body

    def short(*values: int) -> bytes:
        return struct.pack(f"{order}{len(values)}H", *values)

    def long(*values: int) -> bytes:
        return struct.pack(f"{order}{len(values)}I", *values)

    def main(details: int, place: int, second: int) -> bytes:
        return directory(
            8,
            [
                (0x010F, 2, b"Nikon\0"),
                (0x0112, 3, short(6)),
                (0x011A, 5, long(300, 1)),
                (0x011B, 5, long(300, 1)),
                (0x0128, 3, short(2)),
                (0x013B, 2, ARTIST + b"\0"),
                (0x8298, 2, COPYRIGHT + b"\0"),
                (DETAILS, 4, long(details)),
                (PLACE, 4, long(place)),
            ],
            second,
        )

    parts = [
        [
            (0x8827, 2, b"one hundred\0"),  # ISO is a number
            (0x9003, 2, b"2019:05:04 10:11:12\0"),
            (0x927C, 7, MAKER_NOTE),
            (0x9286, 7, COMMENT),
            (0xA001, 3, short(0xFFFF)),
            (0xA002, 3, short(4000)),
            (0xA003, 3, short(3000)),
        ],
        [(1, 2, b"N\0"), (2, 5, long(48, 1, 12, 1, 0, 1))],
    ]
    at = 8 + len(main(0, 0, 0))
    places = []
    body = b""
    for entries in parts:
        places.append(at + len(body))
        body += directory(places[-1], entries)
    second, picture = at + len(body), thumbnail.getvalue()
    offset = second + 2 + 12 * 2 + 4
    body += directory(second, [(0x0201, 4, long(offset)), (0x0202, 4, long(len(picture)))])
    header = (b"MM\0*" if order == ">" else b"II*\0") + long(8)
    return header + main(*places, second) + body + picture


def tiff_of(block: bytes, pixels: np.ndarray) -> bytes:
    """Return a TIFF whose first directory is the block's, with the pixels' own tags added."""
    order = "<" if block[:2] == b"II" else ">"
    file = io.BytesIO()
    tags: list[Any] = [(700, 1, len(XMP), XMP, True), (33723, 7, len(IPTC), IPTC, True)]
    tags += [("ExifTag", 4, 1, 0, True), ("GPSTag", 4, 1, 0, True), (274, 3, 1, 6, True)]
    for tag, text in ((271, b"Nikon"), (315, ARTIST), (33432, COPYRIGHT)):
        tags.append((tag, 2, len(text) + 1, text + b"\0", True))
    tifffile.imwrite(
        file, pixels, byteorder=order, photometric="rgb", metadata=None, resolution=(300, 300),
        resolutionunit=2, extratags=tags, software="scan",
    )  # fmt: skip
    # the inner directories: those of the block, at the place where the block begins in the file
    start = file.seek(0, io.SEEK_END)
    source = Image.Exif()
    source.load(block)
    moved = bytearray(block)
    pointers: dict[int, int] = {}
    for tag in (DETAILS, PLACE):
        at = struct.unpack_from(order + "I", block, _entry(block, 8, tag, order) + 8)[0]
        pointers[tag] = at + start
        for number in range(struct.unpack_from(order + "H", block, at)[0]):
            place = at + 2 + 12 * number
            _, kind, count = struct.unpack_from(order + "HHI", block, place)
            if {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1}[kind] * count > 4:
                value = struct.unpack_from(order + "I", block, place + 8)[0] + start
                struct.pack_into(order + "I", moved, place + 8, value)
    file.write(moved)
    data = bytearray(file.getvalue())
    first = struct.unpack_from(order + "I", data, 4)[0]
    for tag, at in pointers.items():
        struct.pack_into(order + "I", data, _entry(bytes(data), first, tag, order) + 8, at)
    return bytes(data)


def _entry(data: bytes, at: int, tag: int, order: str) -> int:
    count = struct.unpack_from(order + "H", data, at)[0]
    places = [at + 2 + 12 * number for number in range(count)]
    return next(p for p in places if struct.unpack_from(order + "H", data, p)[0] == tag)


def photograph(path: Path, kind: str, order: str = ">") -> Path:
    """Write a file of a kind, with everything that it can hold."""
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    image, block, file = Image.fromarray(pixels), camera(order), io.BytesIO()
    header = b"Exif\0\0"
    if kind == "jpg":
        resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC
        body = b"Photoshop 3.0\0" + resource + bytes(len(IPTC) % 2)
        segment = b"\xff\xed" + struct.pack(">H", len(body) + 2) + body
        image.save(file, "JPEG", exif=header + block, xmp=XMP, comment=ARTIST, dpi=(300, 300),
                   extra=segment)  # fmt: skip
    elif kind.startswith("png"):
        texts = PngImagePlugin.PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
        texts.add_text("Title", "Lake")
        texts.add_itxt("Comment", ARTIST.decode())
        resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC
        texts.add_text("Raw profile type iptc", f"\niptc\n {len(resource)}\n{resource.hex()}\n")
        if kind == "png16":
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        image.save(file, "PNG", exif=block, pnginfo=texts, dpi=(300, 300))
    elif kind == "webp":
        image.save(file, "WEBP", exif=block, xmp=XMP)
    else:
        deep = pixels.astype(np.uint16) * 257 if kind == "tif16" else pixels
        file.write(tiff_of(block, deep))
    path.write_bytes(file.getvalue())
    return path


def said(content: bytes) -> dict[str, Any]:
    """Read with Pillow what a written file says."""
    if content[:2] in (b"II", b"MM"):
        exif = Image.Exif()
        exif.load(content)  # a TIFF is a block with pixels
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            tags = file.pages.first.tags
            found = {"xmp": tags.valueof(700), "iptc": tags.valueof(33723)}
            across = tags.valueof(282)
            return found | {"exif": exif, "dpi": across[0] / across[1], "texts": {}}
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        texts = dict(getattr(image, "text", {}))
        raw = texts.pop("Raw profile type iptc", None)
        if raw is not None:
            iptc = bytes.fromhex("".join(raw.split("\n")[3:]))[12:].rstrip(b"\0")
        else:
            iptc = image.info.get("photoshop", {}).get(0x0404)
        if "comment" in image.info:
            texts["Comment"] = image.info["comment"].decode()
        dpi = image.info.get("dpi", [float(image.getexif().get(282, 0))])[0]
        return {"exif": image.getexif(), "xmp": image.info.get("xmp"), "iptc": iptc, "dpi": dpi,
                "texts": texts}  # fmt: skip


@pytest.mark.parametrize("format, bits", OUTPUTS)
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_what_a_file_says_is_said_by_its_result(
    tmp_path: Path, kind: str, format: str, bits: int, order: str
) -> None:
    photo = read_photo(photograph(tmp_path / "a", kind, order))
    large = Photo(rgb=torch.rand(3, 24, 36), metadata=photo.metadata)
    content = encode_photo(large, format=format, bits=bits, record=RECORD)
    found, exif = said(content), said(content)["exif"]
    assert [exif[tag].strip("\0").encode("latin-1") for tag in (0x013B, 0x8298)] == [
        ARTIST,
        COPYRIGHT,
    ]
    assert exif[0x010F] == "Nikon" and exif.get(0x0112, 1) == 1
    details = exif.get_ifd(DETAILS)
    assert details[0x9286] == COMMENT and details[0x927C] == MAKER_NOTE
    assert details[0x8827] == "one hundred"
    assert (details[0xA001], details[0xA002], details[0xA003]) == (1, 36, 24)
    assert exif.get_ifd(PLACE)[1] == "N"
    assert found["dpi"] == pytest.approx(300, abs=0.01)
    leaked = {0x0102, 0x0111, 0x0117, 0x8773}
    assert format == "tiff" or not leaked & set(exif)
    packet = found["xmp"].decode()
    assert 'xmp:Rating="5"' in packet and 'tiff:Orientation="1"' in packet
    assert "<tiff:ImageWidth>36</tiff:ImageWidth>" in packet
    assert (format == "webp" or kind == "webp") or found["iptc"] == IPTC
    if kind.startswith("png") and format == "png":
        assert found["texts"]["Title"] == "Lake"
    if kind in ("jpg", "png", "png16") and format in ("jpg", "png"):
        assert found["texts"]["Comment"] == ARTIST.decode()


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "tiff"])
def test_thumbnails_of_the_input_are_left_out(format: str) -> None:
    """The red one of `camera` would be seen by file managers."""
    photo = Photo(rgb=torch.zeros(3, 8, 8), metadata=Metadata(exif=camera()))
    content = encode_photo(photo, format=format)
    assert camera().count(b"\xff\xd8\xff") == 1
    assert content.count(b"\xff\xd8\xff") == (1 if format == "jpg" else 0)


@pytest.mark.parametrize("format", ["jpg", "webp", "tiff"])
def test_the_record_is_in_the_xmp_once(tmp_path: Path, format: str) -> None:
    """Also of a file that is restored again."""
    photo = read_photo(photograph(tmp_path / "a", "jpg"))
    for number in range(2):
        (tmp_path / "b").write_bytes(encode_photo(photo, format=format, record={"n": number}))
        photo = read_photo(tmp_path / "b")
    packet = photo.metadata.xmp.decode()
    ours = re.findall(r"<opensupir:restoration>(.*?)</opensupir:restoration>", packet)
    assert [json.loads(text) for text in ours] == [{"n": 1}]


@pytest.mark.parametrize(
    "metadata, format, words",
    [
        (Metadata(texts={"Title": "Lake"}), "webp", "Title"),
        (Metadata(texts={"Title": "Lake"}), "tiff", "Title"),
        (Metadata(iptc=IPTC), "webp", "IPTC"),
        (Metadata(exif=b"II*\0\xff\xff\xff\x7f"), "png", "EXIF"),
        (Metadata(exif=b"no EXIF at all"), "png", "EXIF"),
        (Metadata(xmp=b"<no"), "jpg", "XMP"),
    ],
)
def test_what_cannot_be_kept_is_said(metadata: Metadata, format: str, words: str) -> None:
    photo = Photo(rgb=torch.zeros(3, 8, 8), metadata=metadata)
    (line,) = left_out(photo, format)
    assert words in line and "left out" in line
    encode_photo(photo, format=format, record=RECORD)
    assert left_out(Photo(rgb=photo.rgb), format) == ()


@pytest.mark.parametrize(
    ("unit", "dpi"), [(None, None), (1, None), (2, (240.0, 240.0)), (3, (609.6, 609.6))]
)
def test_a_jpeg_without_a_resolution_gets_none(
    tmp_path: Path, unit: int | None, dpi: tuple[float, float] | None
) -> None:
    """Its header says none; EXIF counts where it names inches or centimetres."""
    block = Image.Exif()
    block[0x010F] = "Nikon"
    if unit is not None:
        block[0x011A], block[0x011B], block[0x0128] = 240.0, 240.0, unit
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg", exif=block)
    assert read_photo(tmp_path / "a.jpg").metadata.dpi == (dpi and pytest.approx(dpi))


def test_exif_beyond_a_jpeg_loses_its_longest_value_only(tmp_path: Path) -> None:
    pixels = np.zeros((*SIZE, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x010F] = "Nikon"
    exif.get_ifd(DETAILS)[0x927C] = bytes(70_000)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    photo = read_photo(tmp_path / "a.png")
    (line,) = left_out(photo, "jpg")
    assert "MakerNote" in line and left_out(photo, "webp") == ()
    found = said(encode_photo(photo, format="jpg"))["exif"]
    assert found[0x010F] == "Nikon" and 0x927C not in found.get_ifd(DETAILS)


def test_descriptions_that_count_pixels_are_left_out(tmp_path: Path) -> None:
    """tifffile would take the old shape for the new file's."""
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((*SIZE, 3), np.uint16), photometric="rgb")
    photo = read_photo(tmp_path / "a.tif")
    large = Photo(rgb=torch.rand(3, 24, 36), metadata=photo.metadata)
    content = encode_photo(large, format="tiff", bits=16)
    assert tifffile.imread(io.BytesIO(content)).shape == (24, 36, 3)


def test_xmp_beyond_a_jpegs_packet_goes_along_in_parts(tmp_path: Path) -> None:
    record, words = "<rdf:RDF xmlns:rdf='{}'>{}</rdf:RDF>", " ".join(map(str, range(30_000)))
    title, more = (
        record.format(RDF, f"<rdf:Description xmlns:a='b'><a:c>{said}</a:c></rdf:Description>")
        for said in ("Short", words)
    )
    metadata = Metadata(xmp=title.encode(), xmp_extension=more.encode())
    path, photo = tmp_path / "a.jpg", Photo(rgb=torch.rand(3, 8, 9), metadata=metadata)
    path.write_bytes(encode_photo(photo, format="jpg"))
    again = read_photo(path)
    assert again.metadata.xmp_extension == more.encode() and left_out(again, "png") == ()
    found = said(encode_photo(again, format="webp"))["xmp"].decode()
    assert "Short" in found and words in found and "HasExtendedXMP" not in found
    path.write_bytes(path.read_bytes().replace(EXTENSION, EXTENSION.upper(), 1))
    assert any("extended XMP left out" in line for line in left_out(read_photo(path), "jpg"))
    assert "Short" in said(encode_photo(read_photo(path), format="jpg"))["xmp"].decode()
    one = Photo(rgb=photo.rgb, metadata=Metadata(xmp=found.encode()))
    for record in (None, RECORD):
        path.write_bytes(encode_photo(one, format="jpg", record=record))
        assert (
            left_out(one, "jpg") == () and words in read_photo(path).metadata.xmp_extension.decode()
        )
        assert ("restoration" in read_photo(path).metadata.xmp.decode()) == (record is not None)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File")
@pytest.mark.parametrize("end", [0, 9, 20, 60, 200])
def test_a_damaged_block_does_not_stop_the_photograph(tmp_path: Path, end: int) -> None:
    block = b"Exif\0\0" + (camera()[:end] or b"no block at all")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=block)
    photo = read_photo(tmp_path / "a.jpg")
    for format in ("png", "jpg", "webp", "tiff"):
        encode_photo(photo, format=format)


@needs_exiftool
@pytest.mark.parametrize("format, bits", OUTPUTS)
@pytest.mark.parametrize("kind", INPUTS)
def test_exiftool_finds_no_fault(tmp_path: Path, kind: str, format: str, bits: int) -> None:
    photo = read_photo(photograph(tmp_path / "a", kind))
    path = tmp_path / f"b.{format}"
    path.write_bytes(encode_photo(photo, format=format, bits=bits, record=RECORD))
    command = ["exiftool", "-j", "-a", "-G1", "-s", "-struct", str(path)]
    (tags,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    faults = {key: value for key, value in tags.items() if "Warning" in key or "Error" in key}
    assert not {value for value in faults.values() if "MakerNote" not in str(value)}
    record = tags.get("PNG:Restoration") or tags["XMP-opensupir:Restoration"]
    assert record == RECORD or json.loads(record) == RECORD
    assert tags["IFD0:Artist"] == ARTIST.decode() and tags["XMP-xmp:Rating"] == 5


def test_names_in_a_turned_avif_are_kept_to_the_byte(tmp_path: Path) -> None:
    """The container turns it, its EXIF does not, so that Pillow would write the block anew."""
    ascii_name, path = b"A" * len(ARTIST), tmp_path / "a.avif"
    block = Image.Exif()
    block[0x0112], block[0x013B] = 6, ascii_name.decode()
    Image.new("RGB", (9, 6), "red").save(path, exif=block.tobytes())
    path.write_bytes(path.read_bytes().replace(ascii_name, ARTIST))
    photo = read_photo(path)
    assert photo.rgb.shape == (3, 9, 6)
    assert ARTIST + b"\0" in photo.metadata.exif
