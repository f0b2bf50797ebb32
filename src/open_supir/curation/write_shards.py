"""The last step: kept samples as the shards that training reads."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from open_supir.base.files import write_text
from open_supir.curation.shard_layout import ShardLayoutStep
from open_supir.curation.tables import read_rows
from open_supir.curation.work import Process, Unit, digest, read_done, unit_folder

log = logging.getLogger(__name__)

MADE_FROM = ".made-from"


@dataclass(frozen=True, kw_only=True)
class ShardStep:
    """Writes the shards of a layout."""

    layout: ShardLayoutStep
    output: str

    @property
    def name(self) -> str:
        """Return the step's name: each source has its own."""
        return f"shards-{self.layout.source}"

    def settings(self) -> Mapping[str, Any]:
        """Return all that decides the output."""
        return {"origin": self.layout.origin, "output": self.output}

    def open(self) -> Process:
        """Return the work."""
        return self._write

    def _write(self, unit: Unit, folder: Path) -> Mapping[str, Any]:
        """Write one shard at its final place; returns its manifest entry."""
        from open_supir.data.shards import write_shard

        rows = read_rows(Path(unit.inputs["listing"]))
        target = Path(self.output) / self.layout.source / unit.inputs["tar"]
        entry = write_shard(target, self._samples(Path(unit.inputs["root"]), rows))
        return {"shard": asdict(entry)}

    def _samples(self, root: Path, rows: list[dict[str, Any]]) -> Iterator[Any]:
        from open_supir.data.shards import ShardEntry, ShardFolder, StoredSample

        origin = self.layout.origin
        names = sorted({row["unit"] for row in rows})
        entries = []
        for name in names:
            done = read_done(unit_folder(root, origin, name))
            if done is None:
                raise FileNotFoundError(f"unit {name} is gone; run step={origin} again")
            entry = done["statistics"]["shard"]
            entries.append(ShardEntry(**{**entry, "name": f"{name}/{entry['name']}"}))
        shards = ShardFolder(root / origin, entries)  # keeps at most 128 tars open
        try:
            for row in rows:
                raw = shards.read(names.index(row["unit"]), row["index"])
                if raw.key != row["key"]:
                    raise ValueError(
                        f"sample {row['index']} of unit {row['unit']} is {raw.key}, "
                        f"not {row['key']}; run step={origin} again"
                    )
                meta = json.loads(raw.meta or b"{}") | json.loads(row["meta"])
                yield StoredSample(
                    key=raw.key, image=raw.image, caption=row["caption"] or "", meta=meta
                )
        finally:
            shards.close()


def shard_units(layout: ShardLayoutStep, root: Path, *, prefix: str | None = None) -> list[Unit]:
    """Return a unit for every shard of a finished layout.

    Names are `PREFIX-HASH-NNNNNN.tar`, where the hash stands for all that is in the shards, so that
    no two data sets share a name. A `prefix` leaves the hash out.
    """
    folder = unit_folder(root, layout.name, "all")
    done = read_done(folder)
    if done is None:
        raise FileNotFoundError(f"{folder}: no layout")
    contents = done["statistics"]["shards"]
    stem = prefix or f"{layout.source}-{digest(contents)[:8]}"
    return [
        Unit(
            name,
            digest(content, stem),
            {
                "root": str(root),
                "listing": str(folder / f"{name}.parquet"),
                "tar": f"{stem}-{name}.tar",
            },
        )
        for name, content in contents.items()
    ]


def finish_shards(step: ShardStep, units: list[Unit], root: Path) -> list[dict[str, Any]]:
    """Write the manifest of a source's shards and delete those of earlier layouts.

    Returns:
        The manifest's entries; it is not written where it says so already.
    """
    folder = Path(step.output) / step.layout.source
    entries = []
    for unit in units:
        done = read_done(unit_folder(root, step.name, unit.name))
        if done is not None:
            entries.append(done["statistics"]["shard"])
    try:
        listed = json.loads((folder / "manifest.json").read_bytes())["shards"]
    except (OSError, ValueError, KeyError):
        listed = None
    if not entries:
        log.warning("%s: no samples, so nothing is written", step.layout.source)
        return entries
    if listed != entries:
        from open_supir.data.shards import ShardEntry, write_manifest

        write_manifest(folder, [ShardEntry(**entry) for entry in entries])
    names = {entry["name"] for entry in entries}
    for tar in folder.glob("*.tar"):
        if tar.name not in names:
            log.info("%s: of an earlier layout, deleted", tar)
            from open_supir.data.shards import index_path

            tar.unlink()
            index_path(tar).unlink(missing_ok=True)
    return entries


def claim(folder: Path, made_from: str) -> None:
    """Note beside the shards what they are made from.

    Raises:
        ValueError: There are shards already, made from something else: they would be deleted.
    """
    note = folder / MADE_FROM
    if note.is_file() and note.read_text(encoding="utf-8") == made_from:
        return
    if note.is_file() or next(folder.glob("*.tar"), None) is not None:
        raise ValueError(
            f"{folder} holds shards made from another input, and this run would replace them; "
            "give another shards.source (or negatives.source) or shards_dir, or delete that folder"
        )
    write_text(note, made_from)


def missing_tars(step: ShardStep, units: list[Unit], root: Path) -> list[Unit]:
    """Return the units whose finished shard is not at its final place any more."""
    gone = []
    for unit in units:
        folder = unit_folder(root, step.name, unit.name)
        done = read_done(folder)
        if done is None:
            continue
        entry = done["statistics"]["shard"]
        path = Path(step.output) / step.layout.source / entry["name"]
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            gone.append(unit)
    return gone
