"""The filter on files as people have them."""

import io
import json
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms

from open_supir.curation.filters import Filter, decode
from open_supir.curation.sources import InputSettings, list_units
from open_supir.curation.step_settings import tile_corners
from open_supir.curation.steps import FilterStep
from open_supir.curation.tables import read_rows
from open_supir.data.index import index_tar
from open_supir.data.samples import ImageLimits, SampleError, decode_training_image
from open_supir.data.shards import ShardEntry, ShardFolder
from tests.data.made import encoded, good_members, jpeg, pixels, tar_bytes
from tests.integration.hostile import write_bad, write_good

LIMITS = ImageLimits(min_side=16, max_side=1 << 20, max_pixels=10_000_000)


def _filter(source: Path, tmp_path: Path, **options) -> tuple[list[dict], list, dict]:
    """Filter one unit; returns its rows, the stored samples, and the statistics."""
    (unit,) = list_units(InputSettings(paths={"a": str(source)}), tmp_path / "work")
    folder = tmp_path / "unit"
    folder.mkdir()
    step = FilterStep(**{"size": 16, "min_side": 16} | options)
    statistics = dict(Filter(step)(unit, folder))
    shard = ShardFolder(folder, [ShardEntry(**statistics["shard"])])
    samples = [shard.read(0, n) for n in range(statistics["shard"]["count"])]
    return read_rows(folder / "rows.parquet"), samples, statistics


