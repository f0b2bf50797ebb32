"""Compare finished runs: tables, curves and pictures.

Compares the newest sweep, or those named, as runs='runs/zerosft/multirun/*'. Writes Markdown, HTML
and CSV, and prints the tables.
"""

import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from open_supir.base.cli import command
from open_supir.base.sweeps import in_order
from open_supir.evaluation.finished_runs import find_runs, label_runs, newest_sweep, read_run
from open_supir.evaluation.side_by_side import ComparisonSettings, write_comparison

log = logging.getLogger(__name__)


def compare(cfg: DictConfig) -> str:
    """Find the configured runs, write the report, and return its tables.

    Raises:
        FileNotFoundError: A named run does not exist, or there are no runs.
        ValueError: A file of a run is damaged.
    """
    root = Path(cfg.runs_dir)
    named = [cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs or [])
    sweep = [] if named else newest_sweep(root)
    if not named and not root.is_dir():
        raise FileNotFoundError(f"no runs: there is no folder {root}; train first, or set runs=")
    paths = find_runs(named or sweep or [root])
    if not paths:
        places = ", ".join(named) or str(root)
        raise FileNotFoundError(
            f"no runs below {places}: a run folder holds config.yaml and metrics.csv, "
            "summary.json or eval/records.jsonl"
        )
    if sweep:
        paths.sort(key=in_order)  # a sweep over experiments lies in several folders
        places = ", ".join(map(str, sweep))
        log.info("comparing the newest sweep, %s; choose other runs with runs=[...]", places)
    runs = label_runs([read_run(path) for path in paths])
    if cfg.baseline is not None:
        if not any(cfg.baseline in run.label for run in runs):
            labels = ", ".join(run.label for run in runs)
            raise ValueError(f"no run is labelled {cfg.baseline!r}; labels: {labels}")
        runs.sort(key=lambda run: cfg.baseline not in run.label)  # stable: keeps the others' order
    settings = ComparisonSettings(**OmegaConf.to_container(cfg.show, resolve=True))  # type: ignore[arg-type]
    tables = write_comparison(runs, Path(cfg.output), settings)
    log.info("report: %s", Path(cfg.output) / "report.html")
    return tables


@command("ablation")
def main(cfg: DictConfig) -> None:
    """Write the report and print its tables."""
    print(compare(cfg))


if __name__ == "__main__":
    main()
