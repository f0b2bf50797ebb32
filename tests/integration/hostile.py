"""Folders of files as people have them: good ones in every mode, and bad ones in every way."""

import io
import os
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

RANDOM = np.random.default_rng(0)
SIZE = (20, 28)  # h, w


def pixels(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape or (*SIZE, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """Return a small PNG file that decodes to very many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 100_000, 9)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def write_good(folder: Path) -> dict[str, tuple[int, int]]:
    """Write readable files of every mode; returns name -> (height, width) of what comes out."""
    rgb = Image.fromarray(pixels())
    exif = Image.Exif()
    exif[0x0112] = 6
    content = {
        "rgb.png": encoded(rgb, "PNG"),
        "rgb.jpg": encoded(rgb, "JPEG"),  # the same stem
        "RGB.JPG": encoded(rgb, "JPEG"),  # the same name, for some disks
        "grey.png": encoded(rgb.convert("L"), "PNG"),
        "bits.png": encoded(rgb.convert("1"), "PNG"),
        "palette.gif": encoded(rgb.convert("P"), "GIF"),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "alpha.png": encoded(Image.fromarray(pixels(*SIZE, 4)), "PNG"),
        "grey alpha.webp": encoded(Image.fromarray(pixels(*SIZE, 4)), "WEBP", lossless=True),
        "sixteen.png": imagecodecs.png_encode(pixels(*SIZE, 3).astype(np.uint16) * 257),
        "turned.jpg": encoded(rgb, "JPEG", exif=exif),
        "progressive.jpeg": encoded(rgb, "JPEG", progressive=True),
        "really a png.jpg": encoded(rgb, "PNG"),
        "frames.webp": encoded(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)]),
        "one.png": encoded(Image.fromarray(pixels(1, 1, 3)), "PNG"),
        "thin.png": encoded(Image.fromarray(pixels(1, 300, 3)), "PNG"),
        "line\nbreak.png": encoded(rgb, "PNG"),
        "\u732b \u00e9\U0001f408.png": encoded(rgb, "PNG"),
        "sub/deep/rgb.png": encoded(rgb, "PNG"),
        "-rf.png": encoded(rgb, "PNG"),
    }
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with open(os.path.join(os.fsencode(folder), b"broken \xff name.png"), "wb") as file:
        file.write(content["rgb.png"])
    tifffile.imwrite(folder / "float.tif", pixels().astype(np.float32) / 255, photometric="rgb")
    sizes = dict.fromkeys([*content, os.fsdecode(b"broken \xff name.png"), "float.tif"], SIZE)
    return sizes | {"turned.jpg": SIZE[::-1], "one.png": (1, 1), "thin.png": (1, 300)}


def write_bad(folder: Path) -> list[str]:
    """Write files that must fail, one line each; returns their names."""
    rgb = Image.fromarray(pixels())
    jpeg, png = encoded(rgb, "JPEG"), encoded(rgb, "PNG")
    webp, gif = encoded(rgb, "WEBP"), encoded(rgb.convert("P"), "GIF")
    tiff = encoded(rgb, "TIFF")
    flipped = bytearray(png)
    flipped[60] ^= 0xFF
    deep = imagecodecs.png_encode(pixels(*SIZE, 3).astype(np.uint16))
    content = {
        "empty.png": b"",
        "empty.jpg": b"",
        "zeros.png": b"\0" * 5000,
        "zeros.tif": b"\0" * 5000,
        "html.jpg": b"<html>404</html>",
        "text.png": b"just words\n" * 20,
        "half.jpg": jpeg[: len(jpeg) // 2],
        "half.png": png[: len(png) // 2],
        "half.webp": webp[: len(webp) // 2],
        "half.gif": gif[: len(gif) // 2],
        "half.tif": tiff[: len(tiff) // 2],
        "head.jpg": jpeg[:20],
        "head.png": png[:30],
        "head.tif": tiff[:8],
        "half deep.png": deep[: len(deep) // 2],
        "flipped.png": bytes(flipped),
        "bomb.png": bomb(60_000, 60_000),
        "wide bomb.png": bomb(70_000, 1),
        "big bomb.png": bomb(12_000, 12_000),
        "none wide.png": bomb(0, 10),
        "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "script.gif": b"GIF89a<script>alert(1)</script>",
        "pdf.jpg": b"%PDF-1.4\n%%EOF",
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "lfs.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "zip.png": b"PK\x03\x04" + b"\0" * 60,
        "elf.jpg": b"\x7fELF" + b"\0" * 60,
        "new\nline.png": b"nothing",
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    for name, value in (("nan.tif", np.nan), ("infinite.tif", np.inf), ("bright.tif", 900.0)):
        values = np.full((*SIZE, 3), 0.5, np.float32)
        values[3, 3] = value
        tifffile.imwrite(folder / name, values, photometric="rgb")
    tifffile.imwrite(folder / "complex.tif", np.ones(SIZE, np.complex64))
    os.symlink("loop.png", folder / "loop.png")
    os.symlink("nowhere.png", folder / "dangling.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "a folder.png").mkdir()
    (folder / "a folder.png" / "empty.webp").write_bytes(b"")
    os.symlink(folder, folder / "round")
    names = [*content, "nan.tif", "infinite.tif", "bright.tif", "complex.tif"]
    return [*names, "loop.png", "dangling.png", "pipe.png", "a folder.png/empty.webp"]
