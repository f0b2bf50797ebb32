"""The embedded default: shards made from the photographs in scikit-image's wheel.

Stored images are 128 x 128 and stand in for the 1024 x 1024 of a real data set: crops of
photographs at several scales, dead-leaves images, and negative samples. Three photographs are held
out from training. Everything is a function of the seed.
"""

import importlib.util
import io
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageFilter, ImageOps

from open_supir.base.files import temporary_name
from open_supir.base.images import read_image
from open_supir.base.images.listing import walk_images
from open_supir.base.places import DEMO
from open_supir.base.rng import keyed_rng
from open_supir.data.dead_leaves import DeadLeaves, noise_texture, photo_texture
from open_supir.data.shards import StoredSample, write_shards

log = logging.getLogger(__name__)

STORE_SIZE = 128
PHOTOS_FILE = DEMO / "photos.json"
NEGATIVE_WORDS = "blurry, over-smoothed, posterised, blocky, jpeg artifacts, low quality"
CLOSE_UP = 0.55  # crops below this share of the photograph's side get the caption of their region
FOLDER_CROPS = 110  # of each of the user's own photographs
MOST_REDUCED = 4  # greatest reduction of the user's own photographs
ANY_PHOTO = "a photograph"  # caption of the user's own photographs
Rng = np.random.Generator


