"""Files in official layouts, written by the libraries that define the formats."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints.standins import official_sdxl, official_supir


@pytest.fixture
def sdxl_file(tmp_path: Path) -> Path:
    """A small SDXL file."""
    path = tmp_path / "sdxl.safetensors"
    save_file(official_sdxl(), path)
    return path


@pytest.fixture
def supir_file(tmp_path: Path) -> Path:
    """A small SUPIR checkpoint, a pickle as released."""
    path = tmp_path / "supir.ckpt"
    torch.save({"state_dict": official_supir()}, path)
    return path
