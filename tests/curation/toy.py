"""A step that needs nothing heavy, for testing the runners; and inputs made for the pipeline."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from open_supir.curation.dedup import DedupStep
from open_supir.curation.pipeline import PipelineSettings
from open_supir.curation.shard_layout import ShardLayoutStep
from open_supir.curation.sources import InputSettings
from open_supir.curation.steps import CaptionStep, FilterStep, NegativeStep
from open_supir.curation.thresholds import Thresholds
from open_supir.curation.work import Blueprint, Process, Unit
from tests.waiting import PATIENCE

WORDS = "blurry, jpeg artifacts"


@dataclass(frozen=True)
class ToyStep:
    """Writes the unit's number squared; misbehaves as the unit's input says, once or always."""

    scratch: str
    broken: str | None = None
    name = "toy"

    def settings(self) -> Mapping[str, Any]:
        return {}

    def open(self) -> Process:
        if self.broken:
            raise FileNotFoundError(self.broken)
        return self.work

    def work(self, unit: Unit, folder: Path) -> Mapping[str, Any]:
        with open(Path(self.scratch) / f"{unit.name}.starts", "a") as file:
            file.write(f"{os.getpid()}\n")
        starts = len((Path(self.scratch) / f"{unit.name}.starts").read_text().splitlines())
        (folder / "half.txt").write_text("half")
        fault = unit.inputs.get("fault")
        if fault == "always" or (fault == "once" and starts == 1):
            raise OSError("disk on fire")
        if fault == "dies" or (fault == "dies once" and starts == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "out of memory once" and starts == 1:
            bytearray(1 << 60)
        if fault == "sleeps":
            time.sleep(2 * PATIENCE)  # longer than any test waits for its end
        if fault == "slow":
            time.sleep(0.3)
        (folder / "square.txt").write_text(str(int(unit.name) ** 2))
        return {"square": int(unit.name) ** 2}


def toy_units(count: int, **faults: str) -> list[Unit]:
    """Units 0 ... count - 1; `u3="dies"` makes unit 3 misbehave."""
    return [
        Unit(str(n), f"content {n}", {"fault": faults.get(f"u{n}")} if f"u{n}" in faults else {})
        for n in range(count)
    ]


class MeanCaptioner:
    """Names the mean of an image: a caption that depends on every pixel."""

    identity = "mean"

    def __init__(self, log: str | None = None, fails_on: str = "") -> None:
        self.log, self.fails_on = log, fails_on

    def __call__(self, image: Any, *, source: Path | None = None) -> str:
        caption = f"an image of mean {image.mean():.4f}"
        if self.log:
            with open(self.log, "a") as file:
                file.write(caption + "\n")
        if self.fails_on and self.fails_on in caption:
            raise RuntimeError("the model choked")
        return caption


class InvertingPrior:
    """Stands for the prior: inverts, and adds what the seed says."""

    def image_to_image(self, image: Any, *, prompt: str, strength: float, seed: int) -> Any:
        assert prompt == WORDS
        return 1 - image * strength + (seed % 7) / 100


def mean_captioner(log: str | None = None, fails_on: str = "") -> Blueprint:
    import functools

    return Blueprint({"mean": fails_on}, functools.partial(MeanCaptioner, log, fails_on))


def settings(source: Path, output: Path, **changes: Any) -> PipelineSettings:
    """Settings for images of about 64 pixels, with every step but score."""
    filter_step = changes.pop("filter", FilterStep(size=48, min_side=48))
    values: dict[str, Any] = dict(
        input=InputSettings(paths={"photos": str(source)}, licences={"photos": "CC0"}, unit_size=4),
        filter=filter_step,
        score=None,
        dedup=DedupStep(fit=filter_step),
        thresholds=Thresholds(bounds={"contrast": {"min": 5.0}}),
        caption=CaptionStep(captioner=mean_captioner(), cache=str(output / "captions")),
        negatives=NegativeStep(prior=Blueprint({}, InvertingPrior), words=WORDS),
        num_negatives=5,
        positives=ShardLayoutStep(source="positive", origin="filter", shard_size=6),
        negative_shards=ShardLayoutStep(source="negative", origin="negatives", shard_size=6),
        output=str(output),
        shards_dir=str(output / "shards"),
    )
    return PipelineSettings(**(values | changes))
