"""One evaluation, from a protocol and methods to the report folder."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from open_supir.evaluation.benchmark import run_benchmark
from open_supir.evaluation.metrics import check_weights
from open_supir.evaluation.models import Methods
from open_supir.evaluation.protocols import Protocol, load_samples
from open_supir.evaluation.provenance import (
    describe_environment,
    weight_hashes,
    write_environment,
)
from open_supir.evaluation.records import read_records
from open_supir.evaluation.regions import Regions
from open_supir.evaluation.report import write_report
from open_supir.evaluation.run_inputs import RunInputs
from open_supir.evaluation.sheet import write_sheet
from open_supir.evaluation.weights import fetch, fetch_if_reachable

log = logging.getLogger(__name__)


def prepare_metrics(
    protocol: Protocol, *, require: Sequence[str], download: bool | Literal["auto"]
) -> None:
    """Check that required metrics have their weights; fetch missing ones.

    Args:
        protocol: Names the metrics.
        require: Metrics that must have their weights.
        download: "auto" fetches what can be had, True everything, False nothing.

    Raises:
        ValueError: The protocol does not measure a required metric, or `download` is unknown.
        OSError: A download failed, and `download` is True.
        FileNotFoundError: Weights of a required metric are missing.
    """
    if download not in ("auto", True, False):
        raise ValueError(f"metrics.download={download!r}: expected auto, true or false")
    unasked = set(require) - set(protocol.metrics)
    if unasked:
        raise ValueError(
            f"metrics.require={sorted(unasked)} is not measured; protocol "
            f"{protocol.name} has: {', '.join(protocol.metrics)}; select with metrics.names=[...]"
        )
    missing = check_weights(protocol.metrics)
    files = dict.fromkeys(file for files in missing.values() for file in files)
    if download == "auto":
        fetch_if_reachable(files)
    elif download:
        fetch(files)
        check_weights(protocol.metrics, require=protocol.metrics)  # a download may be damaged
    check_weights(protocol.metrics, require=list(require))


def evaluate_methods(
    protocol: Protocol,
    methods: Methods,
    *,
    inputs: RunInputs,
    seed: int,
    save_images: bool,
    resume: bool,
    device: torch.device,
    mask: str | None = None,
) -> str:
    """Measure methods on a protocol's images, write the report and return its Markdown table.

    Args:
        methods: Rows of the table besides "lq", and what the values of each depend on.
        inputs: Where the photographs are, and where records, tables and page go.
        resume: Reuse records with the same inputs and settings.
        mask: File or folder of masks: metrics are measured where they are white.
    """
    protocol = protocol.on(inputs.data_root, inputs.heldout)
    hq, lq = protocol.folders(inputs.data_root, inputs.heldout)
    used = inputs.degrade if protocol.degradation is None and lq is None else None
    settings = {**protocol.settings(), "restore_seed": seed}
    regions = None if mask is None else Regions(Path(mask))
    if regions is not None:
        settings["mask"] = regions.digest()
    if used is not None:
        settings["degradation"] = used.digest
    records = run_benchmark(
        load_samples(protocol, hq=hq, lq=lq, degrade=inputs.degrade),
        {"lq": lambda sample: sample.lq, **methods[0]},
        protocol.metrics,
        out_dir=inputs.output,
        run=str(inputs.run),
        settings=settings,
        method_settings=methods[1],
        border=protocol.border,
        save_images=save_images,
        resume=resume,
        device=device,
        regions=regions,
    )
    environment = describe_environment(
        device,
        protocol={"name": protocol.name, "source": protocol.source},
        degradation=used.ranges if used else None,
        metric_weights=weight_hashes(protocol.metrics),
    )
    write_environment(environment, inputs.output)
    log.info("report: %s", inputs.output / "table.md")
    if save_images and (sheet := write_sheet(records, inputs.output)):
        log.info("pictures: %s", sheet)
    return write_report(records, inputs.output, title=f"{inputs.run.name}: {protocol.name}")


def rebuild(folder: Path, output: str | None) -> str:
    """Rewrite tables and page from the records in a folder.

    Raises:
        FileNotFoundError: The folder has no records.
    """
    if not (folder / "records.jsonl").is_file():
        raise FileNotFoundError(f"report={folder}: no records.jsonl in this folder")
    records = read_records(folder / "records.jsonl")
    protocol = records[0]["settings"].get("protocol", "evaluation") if records else "evaluation"
    title = f"{Path(records[0]['run']).name}: {protocol}" if records else ""
    return write_report(records, Path(output or folder), title=title, source=folder)
