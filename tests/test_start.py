"""Start-up: commands import only what they need, measured by modules and not by time."""

import subprocess
import sys

import pytest

from tests.test_configs import ROOT

HEAVY = ("scipy.stats", "matplotlib", "lightning", "gradio", "torchvision", "pyiqa", "skimage",
         "pandas", "open_clip")  # fmt: skip


def _imported(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has after running `code`."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": ""}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return set(ended.stdout.split())


@pytest.mark.parametrize("name", ["restore", "evaluate", "webui", "convert"])
def test_commands_need_no_torch_before_they_work(name: str) -> None:
    found = _imported(f"import open_supir.commands.{name}")
    assert f"open_supir.commands.{name}" in found
    assert not {"torch", "numpy", *HEAVY} & found


def test_restoring_needs_no_training_evaluation_or_plots() -> None:
    """All that a dry run imports, and what restoring adds but for open_clip's text towers."""
    found = _imported("import open_supir.inference.model, open_supir.inference.records")
    assert "torch" in found
    assert not set(HEAVY) & found
