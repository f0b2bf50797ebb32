"""Checkpoints are whole under their final name, or not there."""

import pickle
from pathlib import Path

import pytest
import torch

from open_supir.training import checkpoint_io
from open_supir.training.checkpoint_io import VerifiedCheckpointIO, verify
from open_supir.training.saving import SaveCheckpoints


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "sub/last.ckpt"
    VerifiedCheckpointIO().save_checkpoint({"a": torch.ones(3)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))
    assert {p.name for p in path.parent.iterdir()} == {"last.ckpt", "last.ckpt.json"}
    assert verify(path) is None


def test_failed_write_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    VerifiedCheckpointIO().save_checkpoint({"a": 1}, path)

    def disk_full(content: object, file: object) -> None:
        file.write(b"half of it")  # type: ignore[attr-defined]
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint_io.torch, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        VerifiedCheckpointIO().save_checkpoint({"a": 2}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"a": 1}
    assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", "last.ckpt.json"}
    assert verify(path) is None


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    """weights_only, whatever the caller asks for."""
    path = tmp_path / "evil.ckpt"
    torch.save({"a": print}, path)
    with pytest.raises(pickle.UnpicklingError):
        VerifiedCheckpointIO().load_checkpoint(path, weights_only=False)


def test_milestones_stay_and_a_single_checkpoint_is_refused(tmp_path: Path) -> None:
    saver = SaveCheckpoints(str(tmp_path), every=1, keep=2, milestones=2)
    for step in range(1, 6):
        VerifiedCheckpointIO().save_checkpoint(
            {"global_step": step}, tmp_path / f"step_{step}.ckpt"
        )
    assert {path.name for path in saver._superfluous()} == {"step_1.ckpt", "step_3.ckpt"}
    with pytest.raises(ValueError, match="at least 2"):
        SaveCheckpoints(str(tmp_path), every=1, keep=1)
