"""The data card: contents of a data set, their origin, and how they were selected."""

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from open_supir.base.files import write_text
from open_supir.curation.tables import read_table
from open_supir.curation.thresholds import stored_rows
from open_supir.curation.work import digest, read_done, unit_folder
from open_supir.reports.document import (
    Block,
    Code,
    Heading,
    Listing,
    Table,
    Text,
    render_markdown,
)

PACKAGES = ("open-supir", "torch", "pillow", "simplejpeg", "numpy", "webdataset", "pyarrow")

Units = Sequence[tuple[str, Mapping[str, Any]]]  # name and `done.json`


def write_card(
    folder: Path,
    root: Path,
    settings: Any,
    entries: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    filtered: Units,
    captioned: Units,
) -> None:
    """Write `card.json` and `CARD.md` beside the positives, unless they are up to date.

    Args:
        folder: Folder of the positives' shards.
        entries: Source -> entries of its manifest.
        filtered: Units of the filter.
        captioned: Units that the positives come from.
    """
    about = _settings(settings)
    hashes = {s: [e["sha256"] for e in listed] for s, listed in entries.items()}
    state = digest(about, hashes, [done["result"] for _, done in (*filtered, *captioned)])
    path = folder / "card.json"
    try:
        if json.loads(path.read_bytes())["state"] == state and (folder / "CARD.md").is_file():
            return
    except (OSError, ValueError, KeyError):
        pass
    card = {"state": state, "settings": about}
    card |= _counts(root, settings, entries, filtered, captioned)
    card["versions"] = _versions()
    write_text(folder / "CARD.md", _markdown(card))
    write_text(path, json.dumps(card, indent=1))


def _settings(settings: Any) -> dict[str, Any]:
    steps = {
        name: dict(step.settings())
        for name in ("filter", "score", "dedup", "caption", "negatives", "positives")
        if (step := getattr(settings, name)) is not None
    }
    if settings.dedup is not None:
        steps["dedup"]["against"] = [Path(path).name for path in settings.dedup.against]
    return steps | {"thresholds": settings.thresholds.plain()}


def _counts(
    root: Path,
    settings: Any,
    entries: Mapping[str, Sequence[Mapping[str, Any]]],
    filtered: Units,
    captioned: Units,
) -> dict[str, Any]:
    """Count candidates, refusals by reason, and samples in the shards by source and licence."""
    refused: Counter[str] = Counter()
    candidates = 0
    for _, done in filtered:
        candidates += done["statistics"]["rows"]
        refused.update(done["statistics"]["refused"])
    selected = read_done(unit_folder(root, "select", "all"))
    refused.update(selected["statistics"]["refused"] if selected else {})
    sources: Counter[str] = Counter()
    licences: Counter[str] = Counter()
    failed = 0
    for unit, _ in captioned:
        path = unit_folder(root, "caption", unit) / "rows.parquet"
        rows = read_table(path, ["key", "error"]).to_pylist()
        good = {row["key"] for row in rows if row["error"] is None}
        failed += len(rows) - len(good)
        (stored,) = stored_rows(root, [unit], ["source", "licence"], scores=False)
        for row in stored.table.to_pylist():
            if row["key"] in good:
                sources[row["source"]] += 1
                licences[row["licence"] or "not stated"] += 1
    if failed:
        refused["caption failed"] = failed
    words = {}
    for layout in (settings.positives, settings.negative_shards):
        done = read_done(unit_folder(root, layout.name, "all"))
        if done is not None and layout.source in entries:
            words[layout.source] = done["statistics"]["captions"]
    return {
        "candidates": candidates,
        "refused": dict(refused.most_common()),
        "shards": {
            source: {
                "samples": sum(e["count"] for e in listed),
                "shards": len(listed),
                "bytes": sum(e["bytes"] for e in listed),
                "caption_words": words.get(source, {}),
            }
            for source, listed in entries.items()
        },
        "sources": dict(sources.most_common()),
        "licences": dict(licences.most_common()),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _markdown(card: Mapping[str, Any]) -> str:
    """Render the card for people."""
    shards = [
        [source, str(row["samples"]), str(row["shards"]), f"{row['bytes'] / 1e9:.3f}"]
        for source, row in card["shards"].items()
    ]
    blocks: list[Block] = [
        Heading("Data card", 1),
        Heading("Contents"),
        Table(["source", "samples", "shards", "GB"], shards),
        Text(f"{card['candidates']} candidates in the input."),
        *_counted("Refused", "reason", card["refused"]),
        *_counted("Origin of the positives", "source", card["sources"]),
        *_counted("Licences of the positives", "licence", card["licences"]),
    ]
    for source, row in card["shards"].items():
        ranges = {_word_range(low): count for low, count in row["caption_words"].items()}
        blocks += _counted(f"Caption length, {source}", "words", ranges)
    blocks += [
        Heading("Settings"),
        Code(json.dumps(card["settings"], indent=1, sort_keys=True), "json"),
        Heading("Versions"),
        Listing([f"{name} {number}" for name, number in card["versions"].items()]),
    ]
    return render_markdown(blocks)


def _counted(title: str, name: str, counts: Mapping[str, int]) -> list[Block]:
    rows = [[key, str(count)] for key, count in counts.items()]
    return [Heading(title), Table([name, "count"], rows)]


def _word_range(low: str) -> str:
    """Format a range of caption lengths, given its lowest number of words."""
    return f"{max(1, int(low))} to {int(low) + 15}" if low.isdigit() else "no caption"
