"""Build a training set from photographs: input=FOLDER output=FOLDER.

Filters, scores, deduplicates and captions them, makes negative samples and writes shards. Continues
where it was stopped and repeats no finished work. `step=NAME` runs one step.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from open_supir.base.cli import command, require
from open_supir.curation.configured import settings_of, steps_of
from open_supir.curation.pipeline import Pipeline, UnitsFailed
from open_supir.curation.runners import OpenError

BUILD = partial(instantiate, _convert_="all")


@command("curate")
def main(cfg: DictConfig) -> None:
    """Run the command line; exit with status 1 if units failed."""
    try:
        print(curate(cfg), end="")
    except (UnitsFailed, OpenError, ImportError) as error:
        raise ValueError(str(error)) from error


def curate(cfg: DictConfig) -> str:
    """Run the configured steps; return what came out, in lines."""
    require(cfg, "input", "output")
    values = plain(cfg)
    settings = settings_of(values, BUILD)
    runner = instantiate(cfg.runner, _convert_="all")
    said = Pipeline(settings, runner).run(steps_of(values["step"]))
    return f"{said}\n" if said else ""


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the values of a configuration, with absolute paths: workers may have another
    working directory.
    """
    for name in ("output", "shards_dir"):
        cfg[name] = os.path.abspath(Path(cfg[name]).expanduser())
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


if __name__ == "__main__":
    main()
