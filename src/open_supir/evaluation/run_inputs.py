"""What an evaluation works with: as given, else as the run of its checkpoint had it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from open_supir.base.images import to_signed, to_unit
from open_supir.base.registry import build, trust
from open_supir.base.run_folders import config_digest, run_of, sweep_folder
from open_supir.data import write_demo_shards
from open_supir.degradation.pipeline import DegradationPipeline
from open_supir.evaluation.protocols import Protocol


@dataclass(frozen=True, kw_only=True)
class TrainingDegradation:
    """Degrades one image with the training pipeline."""

    pipeline: DegradationPipeline  # draws and applies the degradation
    ranges: Mapping[str, Any]  # its configuration, as plain values
    digest: str  # SHA-256 of `ranges`, for the records

    @classmethod
    def of(cls, ranges: Mapping[str, Any]) -> "TrainingDegradation":
        """Build the pipeline that a configuration describes."""
        return cls(pipeline=build(ranges), ranges=ranges, digest=config_digest(ranges))

    def __call__(self, image: Tensor, seed: int) -> tuple[Tensor, dict[str, Any]]:
        """Return the degraded image, (1, 3, H, W) in [0, 1], and its parameters."""
        signed = to_signed(image)
        params = self.pipeline.draw(torch.tensor([seed]), size=(image.shape[-2], image.shape[-1]))
        how = {"summary": params.summaries()[0], **params.rows()[0]}
        return to_unit(self.pipeline.apply(signed, params)), how


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """Photographs, degradation and folders of an evaluation."""

    data_root: Path  # holds the protocol's folders
    heldout: str | None  # the run's own held-out photographs: `heldout` in a protocol
    degrade: TrainingDegradation | None  # where the protocol neither degrades nor has LQ images
    run: Path  # of the checkpoint
    output: Path  # gets records, tables and page

    @classmethod
    def find(
        cls, given: Mapping[str, Any], protocol: Protocol, *, checkpoint: Path | None
    ) -> "RunInputs":
        """Return the inputs that are given, and those of the checkpoint's run for the rest.

        The demo shards of the run are made if they are missing.

        Args:
            given: Settings of the command: data_root, output, degradation and runs_dir count here;
                a sweep records all of them.

        Raises:
            ValueError: There is no run, and a setting that it would supply is not given.
        """
        run, trained = Path(given["output"] or ""), {}
        if checkpoint is not None:
            run, trained = run_of(checkpoint, given["runs_dir"])
        if not trained:
            _require(given, protocol, checkpoint=checkpoint)
        data = trained.get("data", {})
        root = Path(given["data_root"] or data["root"])
        if not root.exists() and str(root) == data.get("prepare_at"):
            write_demo_shards(root)
        trust(given.get("degradation"))  # that of a run's folder only if it is known
        ranges = given.get("degradation") or trained.get("degradation")
        output = given["output"] or sweep_folder(trained, given) or run / "eval"
        return cls(
            data_root=root,
            heldout=None if given["data_root"] else data.get("heldout"),
            degrade=TrainingDegradation.of(ranges) if ranges else None,
            run=run,
            output=Path(output),
        )


def _require(given: Mapping[str, Any], protocol: Protocol, *, checkpoint: Path | None) -> None:
    """Require the settings that a run would supply."""
    needed = ["data_root", "output"]
    if protocol.degradation is None and protocol.lq_folder is None:
        needed.append("degradation")
    lost = [key for key in needed if not given.get(key)]
    if lost:
        what = "without a checkpoint there is" if checkpoint is None else f"{checkpoint} is in"
        raise ValueError(
            f"{what} no run folder, whose configuration would supply more; "
            f"set {', '.join(f'{key}=...' for key in lost)}"
        )
