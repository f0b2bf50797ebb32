"""Real pairs as a source of training samples: photographs and their low-quality partners.

A folder of pairs holds `hq/` and `lq/`, with files of the same names at the same places; suffixes
may differ. Every pair is looked at once, before the first run, and the outcome is kept as a table.

Shapes: H W size of an HQ image.
"""

import csv
import hashlib
import io
import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from open_supir.base.files import printable, write_text
from open_supir.base.images import list_images, read_image, resize
from open_supir.base.images.captions import caption_beside
from open_supir.data.alignment import measure_offset
from open_supir.data.samples import SampleError, TrainingImage, array_image
from open_supir.data.shards import ShardEntry

log = logging.getLogger(__name__)

PAIRS = "pairs"  # name of the source
BELOW = Path("data/shards/pairs")
SHARP = 0.25  # peak of a correlation; without detail in common it is below
COLUMNS: Sequence[str] = ("name", "hq", "lq", "bytes", "factor", "down", "right", "peak", "reason")
Row = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class RawPair:
    """One pair as stored."""

    key: str
    hq: Path
    lq: Path

    def caption(self) -> str:
        """Read the caption beside the HQ image, "" if there is none."""
        try:
            return caption_beside(self.hq)
        except (ValueError, OSError) as error:
            raise SampleError("caption not UTF-8", str(error)) from error

    def open(self) -> TrainingImage:
        """Decode both; rows are (h, W, 6), the channels of HQ before those of LQ.

        Raises:
            SampleError: One of them is damaged, or their sizes do not fit.
        """
        hq, lq, _ = read_pair(self.hq, self.lq)
        return array_image(torch.cat([hq, lq]).permute(1, 2, 0).contiguous().numpy())


class PairFolder:
    """The pairs of a folder that can be trained on, with the interface of a folder of one shard."""

    def __init__(self, folder: Path, rows: Sequence[Row]) -> None:
        self.folder = folder
        # Arrays, because reading a list of objects makes every worker copy its pages.
        self._rows = np.array([[row[k] for k in ("name", "hq", "lq")] for row in rows], dtype="U")
        text = "\n".join(f"{row['name']} {row['bytes']}" for row in rows)
        digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
        size = sum(int(row["bytes"]) for row in rows)
        self.entries = [ShardEntry(name=PAIRS, count=len(rows), bytes=size, sha256=digest)]

    def read(self, shard: int, sample: int) -> RawPair:
        """Return pair number `sample`; its files are not opened yet."""
        key, hq, lq = self._rows[sample]
        return RawPair(key=str(key), hq=self.folder / str(hq), lq=self.folder / str(lq))

    def name(self, shard: int) -> str:
        """Return the name of the only shard."""
        return self.entries[shard].name

    def close(self) -> None:
        """Do nothing: no file stays open."""


@dataclass(frozen=True, kw_only=True)
class PairSource:
    """Where the pairs are, and which of them are used.

    Args:
        folder: Holds hq/ and lq/.
        share: Of all training samples, in (0, 1).
        max_shift: Displacement in pixels of HQ up to which a pair counts as aligned.
        min_side: Shorter side below which an HQ image is left out: the crop's.
    """

    folder: Path
    share: float
    max_shift: float
    min_side: int

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"data.pairs_share must be in (0, 1), got {self.share}")
        if not self.max_shift >= 0:
            raise ValueError(f"data.pairs_max_shift must be >= 0 pixels, got {self.max_shift}")

    def weight(self, others: float) -> float:
        """Return the weight that gives pairs their share beside sources of weight `others`."""
        return others * self.share / (1 - self.share)

    def open(self) -> PairFolder:
        """Return the pairs; the first time they are measured, which takes 0.1 s each or less.

        Raises:
            FileNotFoundError: hq/ or lq/ is missing.
            ValueError: No pair can be used.
        """
        found = match_names(self.folder)
        table = self.table(found)
        if not table.is_file():
            log.info("measuring %d pairs of %s", len(found), printable(self.folder))
            table.parent.mkdir(parents=True, exist_ok=True)
            write_text(table, as_csv(self._measured(found)))
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        good = [row for row in rows if not row["reason"]]
        refused = Counter(row["reason"].partition(":")[0] for row in rows if row["reason"])
        said = ", ".join(f"{why} {count}" for why, count in refused.most_common())
        if not good:
            raise ValueError(
                f"data.pairs={printable(self.folder)}: none of {len(rows)} pairs can be used: "
                f"{said}; see {table}"
            )
        if refused:
            log.warning("%d of %d pairs left out: %s; see %s", refused.total(), len(rows), said,
                        table)  # fmt: skip
        return PairFolder(self.folder, good)

    def table(self, found: dict[str, tuple[Path | None, Path | None]]) -> Path:
        """Return the table's place, by the files' names, sizes and times and the settings."""
        about = [str(self.folder.resolve()), f"{self.max_shift} {self.min_side}"]
        for path in (path for pair in found.values() for path in pair if path):
            facts = path.stat()
            about.append(f"{path} {facts.st_size} {facts.st_mtime_ns}")
        text = "\n".join(about).encode("utf-8", "backslashreplace")
        digest = hashlib.blake2b(text, digest_size=4).hexdigest()
        return BELOW / f"{self.folder.resolve().name}-{digest}.csv"

    def _measured(self, found: dict[str, tuple[Path | None, Path | None]]) -> list[Row]:
        def measure(item: tuple[str, tuple[Path | None, Path | None]]) -> Row:
            name, (hq, lq) = item
            row = dict.fromkeys(COLUMNS, "") | {"name": name}
            if hq is None or lq is None:
                return row | {"reason": f"no partner in {'lq' if lq is None else 'hq'}/"}
            row |= {"hq": str(hq.relative_to(self.folder)), "lq": str(lq.relative_to(self.folder))}
            row["bytes"] = str(hq.stat().st_size + lq.stat().st_size)
            try:
                return row | self._facts(hq, lq)
            except SampleError as error:
                return row | {"reason": str(error)}

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return list(pool.map(measure, sorted(found.items())))

    def _facts(self, hq: Path, lq: Path) -> Row:
        high, low, factor = read_pair(hq, lq)
        if min(high.shape[-2:]) < self.min_side:
            size = f"{high.shape[-1]}x{high.shape[-2]}"
            raise SampleError("too small", f"{size}, shorter side at least {self.min_side}")
        offset = measure_offset(high, low)
        facts = {key: f"{value:.2f}" for key, value in offset._asdict().items()}
        facts["factor"] = str(factor)
        if offset.distance > self.max_shift:
            shift = f"{offset.distance:.1f} pixels, at most {self.max_shift:g}"
            facts["reason"] = (
                f"displaced: {shift} (data.pairs_max_shift)"
                if offset.peak >= SHARP
                else "no detail in common: another picture, or nothing to align by"
            )
        return facts


