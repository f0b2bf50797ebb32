"""The work of the caption step: asks any captioner of open_supir.inference once per image."""

import json
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from open_supir.curation.reading import open_shard, stored_pixels
from open_supir.curation.selection import kept_rows
from open_supir.curation.step_settings import CaptionSettings
from open_supir.curation.tables import write_rows
from open_supir.curation.work import Unit, digest_all, unit_folder
from open_supir.inference.caption_cache import CachedCaptioner
from open_supir.inference.captioner import Captioner

log = logging.getLogger(__name__)

QUADRANTS = ("top_left", "top_right", "bottom_left", "bottom_right")
ROWS = pa.schema(
    [("key", pa.string()), ("index", pa.int32()), ("caption", pa.string())]
    + [(name, pa.string()) for name in QUADRANTS]
    + [("error", pa.string())]
)
RETRY_SECONDS = 1.0


class Captioning:
    """Processes the units of the caption step."""

    def __init__(self, settings: CaptionSettings) -> None:
        self.settings = settings
        self.captioner: Captioner | None = None
        if settings.captioner is not None:
            captioner = settings.captioner.build()
            if hasattr(captioner, "identity"):  # only models are worth remembering
                captioner = CachedCaptioner(captioner, settings.cache)
            self.captioner = captioner

    def __call__(self, unit: Unit, folder: Path) -> Mapping[str, Any]:
        """Caption one unit; return counts."""
        rows = kept_rows(Path(unit.inputs["root"]), unit.name)
        source = unit_folder(Path(unit.inputs["root"]), "filter", unit.name)
        shard = open_shard(source, unit.inputs["shard"])

        def answer(row: dict[str, Any]) -> dict[str, Any]:
            raw = shard.read(0, row["index"])
            row = {"key": row["key"], "index": row["index"]}
            given = (raw.text or b"").decode("utf-8")
            if self.captioner is None or (given and self.settings.keep_existing):
                return row | {"caption": given}
            pixels = torch.from_numpy(stored_pixels(raw.image)).permute(2, 0, 1).float() / 255
            return row | self._describe(self.captioner, pixels, raw.key)

        if rows:
            shard.key(0, 0)  # opens the tar, before threads share it
        if self.settings.concurrency == 1:
            answers = [answer(row) for row in rows]
        else:
            with ThreadPoolExecutor(self.settings.concurrency) as pool:
                answers = list(pool.map(answer, rows))
        shard.close()
        write_rows(folder / "rows.parquet", answers, ROWS)
        failed = sum(row.get("error") is not None for row in answers)
        return {
            "captioned": len(answers) - failed,
            "failed": failed,
            "content": digest_all(json.dumps(row, sort_keys=True) for row in answers),
        }

    def _describe(self, captioner: Captioner, image: Tensor, key: str) -> dict[str, Any]:
        """Return the captions of an image, or the error that is left after the last attempt."""
        for attempt in range(self.settings.attempts):
            try:
                return self._ask(captioner, image)
            except Exception as error:  # a model may fail in any way
                problem = " ".join(f"{type(error).__name__}: {error}".split())
                log.warning("caption of %s: %s", key, problem)
            if attempt + 1 < self.settings.attempts:
                time.sleep(RETRY_SECONDS * 2**attempt)
        return {"error": problem}

    def _ask(self, captioner: Captioner, image: Tensor) -> dict[str, Any]:
        answers = {"caption": captioner(image)}
        if not answers["caption"]:
            raise ValueError("the captioner returned an empty text")
        if self.settings.quadrants:
            for name, part in zip(QUADRANTS, quadrants(image), strict=True):
                answers[name] = captioner(part)
        return answers


def quadrants(image: Tensor) -> list[Tensor]:
    """Return the quarters of (3, H, W): top left, top right, bottom left, bottom right."""
    middle_y, middle_x = image.shape[-2] // 2, image.shape[-1] // 2
    return [
        image[:, rows, columns]
        for rows in (slice(None, middle_y), slice(middle_y, None))
        for columns in (slice(None, middle_x), slice(middle_x, None))
    ]
