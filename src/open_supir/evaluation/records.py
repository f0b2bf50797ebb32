"""Records: one row per image, method and metric, as JSON lines; all tables derive from them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from open_supir.base.files import replacing

Status = Literal[
    "ok",  # value holds the score
    "missing_weights",  # a weight file of the metric is missing; image is WHOLE_SET
    "no_reference",  # the metric needs an HQ image and there is none
    "too_small",  # the image, or the set, is too small for the metric
    "not_finite",  # the metric returned NaN or infinity
    "metric_failed",  # the metric raised an error, on this image or when it was built
    "restore_failed",  # the method raised an error, or returned a wrong size or non-finite values
    "load_failed",  # the input could not be read or had no partner
]

WHOLE_SET = "*"  # `image` of rows about the whole set


class Record(TypedDict):
    """One measured value.

    Fields:
        image: Name of the image, or WHOLE_SET.
        method: What made the picture: "lq", "restored", ...
        metric: Name in METRICS.
        value: The score; None unless status is "ok".
        run: Name of the run.
        settings: Protocol, seed, checkpoint and so on; equal for comparable rows.
        status: See Status.
        reason: Why there is no value; with a value, set only if the set lacks images.
    """

    image: str
    method: str
    metric: str
    value: float | None
    run: str
    settings: dict[str, Any]
    status: Status
    reason: str


def write_records(records: Iterable[Record], path: Path) -> None:
    """Write JSON lines atomically; creates parent folders."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for record in records:
            stream.write(json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n")


def read_records(path: Path) -> list[Record]:
    """Read what `write_records` wrote.

    Raises:
        ValueError: A line is not a record; the message names file and line.
    """
    records: list[Record] = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
            lacking = Record.__required_keys__ - set(row if isinstance(row, dict) else ())
            if lacking:
                raise ValueError(f"{path}, line {number}: lacks {', '.join(sorted(lacking))}")
            records.append(cast(Record, row))
    return records
