"""The work of the negative step: images that the prior makes from the negative words.

SUPIR (arXiv:2401.13627, section 3.3) trains on such images to give the negative prompt a meaning:
image-to-image from a photograph at strength 0.5, prompted with words for bad quality.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from open_supir.base.images import to_uint8
from open_supir.curation.reading import open_shard, stored_pixels
from open_supir.curation.step_settings import NegativeSettings
from open_supir.curation.tables import read_rows
from open_supir.curation.work import Unit, digest, unit_folder
from open_supir.data.jpeg_rows import encode_jpeg
from open_supir.data.shards import StoredSample, write_shard


class Negatives:
    """Processes the units of the negative step: writes a tar of negative samples for each."""

    def __init__(self, settings: NegativeSettings) -> None:
        self.settings = settings
        self.prior = settings.prior.build()

    def __call__(self, unit: Unit, folder: Path) -> Mapping[str, Any]:
        """Make the negative samples of one unit; return their keys and the tar's manifest entry."""
        root = Path(unit.inputs["root"])
        wanted, made = set(unit.inputs["keys"]), []
        captions = read_rows(unit_folder(root, "caption", unit.name) / "rows.parquet")
        shard = open_shard(unit_folder(root, "filter", unit.name), unit.inputs["shard"])

        def samples():
            for row in captions:
                if row["key"] in wanted:
                    raw = shard.read(0, row["index"])
                    meta = json.loads(raw.meta or b"{}")
                    made.append(negative_key(row["key"]))
                    yield self._sample(row, stored_pixels(raw.image), meta)

        entry = write_shard(folder / f"{unit.name}.tar", samples())
        shard.close()
        return {"keys": made, "caption": self.settings.words, "shard": asdict(entry)}

    def _sample(self, row: dict[str, Any], pixels: np.ndarray, meta: dict) -> StoredSample:
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        made = self.prior.image_to_image(
            image,
            prompt=self.settings.words,
            strength=self.settings.strength,
            seed=negative_seed(self.settings.seed, row["key"]),
        )
        spoilt = to_uint8(made[0]).cpu().permute(1, 2, 0).contiguous().numpy()
        data = encode_jpeg(spoilt, quality=self.settings.quality)
        meta |= {"is_negative": True, "content": row["caption"] or "", "of": row["key"]}
        return StoredSample(
            key=negative_key(row["key"]), image=data, caption=self.settings.words, meta=meta
        )


def negative_seed(seed: int, key: str) -> int:
    """Return the seed of a negative sample's noise, which depends only on `seed` and its key."""
    return int(digest("negative", seed, key), 16) >> 1


def negative_key(key: str) -> str:
    """Return the key of the negative sample made from the positive with this key."""
    return f"negative-{key}"
