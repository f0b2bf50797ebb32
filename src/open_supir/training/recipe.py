"""The recipe of a checkpoint: how to build its networks, and how to sample with them."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from open_supir.base.registry import trust

# The parts from which `build` can rebuild the networks without the run's configuration.
ARCHITECTURE = ("unet", "control", "connector", "vae", "conditioner", "denoiser")


def make_recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of a run, and trust the classes that it names.

    Args:
        config: Of the run: its stage, the specs named in ARCHITECTURE, sampler and options.

    Raises:
        ValueError: A class is neither ours nor of a plugin.
    """
    recipe: dict[str, Any] = {
        "architecture": {part: config[part] for part in ARCHITECTURE},
        **{key: config[key] for key in ("stage", "sampler", "options")},
        "weights": {},  # the base files, once they are loaded
        "commit": _git_commit(),
    }
    trust(recipe)
    return recipe


def _git_commit() -> str | None:
    """Return the commit of this code; None outside a git repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
