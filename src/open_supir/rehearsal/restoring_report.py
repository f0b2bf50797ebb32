"""What rehearsed restorations cost, as plain values and as a table."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from open_supir.base.dtypes import parse_dtype
from open_supir.base.files import printable
from open_supir.inference import RestoreOptions
from open_supir.inference.checkpoint import build_networks
from open_supir.inference.model import Model
from open_supir.rehearsal.cards import CARDS, GB, Card, cards
from open_supir.rehearsal.report_files import write_report
from open_supir.rehearsal.restoring import RestoringCost, rehearse_restoring
from open_supir.reports.tables import markdown_table

log = logging.getLogger(__name__)

GIB = 2**30
# settings of the commands that a dry run reads
SETTINGS = (
    "checkpoint", "runs_dir", "shipped", "weights", "sampler", "options", "dtype",
    "architecture", "device_memory", "mfu", "report",
)  # fmt: skip
ORIENTATION = 0x0112  # EXIF: from 5 on, the picture lies on its side
MOST = 6  # sizes that are rehearsed; images in between count as the next larger one
Sizes = Counter[tuple[int, int]]  # (h, w) in pixels


def read_sizes(given: Sequence[int | Sequence[int]] | None, paths: Sequence[Path]) -> Sizes:
    """Return how many images there are of each size.

    Args:
        given: Sides of squares, or (h, w); None reads the files.
        paths: Files that cannot be read are left out, with a word.

    Raises:
        ValueError: There is no size.
    """
    sizes: Sizes = Counter()
    for size in given or ():
        height, width = (size, size) if isinstance(size, int) else size
        sizes[height, width] += 1
    for path in paths if given is None else ():
        try:
            with Image.open(path) as image:
                is_turned = image.getexif().get(ORIENTATION, 1) > 4
                size = (image.width, image.height) if is_turned else (image.height, image.width)
                sizes[size] += 1
        except (OSError, ValueError) as error:
            log.warning("%s: left out of the rehearsal: %s", printable(path), error)
    if not sizes:
        raise ValueError("dry_run=true: no size is known; give input=, or sizes=[1024, 2048]")
    return sizes


def dry_run_restoring(config: Mapping[str, Any], sizes: Sizes) -> str:
    """Rehearse restorations; returns a table, and writes the file that `report` names.

    Args:
        config: `SETTINGS` of `src.restore` or `src.evaluate`.

    Raises:
        ValueError: A card or an architecture is unknown.
        NotPretended: This torch cannot pretend to have a GPU.
    """
    model = _model(config)
    options = model.options(config["sampler"], config["options"])
    memory, mfu = config["device_memory"], config["mfu"]
    known = cards(memory, mfu)
    chosen = spread(sizes)
    costs = rehearse_restoring(
        build_networks(model.recipe["architecture"]),
        options,
        list(chosen),
        dtype=parse_dtype(model.dtype),
        device_memory=None if memory is None else memory * GB,
    )
    rows = [_row(cost, chosen[cost.size], options, known) for cost in costs]
    write_report({"how": "simulated", "dtype": model.dtype, "mfu": mfu, "rows": rows},
                 config["report"])  # fmt: skip
    return restoring_table(rows, dtype=model.dtype, mfu=mfu)


def spread(sizes: Sizes) -> Sizes:
    """Choose at most `MOST` sizes, evenly by rank of area; the largest is among them."""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    places = {round((i + 1) * len(ordered) / MOST) - 1 for i in range(MOST)} - {-1}
    chosen: Sizes = Counter()
    waiting = 0
    for place, size in enumerate(ordered):
        waiting += sizes[size]
        if place in places or len(ordered) <= MOST:
            chosen[size], waiting = waiting, 0
    return chosen


def restoring_table(rows: Sequence[Mapping[str, Any]], *, dtype: str, mfu: float) -> str:
    """Return a report's rows as text."""
    titles = [f"{memory} GB ({CARDS[int(memory)]})" for memory in rows[0]["seconds"]]
    cells = [
        [_by(r["size"]), str(r["images"]), _by(r["working_size"]), ", ".join(r["mode"]) or "whole",
         f"{r['peak'] / GIB:.2f}", f"{r['largest'] / 2**31:.2f}", _short(r["flops"] / 1e12),
         str(r["waits"]),
         *(f"{_short(s)} s" if s else "does not fit" for s in r["seconds"].values())]
        for r in rows
    ]  # fmt: skip
    header = ["h x w", "images", "worked at", "mode", "peak, GiB", "largest tensor, 2^31",
              "TFLOP", "waits", *titles]  # fmt: skip
    said = (
        f"Simulated in {dtype}: weights {rows[0]['weights'] / GIB:.2f} GiB. TFLOP and seconds are "
        f"of one image, seconds at {mfu:.0%} of the card's bf16 rate."
    )
    return f"{said}\n\n{markdown_table(header, cells)}"


def _model(config: Mapping[str, Any]) -> Model:
    dtype = config["dtype"] or "bfloat16"
    if config["architecture"] == "sdxl":
        return Model.released(dtype=dtype)
    if config["architecture"] is not None:
        found = config["architecture"]
        raise ValueError(f"architecture={found}: known are sdxl, and null for the checkpoint's")
    places = {key: config[key] for key in ("runs_dir", "shipped")}
    return Model.find(config["checkpoint"], weights=config["weights"], dtype=dtype, **places)


def _row(
    cost: RestoringCost, images: int, options: RestoreOptions, known: Sequence[Card]
) -> dict[str, Any]:
    flops = cost.flops * options.num_samples
    return {
        "size": cost.size,
        "images": images,
        "working_size": cost.working_size,
        "mode": cost.mode,
        "weights": cost.weights,
        "peak": cost.peak,
        "largest": max(phase.largest for phase in cost.stages.values()),
        "flops": flops,
        "waits": sum(phase.waits.total() for phase in cost.stages.values()),
        "stages": {name: phase.plain() for name, phase in cost.stages.items()},
        "seconds": {
            str(card.memory): card.seconds(flops) if cost.peak <= card.usable else None
            for card in known
        },
    }


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _by(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"