class DecodedPair(NamedTuple):
    """A pair (3, H, W) uint8, LQ enlarged to HQ's size, and by how much it was."""

    hq: Tensor
    lq: Tensor
    factor: int


def read_pair(hq: Path, lq: Path) -> DecodedPair:
    """Decode a pair and enlarge LQ to the size of HQ, by the cubic that the project uses.

    Raises:
        SampleError: A file is damaged, or HQ is not LQ's size times a whole number.
    """
    try:
        high, low = read_image(hq), read_image(lq)
    except (ValueError, OSError) as error:
        raise SampleError("damaged image", str(error)) from error
    (height, width), (small_height, small_width) = high.shape[-2:], low.shape[-2:]
    factor = height // small_height
    if (height, width) != (factor * small_height, factor * small_width):
        sizes = f"hq {width}x{height}, lq {small_width}x{small_height}"
        raise SampleError("sizes differ", f"{sizes}; expected equal ones, or a whole factor")
    return DecodedPair(high, resize(low, (height, width)), factor)


def match_names(folder: Path) -> dict[str, tuple[Path | None, Path | None]]:
    """Return name -> (hq, lq) of the images below hq/ and lq/ of a folder; None if one is missing.

    Raises:
        FileNotFoundError: hq/ or lq/ is missing.
        ValueError: One holds no images, or two of the same name.
    """
    sides: list[dict[str, Path]] = []
    for part in ("hq", "lq"):
        place, names = folder / part, {}
        if not place.is_dir():
            raise FileNotFoundError(
                f"data.pairs={printable(folder)}: no folder {part}/; expected hq/ and lq/, with "
                "files of the same names"
            )
        for path in list_images(place):
            name = path.relative_to(place).with_suffix("").as_posix()
            first = names.setdefault(name, path)
            if first != path:
                raise ValueError(f"data.pairs: {printable(first)} and {path.name} share a name")
        sides.append(names)
    high, low = sides
    return {name: (high.get(name), low.get(name)) for name in sorted({*high, *low})}


def as_csv(rows: Sequence[Row]) -> str:
    """Return the table of pairs, with the reason for each that is left out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def check_pairs(pairs: Path, heldout: str | Path | None, names: Sequence[str]) -> None:
    """Refuse what cannot go with pairs: `names` are those of sources, reader and features.

    Raises:
        ValueError: Held-out photographs lie among them, or a name does not fit.
    """
    if heldout is not None and Path(heldout).resolve().is_relative_to(pairs.resolve()):
        raise ValueError(f"data.heldout={heldout} lies in data.pairs={pairs}, which is trained on")
    wrong = {
        PAIRS: f"data.sources.{PAIRS} is the name of their own source; rename it",
        "stream": "data.reader=stream cannot mix them in; use data.reader=index",
        "latents": "data.precomputed cannot hold their features; use data.precomputed=[]",
    }
    wrong["text"] = wrong["latents"]
    for name in names:
        if name in wrong:
            raise ValueError(f"data.pairs={pairs}: {wrong[name]}")
