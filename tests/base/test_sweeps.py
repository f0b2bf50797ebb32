"""Folders of a sweep's jobs: short, flat, in order, named by what is swept."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from open_supir.base.sweeps import in_order, job_folder, name_jobs, note_job


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("connector=zerosft,seed=0", "3_connector=zerosft-seed=0"),
        ("optim.betas=[0.5,0.6]", "3_optim.betas=-0.5-0.6"),
        ("options.positive_prompt='a/b: \\'c\\''", "3_options.positive_prompt=a-b-c"),
        ("", "3"),
        (
            "options.positive_prompt=" + "long " * 100,
            "3_options.positive_prompt=" + "long-" * 7 + "l",
        ),
    ],
)
def test_a_folder_name_is_flat_and_short(overrides: str, name: str) -> None:
    found = job_folder(3, overrides)
    assert found == name and len(found) <= 62


def test_folders_are_named_by_what_is_swept_but_for_paths() -> None:
    arguments = ["-m", "experiment=zerosft", "connector=a,b", "checkpoint='x','y'", "+new=1"]
    assert name_jobs(arguments[1:]) == arguments[1:]
    *same, last = name_jobs(arguments)
    assert same == arguments
    excluded = OverridesParser.create().parse_override(last).value()
    assert {"experiment", "new", "checkpoint", "data.root"} <= set(excluded)
    assert "connector" not in excluded


def test_the_table_has_one_line_a_job(tmp_path: Path) -> None:
    for number in (0, 1, 1):
        note_job(tmp_path / f"{number}_seed={number}", ["a=b", f"seed={number}"])
    lines = (tmp_path / "jobs.txt").read_text().splitlines()
    assert lines == ["0_seed=0\ta=b seed=0", "1_seed=1\ta=b seed=1"]


def test_jobs_are_in_the_order_of_the_sweep() -> None:
    names = ["10_a", "2_b", "0_z", "1_b", "1_a"]
    found = sorted(map(Path, names), key=in_order)
    assert [path.name for path in found] == ["0_z", "1_a", "1_b", "2_b", "10_a"]
