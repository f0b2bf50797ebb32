"""Training samples: strict decoding, crops, SDXL size conditioning, collation.

Shapes: B batch, H W crop size. Pixel arrays are (H, W, 3) uint8 until `collate`.
"""

import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageCms
from torch import Tensor
from torch.utils.data import default_collate

from open_supir.base.images.decode import DECODE_ERRORS
from open_supir.data.jpeg_rows import decode_rows

Rng = np.random.Generator
PRECOMPUTED = ("latents", "context", "pooled")


class Batch(TypedDict):
    """One batch, for training and validation alike."""

    hq: Tensor  # (B, 3, H, W) uint8
    caption: list[str]
    sizes: Tensor  # (B, 6) float32: original (h, w), crop (top, left), target (h, w)
    is_negative: Tensor  # (B,) bool
    source: list[str]
    key: list[str]
    seed: Tensor  # (B,) int64 on the CPU, from (run seed, position)
    tokens: NotRequired[Tensor]  # (B, T) int64 of the captions, if text is encoded in the step
    lq: NotRequired[Tensor]  # (B, 3, H, W) uint8: low-quality images of real pairs
    paired: NotRequired[Tensor]  # (B,) bool: whose lq counts; absent if every one's does
    latents: NotRequired[Tensor]  # (B, z, h, w) of hq, if precomputed
    context: NotRequired[Tensor]  # (B, T, D) of the captions, if precomputed
    pooled: NotRequired[Tensor]  # (B, P), with context


class TrainingSample(TypedDict):
    """One sample before collation."""

    hq: np.ndarray  # (H, W, 3) uint8
    caption: str
    sizes: np.ndarray  # (6,) float32
    is_negative: bool
    source: str
    key: str
    seed: int
    lq: NotRequired[np.ndarray]  # (H, W, 3) uint8
    paired: NotRequired[bool]
    latents: NotRequired[Tensor]
    context: NotRequired[Tensor]
    pooled: NotRequired[Tensor]


