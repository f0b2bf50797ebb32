"""Images, shards and tars made for tests."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from open_supir.data.shards import ShardEntry, StoredSample, write_manifest, write_shard


def pixels(seed: int = 0, height: int = 96, width: int = 96) -> np.ndarray:
    """Smooth colours with some noise: compresses like a photograph, decodes like one."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = smooth + rng.integers(-8, 9, smooth.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def jpeg(seed: int = 0, height: int = 96, width: int = 96) -> bytes:
    image = pixels(seed, height, width)
    return simplejpeg.encode_jpeg(image, 95, colorspace="RGB", colorsubsampling="444")


def encoded(image: Image.Image, name: str, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, name, **options)
    return data.getvalue()


def stored(key: str, image: bytes | None = None, **meta) -> StoredSample:
    return StoredSample(key=key, image=image or jpeg(), caption=f"caption of {key}", meta=meta)


def shard_folder(
    folder: Path, counts: Sequence[int], *, prefix: str = "s", image: bytes | None = None
) -> list[ShardEntry]:
    """Write shards of the given sizes; key KKK-NNN is sample NNN of shard KKK."""
    image = image or jpeg()
    entries = [
        write_shard(
            folder / f"{prefix}-{shard:03d}.tar",
            [stored(f"{prefix}{shard:03d}-{i:03d}", image) for i in range(count)],
        )
        for shard, count in enumerate(counts)
    ]
    write_manifest(folder, entries)
    return entries


def tar_bytes(members: Sequence[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def good_members(count: int = 6) -> list[tuple[str, bytes]]:
    members: list[tuple[str, bytes]] = []
    for i in range(count):
        meta = json.dumps({"source": "test"}).encode()
        members += [(f"{i:03d}.jpg", jpeg(i)), (f"{i:03d}.txt", b"cap %d" % i)]
        members += [(f"{i:03d}.json", meta)]
    return members
