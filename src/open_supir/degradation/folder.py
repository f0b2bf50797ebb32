"""Degrade the images of a folder, and read the parameters that reproduce them."""

import json
import logging
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from open_supir.base.files import check_writable, write_bytes, write_text
from open_supir.base.images import Photo, read_image, to_signed, to_unit
from open_supir.base.images.inputs import find_photos
from open_supir.base.images.read import MAX_PIXELS
from open_supir.base.images.write import encode_photo
from open_supir.base.results import MANIFEST, choose_files, claim, read_record, refuse_foreign
from open_supir.base.rng import keyed_hash
from open_supir.degradation.params import DegradationParams
from open_supir.degradation.pipeline import DegradationPipeline

log = logging.getLogger(__name__)

ROWS = "parameters.jsonl"
RANGES = "degradation.yaml"
Rows = Mapping[str, DegradationParams]


def degrade_folder(
    pipeline: DegradationPipeline,
    source: Path,
    target: Path,
    *,
    seed: int,
    device: torch.device,
    rows: Rows | None = None,
    ranges: str = "",
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
) -> tuple[list[Path], list[str]]:
    """Write the LQ of every image below `source`, and the parameters.

    Parameters are drawn from `seed` and the image's name, or taken from `rows` by that name, so
    they do not depend on the other images in the folder. A bad image is logged and left out. The
    hashes of all files are recorded in MANIFEST: only those files are replaced by a later run.

    Args:
        source: An image or a folder; see `find_photos`.
        target: Where PNG files and parameters go, in the tree of `source`.
        rows: Parameters by source, instead of new ones.
        ranges: Text of a file RANGES beside the parameters; none if empty.
        max_pixels: Larger images are left out.
        overwrite: Replace files that are not ours, too.

    Returns:
        The files written, and the messages of what failed.

    Raises:
        FileExistsError: Parameters that are not ours are in the target folder.
        OSError: Nothing can be written there.
    """
    photos = find_photos(source, target)
    results = _Results(target, set(photos.paths), overwrite)
    names = [path.relative_to(photos.root) for path in photos.paths]
    files = choose_files(
        names, lambda stem, name: (target / name.parent / f"{stem}.png",), results.sources.get
    )
    written, failed, lines = [], list(photos.problems), []
    for path, name, (file,) in zip(photos.paths, names, files, strict=True):
        key = name.as_posix()
        try:
            results.refuse_foreign(file)
            hq = to_signed(read_image(path, max_pixels=max_pixels))[None].to(device)
            params = _params(pipeline, hq, key, seed, rows)
            lq = to_unit(pipeline.apply(hq, params))[0].cpu()
        except (ValueError, OSError) as error:
            failed.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            log.warning("left out: %s", failed[-1])
            continue
        results.write(file, encode_photo(Photo(rgb=lq), format="png"), source=name.name)
        written.append(file)
        row = {"file": file.relative_to(target).as_posix(), "source": key} | params.rows()[0]
        lines.append(json.dumps(row) + "\n")
        log.info("%s  %s", row["file"], params.summaries()[0])
    results.finish("".join(lines), ranges)
    return written, failed


class _Results:
    """The files in the target folder that are ours; their record precedes each of them."""

    def __init__(self, target: Path, inputs: set[Path], overwrite: bool) -> None:
        check_writable(target)
        self.record, self.overwrite = target / MANIFEST, overwrite
        self.inputs = {os.path.realpath(path) for path in inputs}
        kept = claim(self.record, overwrite=overwrite)
        self.ours = {target / item["name"]: item for item in kept}
        said = (read_record(self.record) or {"outputs": []})["outputs"]
        self.sources = {target / item["name"]: item.get("source") for item in said}
        for name in (ROWS, RANGES):
            self.refuse_foreign(target / name)
        self._rewrite()

    def refuse_foreign(self, file: Path) -> None:
        if os.path.realpath(file) in self.inputs:
            raise ValueError(f"{file} is an input; choose another output folder")
        if not self.overwrite or file.is_dir():
            refuse_foreign(file, self.ours)

    def write(self, file: Path, content: bytes, *, source: str | None = None) -> None:
        name = file.relative_to(self.record.parent).as_posix()
        item = {"name": name, "sha256": sha256(content).hexdigest()}
        self.sources[file] = source
        with self.record.open("a", encoding="utf-8") as lines:
            lines.write(self._line(item))
        write_bytes(file, content, fsync=False)
        self.ours[file] = item

    def finish(self, rows: str, ranges: str) -> None:
        self.write(self.record.with_name(ROWS), rows.encode())
        if ranges:
            self.write(self.record.with_name(RANGES), ranges.encode())
        self._rewrite()

    def _line(self, item: dict[str, str]) -> str:
        source = self.sources.get(self.record.parent / item["name"])
        return json.dumps(item | ({} if source is None else {"source": source})) + "\n"

    def _rewrite(self) -> None:
        write_text(self.record, "".join(self._line(item) for item in self.ours.values()))


def _params(
    pipeline: DegradationPipeline, hq: Tensor, key: str, seed: int, rows: Rows | None
) -> DegradationParams:
    if rows is None:
        seeds = torch.tensor([image_seed(seed, key)])
        return pipeline.draw(seeds, size=(hq.shape[-2], hq.shape[-1]))
    if key not in rows:
        raise ValueError(f"no row of the parameters has the source {key!r}")
    return rows[key]


def image_seed(seed: int, name: str) -> int:
    """Return the 63-bit seed of an image from its path below the input folder."""
    return keyed_hash("degrade", seed, name, size=8) >> 1


def read_rows(path: Path) -> Rows:
    """Read the parameters of each source from a file that `degrade_folder` wrote.

    Raises:
        ValueError: A line is not a row of parameters; the message names it.
    """
    rows = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            params = {key: value for key, value in row.items() if key not in ("file", "source")}
            rows[row["source"]] = DegradationParams.from_rows([params])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number}: not a row of parameters as src.degrade writes them "
                f"({type(error).__name__}: {error})"
            ) from error
    return rows