class SampleError(ValueError):
    """A sample is bad; it is skipped and counted under `reason`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """Bounds on the image size, checked in the header before any pixel is decoded."""

    min_side: int = 64
    max_side: int = 8192
    max_pixels: int = 32_000_000

    def check(self, height: int, width: int) -> None:
        """Raise SampleError unless an image of this size is within the bounds."""
        if min(height, width) < self.min_side:
            raise SampleError("too small", f"{height}x{width}, minimum side {self.min_side}")
        if max(height, width) > self.max_side or height * width > self.max_pixels:
            raise SampleError("too large", f"{height}x{width}")


class TrainingImage(NamedTuple):
    """An image with a checked header; `rows(top, bottom)` decodes (bottom - top, W, 3) uint8, of a
    pair (bottom - top, W, 6)."""

    height: int
    width: int
    rows: Callable[[int, int], np.ndarray]


def open_training_image(data: bytes, limits: ImageLimits) -> TrainingImage:
    """Check the header of a normalised 8-bit RGB or grey image and prepare to decode its rows.

    The magic bytes decide the format. Whatever the dataset builder should have normalised (CMYK,
    alpha, palette, 16 bit, EXIF rotation, colour profiles other than sRGB) is refused, not
    repaired.

    Raises:
        SampleError: The image is refused or damaged; `rows` raises it too.
    """
    if data[:3] == b"\xff\xd8\xff":
        return _open_jpeg(data, limits)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return array_image(_decode_by_pillow(data, "PNG", limits))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return array_image(_decode_by_pillow(data, "WEBP", limits))
    raise SampleError("not a JPEG, PNG or WebP image", repr(data[:12]))


def decode_training_image(data: bytes, limits: ImageLimits) -> np.ndarray:
    """Decode a whole image to (H, W, 3) uint8 by the rules of `open_training_image`."""
    image = open_training_image(data, limits)
    return image.rows(0, image.height)


def array_image(pixels: np.ndarray) -> TrainingImage:
    """Wrap decoded (H, W, 3) pixels."""
    return TrainingImage(pixels.shape[0], pixels.shape[1], lambda top, bottom: pixels[top:bottom])


def _open_jpeg(data: bytes, limits: ImageLimits) -> TrainingImage:
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise SampleError("damaged image", str(error)) from error
    limits.check(int(height), int(width))
    if colour not in ("YCbCr", "RGB", "Gray"):
        raise SampleError("not normalised", f"{colour} JPEG")
    if max(data.find(mark, 0, 64 << 10) for mark in (b"Exif\0\0", b"ICC_PROFILE\0")) >= 0:
        try:
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                _check_normalised(image)
        except DECODE_ERRORS as error:
            raise _as_sample_error(error) from error

    def rows(top: int, bottom: int) -> np.ndarray:
        try:
            return decode_rows(data, top, bottom)
        except (ValueError, MemoryError) as error:
            raise SampleError("damaged image", str(error)) from error

    return TrainingImage(int(height), int(width), rows)


def _decode_by_pillow(data: bytes, name: str, limits: ImageLimits) -> np.ndarray:
    """Check size and mode of a PNG or WebP image in the header, then decode it with Pillow."""
    if name == "PNG":
        _check_png_header(data, limits)
    try:
        with Image.open(io.BytesIO(data), formats=[name]) as image:
            limits.check(image.height, image.width)
            if image.mode not in ("RGB", "L") or "transparency" in image.info:
                raise SampleError("not normalised", f"mode {image.mode}")
            if getattr(image, "is_animated", False):
                raise SampleError("not normalised", "animation")
            _check_normalised(image)
            return np.array(image.convert("RGB"))
    except DECODE_ERRORS as error:
        raise _as_sample_error(error) from error


def _check_png_header(data: bytes, limits: ImageLimits) -> None:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise SampleError("damaged image", "PNG without a header")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    limits.check(height, width)
    if depth != 8 or colour not in (0, 2):
        raise SampleError("not normalised", f"PNG of {depth} bits, colour type {colour}")


def _check_normalised(image: Image.Image) -> None:
    if image.getexif().get(0x0112, 1) != 1:
        raise SampleError("not normalised", "EXIF rotation")
    icc = image.info.get("icc_profile")
    if icc:
        try:
            name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(icc)))
        except (ImageCms.PyCMSError, OSError) as error:
            raise SampleError("not normalised", f"colour profile: {error}") from error
        if "srgb" not in name.lower():
            raise SampleError("not normalised", f"colour profile {name.strip()[:60]!r}")


def _as_sample_error(error: Exception) -> SampleError:
    if isinstance(error, SampleError):
        return error
    return SampleError("damaged image", str(error) or type(error).__name__)


@dataclass(frozen=True, kw_only=True)
class CropPolicy:
    """How training crops are cut, and the size conditioning that SDXL gets with them.

    Three methods are weighted against each other: `native` cuts at full resolution, `area` cuts a
    square that covers `area_min` to 1 of the image and shrinks it, `whole` shrinks the largest
    square.
    `size_condition` is "actual", "constant" (always `constant_size`, as at inference) or "mix"
    (constant with probability `constant_prob`).
    `shuffle_channels` is the probability of permuting red, green and blue. It is meant for stage 1
    on few photographs, which lack most colours; captions no longer fit the result.
    """

    native: float = 0.6
    area: float = 0.3
    whole: float = 0.1
    area_min: float = 0.3
    flip_prob: float = 0.5
    size_condition: str = "mix"
    constant_prob: float = 0.1
    constant_size: int = 1024
    shuffle_channels: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.native, self.area, self.whole)
        if min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"crop weights must be >= 0 and not all 0, got {weights}")
        if not 0 < self.area_min <= 1:
            raise ValueError(f"area_min must be in (0, 1], got {self.area_min}")
        shares = (self.flip_prob, self.constant_prob, self.shuffle_channels)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError(
                "flip_prob, constant_prob and shuffle_channels must be in [0, 1], got "
                f"{self.flip_prob}, {self.constant_prob} and {self.shuffle_channels}"
            )
        if self.size_condition not in ("actual", "constant", "mix"):
            raise ValueError(
                f"size_condition must be actual, constant or mix, got {self.size_condition!r}"
            )

    def for_pairs(self) -> "CropPolicy":
        """Return the policy of real pairs: shrinking would make their LQ a better one."""
        return replace(self, native=1.0, area=0.0, whole=0.0, shuffle_channels=0.0)


class Crop(NamedTuple):
    """A crop, its size conditioning, and the part of the image that it shows."""

    pixels: np.ndarray  # (size, size, 3) uint8, of a pair (size, size, 6)
    sizes: np.ndarray  # (6,) float32
    visible: float  # share of the image's area
    box: tuple[float, float, float, float]  # top, left, height, width in [0, 1], before the flip


def crop_sample(image: TrainingImage, size: int, policy: CropPolicy, rng: Rng) -> Crop:
    """Cut one training crop of `size` x `size` pixels; only the rows it needs are decoded.

    Crop coordinates are in pixels of the resized and flipped image, as in SDXL (arXiv:2307.01952,
    section 2.2).

    Raises:
        SampleError: The image is smaller than the crop, or damaged.
    """
    height, width = image.height, image.width
    if min(height, width) < size:
        raise SampleError("too small", f"{height}x{width} for a crop of {size}")
    weights = np.array([policy.native, policy.area, policy.whole])
    way = int(np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(), "right"))
    side = min(height, width)
    if way == 0:
        side = size
    elif way == 1:
        share = rng.uniform(policy.area_min, 1) * height * width
        side = int(np.clip(round(share**0.5), size, side))
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    pixels = image.rows(top, top + side)[:, left : left + side]
    box = (top / height, left / width, side / height, side / width)
    if side != size:
        small = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
        pixels = np.array(small)
    pixels = np.ascontiguousarray(pixels)
    if rng.random() < policy.flip_prob:
        # torch flips 17 times faster than numpy copies a reversed view of three-byte pixels.
        pixels, left = torch.from_numpy(pixels).flip(1).numpy(), width - side - left
    sizes = size_condition(policy, rng, (height, width), (top, left), side, size)
    if policy.shuffle_channels and rng.random() < policy.shuffle_channels:
        pixels = np.ascontiguousarray(pixels[..., rng.permutation(3)])
    return Crop(pixels, sizes, side * side / (height * width), box)


def size_condition(
    policy: CropPolicy,
    rng: Rng,
    original: tuple[int, int],
    corner: tuple[int, int],
    side: int,
    size: int,
) -> np.ndarray:
    """Return (6,) float32: original (h, w), crop (top, left), target (h, w)."""
    constant = {"actual": 0.0, "constant": 1.0, "mix": policy.constant_prob}[policy.size_condition]
    if rng.random() < constant:
        full = policy.constant_size
        return np.array([full, full, 0, 0, full, full], dtype=np.float32)
    scale = size / side
    top, left = round(corner[0] * scale), round(corner[1] * scale)
    return np.array([*original, top, left, size, size], dtype=np.float32)


def collate(
    samples: Sequence[TrainingSample], tokenize: Callable[[list[str]], Tensor] | None = None
) -> Batch:
    """Stack samples into a batch; `hq` is a (B, 3, H, W) view of (B, H, W, 3) memory.

    Args:
        tokenize: Makes `tokens` of the captions, here in a worker: it takes milliseconds.
    """
    # In a worker, default_collate stacks into shared memory, which saves a copy.
    pixels = default_collate([torch.from_numpy(s["hq"]) for s in samples])
    batch = Batch(
        hq=pixels.permute(0, 3, 1, 2),
        caption=[s["caption"] for s in samples],
        sizes=torch.from_numpy(np.stack([s["sizes"] for s in samples])),
        is_negative=torch.tensor([s["is_negative"] for s in samples], dtype=torch.bool),
        source=[s["source"] for s in samples],
        key=[s["key"] for s in samples],
        seed=torch.tensor([s["seed"] for s in samples], dtype=torch.int64),
    )
    if tokenize is not None:
        batch["tokens"] = tokenize(batch["caption"])
    if "lq" in samples[0]:
        low = [torch.from_numpy(s.get("lq", s["hq"])) for s in samples]  # every one has its own
        batch["lq"] = default_collate(low).permute(0, 3, 1, 2)
    if "paired" in samples[0]:
        batch["paired"] = torch.tensor([s.get("paired", False) for s in samples], dtype=torch.bool)
    for name in PRECOMPUTED:
        if name in samples[0]:
            stored = [s[name] for s in samples]  # pyright: ignore[reportTypedDictNotRequiredAccess]
            batch[name] = default_collate(stored)
    return batch
