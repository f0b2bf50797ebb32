"""Decoding of hostile images, crops, and SDXL's size conditioning."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from open_supir.base.rng import keyed_rng
from open_supir.data.samples import (
    CropPolicy,
    ImageLimits,
    SampleError,
    TrainingSample,
    array_image,
    collate,
    crop_sample,
    decode_training_image,
)
from tests.data.made import encoded, jpeg, pixels

LIMITS = ImageLimits(min_side=32)
CLEAR = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
PHOTO = Image.fromarray(pixels(0, 128, 160))


def reason(data: bytes, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(SampleError) as caught:
        decode_training_image(data, limits)
    return caught.value.reason


def test_good_images_decode_exactly() -> None:
    """Lossless formats to the pixel, JPEG as Pillow decodes it, give or take rounding."""
    for name in ("PNG", "WEBP"):
        data = encoded(PHOTO, name, lossless=True)
        assert np.array_equal(decode_training_image(data, LIMITS), np.asarray(PHOTO))
    data = encoded(PHOTO, "JPEG", quality=95, subsampling=0)
    got, want = decode_training_image(data, LIMITS), np.asarray(Image.open(io.BytesIO(data)))
    assert np.abs(got.astype(int) - want).max() <= 1


def test_grey_and_progressive_jpegs_are_accepted() -> None:
    grey = decode_training_image(encoded(PHOTO.convert("L"), "JPEG"), LIMITS)
    assert grey.shape == (128, 160, 3) and np.array_equal(grey[..., 0], grey[..., 2])
    decode_training_image(encoded(PHOTO, "JPEG", progressive=True), LIMITS)
    decode_training_image(encoded(PHOTO.convert("L"), "PNG"), LIMITS)


def _flipped() -> bytes:
    data = bytearray(jpeg(0, 256, 256))
    for i in range(len(data) // 2, len(data) // 2 + 40):
        data[i] ^= 0x5A
    return bytes(data)


def _rotated(name: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(PHOTO, name, exif=exif)


def _profiled(name: str) -> bytes:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    return encoded(PHOTO, name, icc_profile=lab)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"", "not a JPEG, PNG or WebP image", id="empty"),
        pytest.param(b"<html>no</html>", "not a JPEG, PNG or WebP image", id="html"),
        pytest.param(b"GIF89a" + b"\0" * 99, "not a JPEG, PNG or WebP image", id="gif"),
        pytest.param(jpeg()[:20], "damaged image", id="first 20 bytes"),
        pytest.param(jpeg()[: int(len(jpeg()) * 0.6)], "damaged image", id="truncated 60 %"),
        pytest.param(jpeg()[: int(len(jpeg()) * 0.999)], "damaged image", id="truncated 99.9 %"),
        pytest.param(_flipped(), "damaged image", id="40 bytes flipped"),
        pytest.param(encoded(PHOTO, "PNG")[:2000], "damaged image", id="truncated png"),
        pytest.param(encoded(PHOTO, "WEBP")[:1000], "damaged image", id="truncated webp"),
        pytest.param(encoded(PHOTO.convert("CMYK"), "JPEG"), "not normalised", id="cmyk"),
        pytest.param(_rotated("JPEG"), "not normalised", id="exif jpeg"),
        pytest.param(_rotated("PNG"), "not normalised", id="exif png"),
        pytest.param(_rotated("WEBP"), "not normalised", id="exif webp"),
        pytest.param(_profiled("JPEG"), "not normalised", id="icc jpeg"),
        pytest.param(_profiled("PNG"), "not normalised", id="icc png"),
        pytest.param(encoded(PHOTO.convert("RGBA"), "PNG"), "not normalised", id="alpha"),
        pytest.param(encoded(CLEAR, "WEBP"), "not normalised", id="webp alpha"),
        pytest.param(encoded(PHOTO.convert("P"), "PNG"), "not normalised", id="palette"),
        pytest.param(
            encoded(Image.fromarray(np.zeros((64, 64), np.uint16)), "PNG"),
            "not normalised",
            id="16 bit",
        ),
        pytest.param(jpeg(0, 31, 64), "too small", id="small"),
    ],
)
def test_hostile_images_are_refused_by_reason(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def test_suffix_does_not_matter_magic_bytes_do() -> None:
    """PNG bytes stored as .jpg decode as PNG."""
    assert decode_training_image(encoded(PHOTO, "PNG"), LIMITS).shape == (128, 160, 3)


def test_srgb_profile_is_accepted() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    decode_training_image(encoded(PHOTO, "JPEG", icc_profile=srgb), LIMITS)


def bomb_png(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(1)
    row = b"\0" * (1 + side * 3)
    body = b"".join(packer.compress(row) for _ in range(8)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [6000, 9000, 20_000])
def test_pixel_bombs_are_refused_before_decoding(side: int) -> None:
    assert reason(bomb_png(side)) == "too large"


def test_jpeg_header_bomb_is_refused_before_decoding() -> None:
    data = bytearray(jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    assert reason(bytes(data)) == "too large"


NATIVE = {"native": 1.0, "area": 0.0, "whole": 0.0, "size_condition": "actual"}


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose pixels say where they are: (row, column, 0)."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.zeros_like(rows)], -1).astype(np.uint8)


def test_native_crop_is_told_where_it_lies() -> None:
    image, policy = coordinates(100, 200), CropPolicy(**NATIVE, flip_prob=0.0)
    for position in range(20):
        crop = crop_sample(array_image(image), 64, policy, keyed_rng(position))
        top, left = int(crop.pixels[0, 0, 0]), int(crop.pixels[0, 0, 1])
        assert crop.sizes.tolist() == [100, 200, top, left, 64, 64]
        assert crop.visible == pytest.approx(64 * 64 / (100 * 200))


def test_flip_mirrors_the_crop_coordinate() -> None:
    """A flipped crop is the crop at its told place of the flipped image."""
    image, policy = coordinates(100, 200), CropPolicy(**NATIVE, flip_prob=1.0)
    mirrored = image[:, ::-1]
    for position in range(20):
        crop = crop_sample(array_image(image), 64, policy, keyed_rng(position))
        top, left = int(crop.sizes[2]), int(crop.sizes[3])
        assert np.array_equal(crop.pixels, mirrored[top : top + 64, left : left + 64])


def test_whole_crop_shows_the_whole_square_image() -> None:
    policy = CropPolicy(native=0, area=0, whole=1, flip_prob=0.0, size_condition="actual")
    crop = crop_sample(array_image(pixels(0, 128, 128)), 64, policy, keyed_rng(0))
    assert crop.visible == 1 and crop.sizes.tolist() == [128, 128, 0, 0, 64, 64]
    assert crop.pixels.shape == (64, 64, 3)


def test_area_crop_shows_the_share_asked_for_in_resized_coordinates() -> None:
    policy = CropPolicy(native=0, area=1, whole=0, area_min=0.5, size_condition="actual")
    shares = []
    for position in range(200):
        crop = crop_sample(array_image(coordinates(128, 128)), 64, policy, keyed_rng(position))
        shares.append(crop.visible)
        scale = 64 / (128 * crop.visible**0.5)
        assert (crop.sizes[2:4] <= (128 * scale - 64) + 1).all() and (crop.sizes[2:4] >= 0).all()
    assert min(shares) >= 0.49 and max(shares) <= 1 and max(shares) - min(shares) > 0.4


def test_crops_are_never_enlarged() -> None:
    policy = CropPolicy(native=0, area=1, whole=0, area_min=0.01)
    sides = [
        crop_sample(array_image(pixels(0, 80, 80)), 64, policy, keyed_rng(i)).visible
        for i in range(50)
    ]
    assert min(sides) >= (64 / 80) ** 2 - 1e-9
    with pytest.raises(SampleError, match="too small"):
        crop_sample(array_image(pixels(0, 60, 200)), 64, CropPolicy(), keyed_rng(0))


def test_constant_condition_is_what_inference_sends() -> None:
    policy = CropPolicy(size_condition="constant", constant_size=1024)
    crop = crop_sample(array_image(pixels()), 64, policy, keyed_rng(0))
    assert crop.sizes.tolist() == [1024, 1024, 0, 0, 1024, 1024]


def test_mixed_ways_and_conditions_keep_their_odds() -> None:
    policy = CropPolicy(constant_prob=0.25, constant_size=1024)
    crops = [
        crop_sample(array_image(pixels(0, 128, 128)), 64, policy, keyed_rng(i)) for i in range(2000)
    ]
    constant = np.mean([c.sizes[0] == 1024 for c in crops])
    native = np.mean([c.visible == 0.25 for c in crops])
    whole = np.mean([c.visible == 1.0 for c in crops])
    assert abs(constant - 0.25) < 0.04 and abs(native - 0.6) < 0.05 and abs(whole - 0.1) < 0.04


def test_crops_depend_on_the_position_alone() -> None:
    policy = CropPolicy()
    first = [crop_sample(array_image(pixels()), 64, policy, keyed_rng("s", 0, p)) for p in range(5)]
    again = [
        crop_sample(array_image(pixels()), 64, policy, keyed_rng("s", 0, p))
        for p in reversed(range(5))
    ]
    for a, b in zip(first, reversed(again), strict=True):
        assert np.array_equal(a.pixels, b.pixels) and np.array_equal(a.sizes, b.sizes)


@pytest.mark.parametrize(
    "options",
    [{"native": -1}, {"native": 0, "area": 0, "whole": 0}, {"area_min": 0}, {"flip_prob": 2},
     {"size_condition": "guess"}],
)  # fmt: skip
def test_crop_policy_refuses_bad_values(options: dict) -> None:
    with pytest.raises(ValueError):
        CropPolicy(**options)


def test_collate_gives_the_batch_of_the_contract() -> None:
    sample = TrainingSample(
        hq=coordinates(64, 64),
        caption="c",
        sizes=np.arange(6, dtype=np.float32),
        is_negative=True,
        source="s",
        key="k",
        seed=2**63 - 1,
    )
    batch = collate([sample, sample])
    assert batch["hq"].shape == (2, 3, 64, 64) and batch["hq"].dtype == torch.uint8
    assert batch["hq"][0, 0, 5, 9] == 5 and batch["hq"][0, 1, 5, 9] == 9
    assert batch["sizes"].shape == (2, 6) and batch["sizes"].dtype == torch.float32
    assert batch["is_negative"].tolist() == [True, True]
    assert batch["seed"].tolist() == [2**63 - 1] * 2 and batch["seed"].dtype == torch.int64
    assert batch["caption"] == ["c", "c"] and batch["key"] == ["k", "k"]


def test_shuffled_channels_are_a_permutation_and_leave_the_crop_where_it_is() -> None:
    image = coordinates(100, 200)
    plain, shuffled = (
        crop_sample(
            array_image(image), 32, CropPolicy(**NATIVE, shuffle_channels=share), keyed_rng(3)
        )
        for share in (0.0, 1.0)
    )
    assert np.array_equal(plain.sizes, shuffled.sizes)
    assert np.array_equal(np.sort(plain.pixels, axis=2), np.sort(shuffled.pixels, axis=2))
