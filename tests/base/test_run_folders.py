"""Which run folder a checkpoint belongs to."""

from pathlib import Path

import pytest

from open_supir.base.run_folders import run_folder


@pytest.mark.parametrize(
    ("checkpoint", "folder"),
    [
        ("runs/zerosft/a/checkpoints/last.ckpt", "runs/zerosft/a"),
        ("checkpoints/last.ckpt", "."),
        ("models/mine.safetensors", "models"),
        ("mine.safetensors", "."),
    ],
)
def test_a_checkpoint_in_no_run_belongs_to_its_own_folder(checkpoint: str, folder: str) -> None:
    assert run_folder(checkpoint) == Path(folder)
