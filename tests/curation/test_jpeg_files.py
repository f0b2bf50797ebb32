import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from open_supir.base.images.jpeg_quality import jpeg_quality
from open_supir.curation.jpeg_files import strip_metadata
from tests.data.made import encoded, jpeg, pixels


@pytest.mark.parametrize("quality", [5, 20, 49, 50, 51, 75, 90, 95, 97])
@pytest.mark.parametrize("grey", [False, True])
def test_quality_of_files_by_pillow_is_the_one_they_were_saved_at(quality: int, grey: bool) -> None:
    picture = Image.fromarray(pixels())
    data = encoded(picture.convert("L") if grey else picture, "JPEG", quality=quality)
    with Image.open(io.BytesIO(data)) as image:
        assert jpeg_quality(image.quantization) == quality  # type: ignore[attr-defined]


def test_quality_of_other_tables_is_the_nearest() -> None:
    """Tables a little off those of quality 80, as other encoders write."""
    with Image.open(io.BytesIO(encoded(Image.fromarray(pixels()), "JPEG", quality=80))) as image:
        tables = {n: [v + 1 for v in t] for n, t in image.quantization.items()}  # type: ignore[attr-defined]
    assert 75 <= jpeg_quality(tables) <= 80


def test_tables_of_a_wrong_size_are_refused() -> None:
    with pytest.raises(ValueError, match="64"):
        jpeg_quality({0: [1, 2, 3]})


def test_metadata_goes_and_every_pixel_stays() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    data = encoded(Image.fromarray(pixels()), "JPEG", quality=90, exif=exif, comment=b"psst")
    stripped = strip_metadata(data)
    assert b"secret" in data and b"psst" in data
    assert b"secret" not in stripped and b"psst" not in stripped and b"JFIF" in stripped
    np.testing.assert_array_equal(simplejpeg.decode_jpeg(stripped), simplejpeg.decode_jpeg(data))


def test_adobe_marker_stays_because_colours_depend_on_it() -> None:
    data = jpeg()
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"
    assert adobe in strip_metadata(data[:2] + adobe + data[2:])


@pytest.mark.parametrize("data", [jpeg()[:9], b"\xff\xd8\xff\xe1\xff\xff", b"\xff\xd8\xff\xff\0\0"])
def test_broken_segments_are_left_alone(data: bytes) -> None:
    assert strip_metadata(data) == data


def test_file_without_metadata_is_returned_to_the_byte() -> None:
    assert strip_metadata(jpeg()) == jpeg()


def test_what_follows_the_picture_goes_progressive_or_with_restarts() -> None:
    picture = Image.fromarray(pixels(3))
    for options in ({"progressive": True}, {"restart_marker_blocks": 2}):
        data = encoded(picture, "JPEG", **options)
        assert strip_metadata(data + jpeg(4) + b"film") == data