def write_demo_shards(
    root: str | Path,
    *,
    photos: float = 1.0,
    folder: str | Path | None = None,
    dead_leaves: int = 500,
    negatives: int = 120,
    shard_size: int = 100,
    seed: int = 0,
) -> None:
    """Write photos/, dead_leaves/, negative/ and heldout/ below `root`, all or nothing.

    Args:
        root: Folder to create; an existing one is left alone.
        photos: Factor on the number of crops per photograph (750 crops in total at 1).
        folder: Folder with more photographs, searched recursively; they are captioned `ANY_PHOTO`
            and give FOLDER_CROPS crops each, at native resolution and reduced by up to
            `MOST_REDUCED`.
        seed: Determines every image.
    """
    root, start = Path(root), time.perf_counter()
    if root.exists():
        log.info("%s exists, nothing to do", root)
        return
    log.info("making demo shards in %s from the photographs of scikit-image", root)
    manifest = json.loads(PHOTOS_FILE.read_text(encoding="utf-8"))
    temporary = temporary_name(root)
    try:
        temporary.mkdir(parents=True)
        crops = list(photo_crops(manifest["train"], seed=seed, factor=photos))
        if folder is not None:
            crops += photo_crops(folder_entries(folder, FOLDER_CROPS), seed=seed, factor=1.0)
        leaves = list(leaf_images(manifest["train"], dead_leaves, seed=seed))
        bad = list(negative_images(crops + leaves, negatives, seed=seed))
        for name, samples in (("photos", crops), ("dead_leaves", leaves), ("negative", bad)):
            if samples:
                write_shards(
                    temporary / name, samples, prefix=f"demo-{name}", shard_size=shard_size
                )
        write_held_out(temporary / "heldout", manifest["held_out"])
        if not root.exists():  # otherwise another node was faster
            os.replace(temporary, root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    counts = f"{len(crops)} photo crops, {len(leaves)} dead leaves, {len(bad)} negatives"
    log.info("made %s in %.1f s: %s", root, time.perf_counter() - start, counts)


def photo_folder() -> Path:
    """Return the folder of photographs inside the installed scikit-image."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("install scikit-image: the demo photographs ship with it")
    return Path(spec.origin).parent / "data"


def clean_photos() -> list[Path]:
    """Return the photographs of scikit-image that the demo shards are made from."""
    manifest = json.loads(PHOTOS_FILE.read_text(encoding="utf-8"))
    names = (entry["file"] for part in ("train", "held_out") for entry in manifest[part])
    return [photo_folder() / name for name in dict.fromkeys(names)]


def folder_entries(folder: str | Path, count: int) -> list[dict[str, Any]]:
    """Return entries for the photographs below a folder, as in photos.json.

    Raises:
        FileNotFoundError: No photograph is large enough.
    """
    entries = []
    for path in walk_images(Path(folder)).images:
        short = min(read_image(path).shape[1:])
        if short >= STORE_SIZE:
            side = [STORE_SIZE, min(short, MOST_REDUCED * STORE_SIZE)]
            name = str(path.resolve())
            entries.append(dict(file=name, side=side, count=count, caption=ANY_PHOTO, regions=[]))
    if not entries:
        raise FileNotFoundError(f"{folder}: no photographs of at least {STORE_SIZE} pixels")
    return entries


def load_photo(name: str) -> Image.Image:
    """Open a photograph as sRGB, by path or by the name of one that scikit-image ships."""
    path = photo_folder() / name  # an absolute name replaces the folder
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; other scikit-image versions may ship it")
    return Image.fromarray(read_image(path).permute(1, 2, 0).numpy())


def photo_crops(
    entries: list[dict[str, Any]], *, seed: int, factor: float
) -> Iterator[StoredSample]:
    """Yield square crops of each photograph, with log-uniform sides."""
    for entry in entries:
        name = Path(entry["file"]).stem
        own = Path(entry["file"]).is_absolute()
        photo, rng = load_photo(entry["file"]), keyed_rng("demo photo", seed, name)
        low, high = np.log(entry["side"])
        for number in range(max(1, round(entry["count"] * factor))):
            side = int(round(float(np.exp(rng.uniform(low, high)))))
            top = int(rng.integers(photo.height - side + 1))
            left = int(rng.integers(photo.width - side + 1))
            box = (left, top, left + side, top + side)
            image = photo.resize((STORE_SIZE, STORE_SIZE), Image.Resampling.LANCZOS, box=box)
            meta = {
                "source": name if own else f"scikit-image {entry['file']}",
                "original_size": [photo.height, photo.width],
                "box": [top, left, side, side],
                "licence": "unknown" if own else "see scikit-image, skimage/data",
            }
            caption = crop_caption(entry, top, left, side, min(photo.size))
            yield StoredSample(
                key=f"{name}-{number:04d}", image=encode(image), caption=caption, meta=meta
            )


def crop_caption(entry: dict[str, Any], top: int, left: int, side: int, short: int) -> str:
    """Return the caption of the region at the centre of a close crop, else of the photograph."""
    y, x = top + side / 2, left + side / 2
    if side < CLOSE_UP * short:
        for region in entry["regions"]:
            y0, x0, y1, x1 = region["box"]
            if y0 <= y < y1 and x0 <= x < x1:
                return region["caption"]
    return entry["caption"]


def leaf_images(entries: list[dict[str, Any]], count: int, *, seed: int) -> Iterator[StoredSample]:
    """Yield dead-leaves images in the colours and textures of the training photographs."""
    rng = keyed_rng("demo leaves bank", seed)
    photos = [load_photo(entry["file"]) for entry in entries]
    palettes = [palette(rng, photo) for photo in photos]
    palettes += [recoloured(rng, colours) for colours in palettes]
    size = 4 * STORE_SIZE
    textures = [photo_texture(photo, size) for photo in photos]
    textures += [noise_texture(rng, size, slope) for slope in (0.5, 0.8, 1.0, 1.2, 1.5)]
    painter = DeadLeaves(size=STORE_SIZE, palettes=palettes, textures=textures)
    for number in range(count):
        pixels, caption = painter.draw(keyed_rng("demo leaf", seed, number))
        meta = {"source": "dead leaves", "licence": "generated"}
        yield StoredSample(
            key=f"leaves-{number:05d}",
            image=encode(Image.fromarray(pixels)),
            caption=caption,
            meta=meta,
        )


def palette(rng: Rng, photo: Image.Image, count: int = 400) -> np.ndarray:
    """Return colours of random pixels of a photograph: (count, 3) float32 in [0, 1]."""
    pixels = np.asarray(photo, dtype=np.float32).reshape(-1, 3) / 255
    return pixels[rng.integers(len(pixels), size=count)]


def recoloured(rng: Rng, colours: np.ndarray) -> np.ndarray:
    """Shuffle a palette's channels and tint it, for greens and blues that the photographs lack."""
    tint = rng.uniform(0.75, 1.15, size=(1, 3)).astype(np.float32)
    return (colours[:, rng.permutation(3)] * tint).clip(0, 1)


def negative_images(
    positives: list[StoredSample], count: int, *, seed: int
) -> Iterator[StoredSample]:
    """Yield copies of positives with one of four faults, captioned with the negative words."""
    rng = keyed_rng("demo negatives", seed)
    for number in range(count):
        origin = positives[int(rng.integers(len(positives)))]
        fault = FAULTS[number % len(FAULTS)]
        image = spoil(Image.open(io.BytesIO(origin.image)).convert("RGB"), fault, rng)
        meta = {
            "source": origin.meta["source"],
            "is_negative": True,
            "fault": fault,
            "content": origin.caption,
            "licence": origin.meta["licence"],
        }
        yield StoredSample(
            key=f"negative-{number:05d}", image=encode(image), caption=NEGATIVE_WORDS, meta=meta
        )


FAULTS = ("blurry", "over-smoothed", "posterised", "blocky")


def spoil(image: Image.Image, fault: str, rng: Rng) -> Image.Image:
    """Give an image one fault, at a random but clearly visible strength."""
    if fault == "blurry":
        return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(1.5, 3.5))))
    if fault == "over-smoothed":
        smooth = image.filter(ImageFilter.MedianFilter(int(rng.choice([5, 7, 9]))))
        return smooth.filter(ImageFilter.GaussianBlur(0.7))
    if fault == "posterised":
        smooth = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 1.5))))
        return ImageOps.posterize(smooth, int(rng.integers(2, 4)))
    if fault == "blocky":
        data = io.BytesIO()
        image.save(data, "JPEG", quality=int(rng.integers(4, 14)))
        return Image.open(data).convert("RGB")
    raise ValueError(f"unknown fault {fault!r}; known: {', '.join(FAULTS)}")


def encode(image: Image.Image) -> bytes:
    """Encode as a JPEG of quality 95 without chroma subsampling."""
    pixels = np.ascontiguousarray(np.asarray(image))
    return simplejpeg.encode_jpeg(pixels, quality=95, colorspace="RGB", colorsubsampling="444")


def write_held_out(folder: Path, entries: list[dict[str, Any]]) -> None:
    """Write the crops of the held-out photographs as PNG, with captions in text files."""
    folder.mkdir(parents=True)
    for entry in entries:
        photo = load_photo(entry["file"])
        for number, crop in enumerate(entry["crops"]):
            top, left = crop["corner"]
            image = photo.crop((left, top, left + STORE_SIZE, top + STORE_SIZE))
            path = folder / f"{Path(entry['file']).stem}-{number:02d}.png"
            image.save(path)
            path.with_suffix(".txt").write_text(crop["caption"] + "\n", encoding="utf-8")
