"""Every preset composes to the values in presets.yaml, whatever it takes from others.

presets.yaml holds all values of supir_q, and of the other presets those that differ from it. To
change a preset on purpose, run `python -m tests.degradation.test_presets` and commit the file.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import instantiate

from .samples import PRESETS, composed

TABLE = Path(__file__).with_name("presets.yaml")
FULL = "supir_q"


def values_of(name: str) -> dict[str, Any]:
    """Return every value of a preset by dotted key, as plain values."""
    pipeline = instantiate(composed(name))
    values: dict[str, Any] = {"path": pipeline.path, "compiled": pipeline.run is not None}
    nodes = [("config", asdict(pipeline.config))]
    while nodes:
        prefix, node = nodes.pop()
        for key, value in node.items():
            if isinstance(value, dict):
                nodes.append((f"{prefix}.{key}", value))
            else:
                values[f"{prefix}.{key}"] = list(value) if isinstance(value, tuple) else value
    return dict(sorted(values.items()))


def write_table() -> None:
    """Write presets.yaml from the present configuration."""
    full = values_of(FULL)
    table = {
        name: {k: v for k, v in values_of(name).items() if name == FULL or v != full[k]}
        for name in PRESETS
    }
    TABLE.write_text(yaml.safe_dump(table, width=100, default_flow_style=None, sort_keys=False))


@pytest.mark.parametrize("name", PRESETS)
def test_preset_composes_to_its_fixed_values(name: str) -> None:
    table = yaml.safe_load(TABLE.read_text())
    assert values_of(name) == table[FULL] | table[name]


def test_table_lists_every_preset_and_no_other() -> None:
    assert list(yaml.safe_load(TABLE.read_text())) == PRESETS


if __name__ == "__main__":
    write_table()