def test_every_readable_mode_is_stored_as_training_wants_it(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    sizes = write_good(folder)
    rows, samples, _ = _filter(folder, tmp_path, large="keep")
    by_name = {Path(row["path"]).name: row for row in rows}
    for sample in samples:
        decode_training_image(sample.image, LIMITS)
    assert by_name["turned.jpg"]["normalised"] == ["upright"]
    assert (by_name["turned.jpg"]["height"], by_name["turned.jpg"]["width"]) == sizes["turned.jpg"]
    assert "alpha" in by_name["alpha.png"]["normalised"]
    assert by_name["cmyk.jpg"]["normalised"] == by_name["grey.png"]["normalised"] == ["rgb"]
    assert by_name["one.png"]["reason"] == by_name["thin.png"]["reason"] == "too small"
    assert by_name["frames.webp"]["reason"] == "animation"
    stored = [row for row in rows if row["reason"] is None]
    assert len(stored) == len(samples) >= 14


def test_bad_files_are_counted_with_reasons_and_end_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = write_bad(folder)
    (folder / "good.jpg").write_bytes(jpeg())
    rows, samples, statistics = _filter(folder, tmp_path, max_pixels=10_000_000)
    reasons = {Path(row["path"]).name: row["reason"] for row in rows}
    assert reasons["good.jpg"] is None and len(samples) == 1
    listed = [name for name in names if name in reasons]
    assert len(listed) >= 20 and all(reasons[name] for name in listed)
    assert sum(statistics["refused"].values()) == len(rows) - 1
    assert reasons["bomb.png"] == reasons["big bomb.png"] == "too large"


def test_jpeg_with_flipped_bits_is_refused_though_pillow_reads_it() -> None:
    data = bytearray(jpeg(3, 256, 256))
    for place in range(2000, 2040):
        data[place] ^= 0x5A
    Image.open(io.BytesIO(bytes(data))).load()
    with pytest.raises(SampleError, match="damaged image"):
        decode(bytes(data), LIMITS)


def test_size_is_checked_before_decoding() -> None:
    data = jpeg(0, 12, 90)
    with pytest.raises(SampleError, match="too small"):
        decode(data[: data.index(b"\xff\xda") + 20], LIMITS)  # decoding would call it damaged


def test_foreign_profile_is_converted_and_noted() -> None:
    """Linear light with sRGB's primaries: 40 of 255 becomes 255 x srgb(0.157) = 111."""
    picture = Image.new("RGB", (32, 32), (200, 40, 40))
    decoded = decode(encoded(picture, "PNG", icc_profile=_linear_profile()), LIMITS)
    assert decoded.normalised == ["profile"]
    colour = decoded.picture.getpixel((0, 0))
    assert isinstance(colour, tuple) and abs(colour[1] - 111) <= 2


def test_png_of_16_bits_is_rounded_and_counted() -> None:
    """Not cut by a shift, by which a quarter of random values would be one level low."""
    values = np.random.default_rng(0).integers(0, 65536, (32, 40, 3), dtype=np.uint16)
    decoded = decode(imagecodecs.png_encode(values), LIMITS)
    assert decoded.normalised == ["8 bit"]
    np.testing.assert_array_equal(np.asarray(decoded.picture), np.rint(values / 257))


def _linear_profile() -> bytes:
    """Return sRGB's profile with its tone curves replaced by the identity."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    for entry in range(count):
        at = 132 + 12 * entry
        name, offset = bytes(data[at : at + 4]), int.from_bytes(data[at + 4 : at + 8], "big")
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            data[offset : offset + 12] = b"curv\0\0\0\0\0\0\0\0"
        if name == b"desc":
            size = int.from_bytes(data[at + 8 : at + 12], "big")
            text = bytes(data[offset : offset + size])
            wide = ("sRGB".encode("utf-16-be"), "Flat".encode("utf-16-be"))
            data[offset : offset + size] = text.replace(*wide)
    return bytes(data)


def test_jpeg_of_the_right_size_is_kept_to_the_bit(tmp_path: Path) -> None:
    """No second compression: only metadata goes."""
    folder = tmp_path / "in"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x010E] = "at home"
    data = encoded(Image.fromarray(pixels(0, 32, 40)), "JPEG", quality=88, exif=exif)
    (folder / "a.jpg").write_bytes(data)
    (row,), (sample,), _ = _filter(folder, tmp_path, size=32, min_side=32)
    assert row["jpeg_quality"] == 88 and row["normalised"] == []
    assert b"home" not in sample.image
    one, two = (np.asarray(Image.open(io.BytesIO(d))) for d in (data, sample.image))
    np.testing.assert_array_equal(one, two)


def test_larger_images_are_reduced_to_the_stored_side(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(0, 100, 150))
    (row,), (sample,), _ = _filter(folder, tmp_path, size=50, min_side=50)
    assert (row["height"], row["width"]) == (50, 75)
    assert (row["original_height"], row["original_width"]) == (100, 150)
    assert decode_training_image(sample.image, LIMITS).shape == (50, 75, 3)
    assert json.loads(sample.meta or b"")["original_size"] == [100, 150]


def test_tiles_show_native_pixels_and_have_their_own_rows(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    picture = pixels(0, 70, 110)
    Image.fromarray(picture).save(folder / "a.png")
    rows, samples, _ = _filter(folder, tmp_path, size=32, min_side=32, large="tiles", max_tiles=9)
    assert len(rows) == len(samples) == 6 and len({row["key"] for row in rows}) == 6
    for row, sample in zip(rows, samples, strict=True):
        top, left = (int(part) for part in row["tile"][1:].split("x"))
        tile = decode_training_image(sample.image, LIMITS).astype(int)
        error = np.abs(tile - picture[top : top + 32, left : left + 32])
        assert error.mean() < 4  # JPEG of quality 95 on noise of +-8


@pytest.mark.parametrize("size", [(1024, 1024), (2500, 3100), (1024, 9000), (5000, 1500)])
def test_tiles_do_not_overlap_and_stay_inside(size: tuple[int, int]) -> None:
    corners = tile_corners(*size, size=1024, most=4)
    assert 1 <= len(corners) <= 4
    for number, (top, left) in enumerate(corners):
        assert 0 <= top <= size[0] - 1024 and 0 <= left <= size[1] - 1024
        for other in corners[:number]:
            assert abs(top - other[0]) >= 1024 or abs(left - other[1]) >= 1024


def test_tars_of_img2dataset_bring_captions_licences_and_bad_members(tmp_path: Path) -> None:
    meta = json.dumps({"url": "https://example.org/a", "license": "CC-BY", "width": 9}).encode()
    members = [("000.jpg", jpeg(0)), ("000.txt", b"a cat"), ("000.json", meta)]
    members += [("001.jpg", b"nothing"), ("001.txt", b"a dog"), ("002.txt", b"no image")]
    members += [("003.jpg", jpeg(3)), ("003.json", b"{"), ("stats.parquet", b"x")]
    (tmp_path / "00000.tar").write_bytes(tar_bytes(members))
    rows, (sample,), _ = _filter(tmp_path / "00000.tar", tmp_path)
    reasons = {row["path"].rpartition("::")[2]: row["reason"] for row in rows}
    assert reasons == {
        "000": None, "001": "damaged image", "002": "tar member refused", "003": "text damaged",
    }  # fmt: skip
    assert rows[0]["caption"] == "a cat" and rows[0]["licence"] == "CC-BY"
    kept = json.loads(sample.meta or b"")
    assert kept["url"] == "https://example.org/a" and "width" not in kept


def test_damaged_tar_gives_what_can_be_read_and_says_so(tmp_path: Path) -> None:
    data = tar_bytes(good_members(4))
    path = tmp_path / "cut.tar"
    path.write_bytes(data[: len(data) * 2 // 3])
    rows, samples, _ = _filter(path, tmp_path)
    readable = len(index_tar(path).rows)
    assert len(samples) == readable >= 1
    assert [row["reason"] for row in rows].count("tar damaged") == 1


def test_every_refused_member_of_a_tar_is_listed(tmp_path: Path) -> None:
    members = [*good_members(2), *((f"bad key {n}.jpg", jpeg(n)) for n in range(9))]
    (tmp_path / "t.tar").write_bytes(tar_bytes(members))
    rows, _, statistics = _filter(tmp_path / "t.tar", tmp_path)
    assert statistics["refused"] == {"tar member refused": 9} and len(rows) == 2 + 9


def test_camera_files_with_previews_are_stored_without_these(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    previews = [Image.fromarray(pixels(5, 16, 16))]
    for number, side in enumerate((16, 24)):  # kept as it is, and reduced
        image = Image.fromarray(pixels(number, side, side))
        image.save(tmp_path / f"in/{number}.jpg", "MPO", save_all=True, append_images=previews)
    (tmp_path / "in/0.jpg").write_bytes((tmp_path / "in/0.jpg").read_bytes() + jpeg(1) + b"mp4")
    rows, samples, _ = _filter(tmp_path / "in", tmp_path)
    assert [row["reason"] for row in rows] == [None, None]
    kept = Image.open(io.BytesIO(samples[0].image))
    assert kept.format == "JPEG" and b"mp4" not in samples[0].image
    assert samples[0].image.count(b"\xff\xd8\xff") == 1
    with Image.open(tmp_path / "in/0.jpg") as original:
        assert np.array_equal(np.asarray(kept), np.asarray(original.convert("RGB")))


@pytest.mark.parametrize("options, words", [
    ({"size": 64, "min_side": 32}, "never enlarged"),
    ({"large": "crop"}, "resize, tiles or keep"),
    ({"quality": 0}, "quality must be 1 to 100"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FilterStep(**options)
