"""The work of the score step: no-reference metrics of the images that have passed so far."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from open_supir.curation.reading import open_shard, stored_pixels
from open_supir.curation.step_settings import ScoreSettings
from open_supir.curation.tables import read_rows, write_rows
from open_supir.curation.thresholds import Thresholds, stored_rows
from open_supir.curation.work import Unit, digest, read_done, unit_folder


class Scoring:
    """Processes the units of the score step; reuses earlier scores."""

    def __init__(self, settings: ScoreSettings) -> None:
        self.metrics, self.made_by = settings.metrics, digest(dict(settings.settings()))
        self.scorer = settings.scorer.build()

    @torch.no_grad()
    def __call__(self, unit: Unit, folder: Path) -> Mapping[str, Any]:
        """Score one unit; return counts."""
        root = Path(unit.inputs["root"])
        thresholds = Thresholds(bounds=unit.inputs["bounds"])
        (stored,) = stored_rows(root, [unit.name], list(thresholds.bounds), scores=False)
        reasons = thresholds.judge(stored.table)
        known = self._known(root, unit)
        rows = []
        shard = open_shard(unit_folder(root, "filter", unit.name), unit.inputs["shard"])
        for number, key in enumerate(stored.table.column("key").to_pylist()):
            if reasons[number]:
                continue
            if key not in known:
                pixels = torch.from_numpy(stored_pixels(shard.read(0, number).image))
                known[key] = self.scorer(pixels.permute(2, 0, 1)[None].float() / 255)
            rows.append({"key": key, **known[key]})
        shard.close()
        names = self.metrics
        schema = pa.schema([("key", pa.string()), *((name, pa.float32()) for name in names)])
        write_rows(folder / "rows.parquet", rows, schema)
        return {"rows": len(rows), "settings": self.made_by, "filter": unit.inputs["filter"]}

    def _known(self, root: Path, unit: Unit) -> dict[str, dict[str, float]]:
        """Return scores by key from an earlier run of the unit with the same metrics, if any."""
        before = unit_folder(root, "score", unit.name)
        done = read_done(before)
        content = unit.inputs["filter"]
        if done is None or done["statistics"].get("settings") != self.made_by:
            return {}
        if done["statistics"].get("filter") != content:
            return {}
        return {row.pop("key"): row for row in read_rows(before / "rows.parquet")}
