"""Check folders of shards and build missing indexes: data.root=FOLDER."""

import sys
from collections.abc import Sequence

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from open_supir.base.cli import command
from open_supir.data.inspection import FolderReport, inspect_folders, verdict


def overview(reports: Sequence[FolderReport]) -> Table:
    """Tabulate what each folder holds."""
    columns = ("folder", "shards", "samples", "decoded", "refused", "skipped", "faults", "built")
    table = Table(*columns)
    for r in reports:
        counts = (r.shards, r.samples, r.decoded, r.bad, r.skipped.total(), len(r.faults))
        table.add_row(r.folder.name, *map(str, counts), str(len(r.built)))
    return table


def reasons(reports: Sequence[FolderReport]) -> Table:
    """Tabulate what training would skip, and why."""
    table = Table("folder", "reason", "count", "for example")
    for r in reports:
        for reason, count in r.skipped.most_common():
            table.add_row(r.folder.name, reason, str(count), "\n".join(r.examples[reason][:2]))
    return table


@command("check")
def main(cfg: DictConfig) -> None:
    """Print the tables; exit with status 1 if the data is not fit for training."""
    reports = inspect_folders(cfg.data.root, instantiate(cfg.settings, _convert_="all"))
    console = Console()
    console.print(overview(reports))
    if any(r.skipped for r in reports):
        console.print(reasons(reports))
    for r in reports:
        for fault in r.faults[:20]:
            console.print(f"fault in {r.folder}: {fault}", markup=False, highlight=False)
    wrong = verdict(reports, cfg.limit)
    if wrong:
        sys.exit(f"not fit for training: {wrong}")
    console.print("fit for training")


if __name__ == "__main__":
    main()
