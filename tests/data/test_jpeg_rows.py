"""Rows of a JPEG: exactly those of a full decode, whatever the file; damage in them is found."""

import random
import re

import numpy as np
import pytest
import simplejpeg
from PIL import Image

import open_supir.data.jpeg_rows as jpeg_rows
from open_supir.data.jpeg_rows import decode_rows, encode_jpeg
from tests.data.made import encoded, pixels

HEIGHT, WIDTH = 203, 150  # whole blocks in neither direction


def photo(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    return Image.fromarray(pixels(seed, height, width))


def full(data: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(data, colorspace="RGB")


def decoded_rows(data: bytes, top: int, bottom: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many rows the decoder was asked for."""
    asked = []
    decode = simplejpeg.decode_jpeg

    def spy(part: bytes, **options: str) -> np.ndarray:
        asked.append(simplejpeg.decode_jpeg_header(part)[0])
        return decode(part, **options)

    monkeypatch.setattr(jpeg_rows.simplejpeg, "decode_jpeg", spy)
    decode_rows(data, top, bottom)
    monkeypatch.undo()
    return asked[-1]


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "grey"])
def test_rows_equal_those_of_the_whole(
    subsampling: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, at every edge, with chroma that is interpolated over block edges."""
    image, options = photo(), {"subsampling": subsampling}
    if subsampling == "grey":
        image, options = image.convert("L"), {}
    data = encoded(image, "JPEG", quality=90, restart_marker_rows=rows, **options)
    want, rng = full(data), random.Random(rows)
    for _ in range(40):
        top = rng.randrange(HEIGHT)
        bottom = rng.randint(top + 1, HEIGHT)
        assert np.array_equal(decode_rows(data, top, bottom), want[top:bottom])
    assert decoded_rows(data, 0, 20, monkeypatch) < HEIGHT


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 7}, {"optimize": True}]
)
def test_files_without_markers_at_row_ends_are_decoded_whole(
    options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(photo(), "JPEG", quality=90, **options)
    assert np.array_equal(decode_rows(data, 64, 128), full(data)[64:128])
    assert decoded_rows(data, 64, 128, monkeypatch) == HEIGHT


def test_encoder_of_the_store_marks_rows_and_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    image = pixels(0, 512, 512)
    data = encode_jpeg(image)
    plain = encoded(Image.fromarray(image), "JPEG", quality=95, subsampling=0)
    assert np.array_equal(full(data), full(plain)) and len(data) < 1.01 * len(plain)
    assert decoded_rows(data, 128, 256, monkeypatch) == 128 + 2 * 8


def test_embedded_thumbnail_is_not_mistaken_for_the_image() -> None:
    """An EXIF segment may hold a whole JPEG, with headers and restart markers of its own."""
    data = encode_jpeg(pixels(0, HEIGHT, WIDTH))
    inner = encode_jpeg(pixels(1, 40, 40))
    segment = b"\xff\xe1" + (len(inner) + 8).to_bytes(2) + b"Exif\0\0" + inner
    data = data[:2] + segment + data[2:]
    assert np.array_equal(decode_rows(data, 100, 120), full(data)[100:120])


def marked() -> tuple[bytes, list[int]]:
    data = encode_jpeg(pixels(0, HEIGHT, WIDTH))
    return data, [m.start() for m in re.finditer(rb"\xff[\xd0-\xd7]", data)]


@pytest.mark.parametrize("share", [0.2, 0.6, 0.999])
def test_file_that_ends_early_is_damage_even_behind_the_rows(share: float) -> None:
    data, _ = marked()
    with pytest.raises(ValueError):
        decode_rows(data[: int(len(data) * share)], 0, 8)


def test_missing_or_misnumbered_markers_are_damage() -> None:
    data, places = marked()
    lost = data[: places[5]] + data[places[5] + 2 :]
    wrong = bytearray(data)
    wrong[places[5] + 1] ^= 1
    for broken in (lost, bytes(wrong)):
        with pytest.raises(ValueError):
            decode_rows(broken, 60, 120)


def test_flipped_bytes_in_the_rows_are_damage_as_in_the_whole() -> None:
    found = []
    for seed in range(40):
        data, places = marked()
        bad, rng = bytearray(data), random.Random(seed)
        start = rng.randrange(places[12], places[13] - 40)  # within rows 104 to 112
        for i in range(start, start + 40):
            bad[i] ^= 0x5A
        results = []
        for decode in (full, lambda d: decode_rows(d, 96, 128)):
            try:
                decode(bytes(bad))
                results.append("fine")
            except ValueError:
                results.append("damage")
        assert results[0] == results[1]
        found.append(results[0])
    assert found.count("damage") >= 36  # 40 flips that still make a valid code are rare


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_in_the_headers_do_no_harm(seed: int) -> None:
    """Either the rows of a full decode, or ValueError; never another error, never other rows."""
    data, places = marked()
    rng = random.Random(seed)
    for _ in range(150):
        bad = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            bad[rng.randrange(2, 640)] = rng.randrange(256)
        try:
            rows = decode_rows(bytes(bad), 64, 96)
        except ValueError:
            continue
        try:
            whole = full(bytes(bad))
        except ValueError:
            continue  # damage behind the rows
        assert np.array_equal(rows, whole[64:96])
