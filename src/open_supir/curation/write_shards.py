"""The last step: write the selected samples as shards for training."""

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
        """Return the step's name, one per source."""
        return f"shards-{self.layout.source}"

    def settings(self) -> Mapping[str, Any]:
        """Return everything that determines the output."""
        return {"origin": self.layout.origin, "output": self.output}

    def open(self) -> Process:
        """Return the function that writes a unit's shard."""
        return self._write

    def _write(self, unit: Unit, folder: Path) -> Mapping[str, Any]:
        """Write one shard to its final place; return its manifest entry."""
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
    """Return one unit per shard of a finished layout.

    Tars are named `SOURCE-HASH-NNNNNN.tar`. The hash covers the contents of all shards, so that
    data sets never share a name. With `prefix` they are named `PREFIX-NNNNNN.tar`.
    """
    folder = unit_folder(root, layout.name, "all")
    done = read_done(folder)
    if done is None:
        raise FileNotFoundError(f"{folder} holds no finished layout; run step=shards again")
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
        The manifest's entries. A manifest that lists them already is not rewritten.
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
        log.warning("source %s has no samples; no shards are written", step.layout.source)
        return entries
    if listed != entries:
        from open_supir.data.shards import ShardEntry, write_manifest

        write_manifest(folder, [ShardEntry(**entry) for entry in entries])
    names = {entry["name"] for entry in entries}
    for tar in folder.glob("*.tar"):
        if tar.name not in names:
            log.info("deleted %s, which belongs to an earlier layout", tar)
            from open_supir.data.shards import index_path

            tar.unlink()
            index_path(tar).unlink(missing_ok=True)
    return entries


def claim(folder: Path, made_from: str) -> None:
    """Record in the folder of the shards what they are made from.

    Raises:
        ValueError: It already holds shards made from something else, which would be deleted.
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
    """Return the units whose finished shard is no longer at its final place."""
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
