"""Sweeps: the folder of each job, and a table of what each job's number means."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from open_supir.base.arguments import MULTIRUN, PATHS

LONGEST = 60  # characters of a job's folder, after its number
TABLE = "jobs.txt"


def job_folder(number: int, overrides: str) -> str:
    """Return the name of a job's folder: its number, and what was swept, short and escaped."""
    words = re.sub(r"[^\w.=+]+", "-", overrides.replace("'", "").replace('"', ""))
    return f"{number}_{words[:LONGEST]}".rstrip("_-.")


# Here, because a job may run in a process that only imports its command.
OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)


def name_jobs(arguments: Sequence[str]) -> list[str]:
    """Return a command's arguments; in a sweep, its folders are named by what is swept, but for
    paths.
    """
    if not any(argument in MULTIRUN for argument in arguments):
        return list(arguments)
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    constant = {o.key_or_group for o in parsed if not o.is_sweep_override()}
    names = ",".join(f"'{name}'" for name in sorted(constant | set(PATHS)))
    return [*arguments, f"hydra.job.config.override_dirname.exclude_keys=[{names}]"]


def note_job(folder: Path, overrides: Sequence[str]) -> None:
    """Add a job's line to the table beside its folder: folder, tab, overrides."""
    line = f"{folder.name}\t{' '.join(map(bare, overrides))}\n"
    table = folder.parent / TABLE
    if not table.is_file() or line not in table.read_text(encoding="utf-8"):  # put back in a queue
        with table.open("a", encoding="utf-8") as file:
            file.write(line)


def bare(override: str) -> str:
    """Return an override without the quotes around its value."""
    return re.sub(r"^([^=]+=)'([^']*)'$", r"\1\2", override)


def in_order(path: Path) -> list[str | int]:
    """Return a sort key that puts 2_x before 10_x."""
    return [int(word) if word.isdecimal() else word for word in re.split(r"(\d+)", path.name)]
