"""OwnPhotos: training from a folder of photographs, or from the output of `src.curate`."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from open_supir.base.files import printable, remove_leftovers
from open_supir.base.folders import walk
from open_supir.base.images.listing import ImageListing, no_images, walk_images
from open_supir.data.datamodule import RestorationDataModule
from open_supir.data.dataset import SourceConfig
from open_supir.data.photo_store import HELD_OUT, POSITIVE, Report, StoreSettings, store_photos
from open_supir.data.shards import MANIFEST, read_manifest

log = logging.getLogger(__name__)

BELOW = Path("data/shards/own")
CAPTIONS = "python -m src.curate input={root} output=DIR captioner=local captioner.model=NAME"
OTHER = SourceConfig(weight=1, missing_caption="empty")


class OwnPhotos(RestorationDataModule):
    """Batches from one's own photographs, which are stored as shards before the first run.

    `chosen` holds the folder of these shards and that of the photographs held out from them.

    Args:
        root: Folder of photographs at any depth, with captions in text files of their names; or
            the output of `src.curate`.
        sources: Rules for what `src.curate` wrote, by name; each weight is multiplied by the
            number of samples. Sources without rules are used too, those that are None are not.
        store: How photographs are stored.
        prepared: Folder of the shards; by default one below data/shards/own, named after `root` and
            a hash of its files' names, sizes and times, and of `store`.
        heldout: Folder of other validation photographs; then none of `root` is held out.
        options: Of RestorationDataModule.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds neither images nor shards.
    """

    def __init__(
        self,
        root: str | Path,
        sources: Mapping[str, SourceConfig | None],
        *,
        store: Mapping[str, Any],
        prepared: str | Path | None = None,
        heldout: str | Path | None = None,
        **options: Any,
    ) -> None:
        self.photos, self.rules = Path(root).expanduser(), dict(sources)
        self.store = StoreSettings(**store)
        if heldout is not None and not Path(heldout).is_relative_to(prepared or BELOW):
            self.store = replace(self.store, heldout_most=0)
        self._found: ImageListing | dict[str, Path] | None = None
        if prepared is None:
            prepared = BELOW / f"{self.photos.resolve().name or 'photos'}-{self._digest()}"
        heldout = heldout or Path(prepared) / HELD_OUT
        if (pairs := options.get("pairs")) and self.store.heldout_most and _overlap(pairs, root):
            raise ValueError(
                f"data.pairs={pairs} and data.root={root} hold the same photographs, and those set "
                "aside from data.root would be trained on as pairs; name others: data.heldout=DIR"
            )
        super().__init__(prepared, {POSITIVE: OTHER}, heldout=heldout, **options)
        self.chosen = {"prepared": str(prepared), "heldout": str(heldout)}

    @property
    def found(self) -> ImageListing | dict[str, Path]:
        """The image files, or the folders of shards by source."""
        if self._found is None:
            self._found = find(self.photos)
        return self._found

    def _digest(self) -> str:
        """Hash the settings, and names, sizes and times of all files."""
        if isinstance(self.found, dict):
            files = [folder / MANIFEST for folder in self.found.values()]
        else:
            walked = walk(self.photos, lambda path, reason: None)
            files = [place / name for place, names in walked for name in names]
        about = [str(self.photos.resolve()), asdict(self.store)]
        for path in files:
            if path.is_file():
                facts = path.stat()
                about.append([str(path), facts.st_size, facts.st_mtime_ns])
        text = json.dumps(about, sort_keys=True).encode("utf-8", "backslashreplace")
        return hashlib.blake2b(text, digest_size=4).hexdigest()

    def prepare_data(self) -> None:
        """Store the photographs, unless that is done; runs in one process per node."""
        target = Path(self.root)
        if target.is_dir():
            return
        log.info("storing the photographs of %s in %s", printable(self.photos), target)
        remove_leftovers(target.parent)
        report = store_photos(target, self.photos, self.found, self.store)
        _tell(report, self.photos, target)

    def setup(self, stage: str | None = None) -> None:
        """Take the sources that are stored, then plan the order."""
        self._take_sources()
        super().setup(stage)

    def check(self) -> None:
        """Look for faults before anything expensive is loaded; see the base class."""
        self._take_sources()
        super().check()

    def _take_sources(self) -> None:
        found = sorted(path.parent for path in Path(self.root).glob(f"*/{MANIFEST}"))
        rules = {folder.name: self.rules.get(folder.name, OTHER) for folder in found}
        self.sources = {
            folder.name: replace(rule, weight=rule.weight * _size(folder))
            for folder in found
            if (rule := rules[folder.name]) is not None
        }
        if not self.sources:
            raise ValueError(
                f"data.root={printable(self.photos)}: every source is switched off "
                f"({', '.join(f'data.sources.{name}=null' for name in rules)})"
            )


def find(root: Path) -> ImageListing | dict[str, Path]:
    """Return the folders of shards that `src.curate` wrote to `root`, by source, or else the image
    files below it.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It holds neither.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"data.root={printable(root)}: no such folder of photographs")
    for place in (root / "shards", root):
        folders = {path.parent.name: path.parent for path in place.glob(f"*/{MANIFEST}")}
        if folders:
            if POSITIVE not in folders:
                raise ValueError(
                    f"data.root={printable(root)}: no source {POSITIVE!r} among the folders of "
                    f"shards, {', '.join(sorted(folders))}; use data=shards for these"
                )
            return dict(sorted(folders.items()))
    listing = walk_images(root)
    if not listing.images:
        raise ValueError(f"data.root={printable(root)}: {no_images(listing)}")
    return listing


def _overlap(one: str | Path, other: str | Path) -> bool:
    places = [Path(path).expanduser().resolve() for path in (one, other)]
    return places[0].is_relative_to(places[1]) or places[1].is_relative_to(places[0])


def _size(folder: Path) -> int:
    return sum(entry.count for entry in read_manifest(folder, statistics=False))


def _tell(report: Report, root: Path, target: Path) -> None:
    """Log what became of the photographs."""
    trained = report.kept.total() - report.kept[HELD_OUT]
    held = f"{report.kept[HELD_OUT]} held out, "
    log.info("%d images for training, %s%d left out", trained, held, len(report.skipped))
    if report.skipped:
        log.warning("left out: %s; see %s", report.reasons(), target / "skipped.csv")
    if bare := report.bare.total():
        log.info(
            "%d images have no caption and train without; %s makes captions",
            bare, CAPTIONS.format(root=printable(root)),
        )  # fmt: skip
