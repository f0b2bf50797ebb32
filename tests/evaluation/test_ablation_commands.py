"""Every sweep that docs/ablations.md prints composes, job by job, at both scales."""

import itertools
import re
import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from benchmarks import ablation_study as study
from tests.test_configs import CONF, ROOT

COMMANDS = re.findall(
    r"^python -m src\.(train|evaluate) -m (.+)$",
    (ROOT / "docs/ablations.md").read_text().replace("\\\n", ""),
    re.M,
)
FULL = [
    "scale=sdxl", "weights.sdxl=a.safetensors", "data.root=d", "data.heldout=h",
]  # fmt: skip


def jobs(arguments: str) -> list[list[str]]:
    """Return the overrides of each job, as Hydra's own sweeper splits them."""
    parsed = OverridesParser.create().parse_overrides(shlex.split(arguments))
    choices = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [o.input_line]
        for o in parsed
    ]
    return [list(job) for job in itertools.product(*choices)]


def test_documentation_has_every_sweep() -> None:
    assert len(COMMANDS) == 11


@pytest.mark.parametrize(("name", "arguments"), COMMANDS, ids=[a[:60] for _, a in COMMANDS])
def test_documented_sweep_composes(name: str, arguments: str) -> None:
    made = []
    with initialize_config_dir(CONF, version_base="1.3"):
        for job in jobs(arguments):
            made.append(compose(name, overrides=job))
            if name == "train":
                wide = [o for o in job if not re.match(r"\+?data\.(root|prepare)", o)]
                compose("train", overrides=[*wide, *FULL])
    assert len(made) > 1 and all(a != b for a, b in itertools.combinations(made, 2))


def test_every_run_of_the_study_composes() -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        for changes in study.TRAINED.values():
            compose("train", overrides=[*study.COMMON, *changes])
        for variants in study.VARIANTS.values():
            for changes in variants.values():
                compose("evaluate", overrides=[*study.EVALUATED, *changes])
    rows = {run for family in study.FAMILIES.values() for run in family.values()}
    made = {(name, "") for name in study.TRAINED} | {
        (name, f"_{variant}") for name, own in study.VARIANTS.items() for variant in own
    }
    assert rows == made  # nothing is run for no table, and no table waits for what is never run
