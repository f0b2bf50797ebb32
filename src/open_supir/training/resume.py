"""Finds the checkpoint to resume from: the newest one that matches its manifest."""

import logging
import shutil
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from open_supir.base.files import remove_leftovers
from open_supir.base.run_folders import read_config, run_folder
from open_supir.training.checkpoint_io import (
    committed,
    read_manifest,
    verify,
)

log = logging.getLogger(__name__)


def resolve_checkpoint(
    ckpt_path: str | None, *, run_dir: Path, runs_dir: str, stage: str, name: str
) -> str | None:
    """Return the verified checkpoint to resume from; None to start from scratch.

    `ckpt_path=last` uses the experiment's newest run, `auto` this run's own folder. If the newest
    checkpoint is damaged, the one before it is used, with a warning; it may be one of the run that
    this run was resumed from. There is no such fallback for a named file.

    Raises:
        FileNotFoundError: There is no checkpoint.
        ValueError: No checkpoint matches its manifest, or the named one does not.
    """
    if ckpt_path is None:
        return None
    if ckpt_path == "auto":
        path = newest_verified(run_dir) if committed(run_dir / "checkpoints") else None
        if path is None:
            log.info("ckpt_path=auto: %s holds no checkpoint; starting from scratch", run_dir)
            return None
    elif ckpt_path == "last":
        run = newest_run(Path(runs_dir), stage=stage, name=name)
        if run is None:
            raise FileNotFoundError(
                f"ckpt_path=last, but {runs_dir}/{name} holds no checkpoint to resume from"
            )
        path = newest_verified(run)
    else:
        path = Path(ckpt_path)
        if not path.is_file():
            raise FileNotFoundError(f"ckpt_path={path}: no such file")
        path = path.resolve()  # last.ckpt is a link; the manifest is next to its target
        if read_manifest(path) is None:
            log.warning("%s has no manifest: using it without verification", path)
        elif wrong := verify(path):
            raise ValueError(f"ckpt_path={ckpt_path} is damaged: {wrong}. Choose another one")
    log.info("resuming from %s", path)
    return str(path)


def is_finished(checkpoint: Path, max_steps: int, run_dir: Path) -> bool:
    """Whether a checkpoint's manifest says that it has all steps; then `run_dir` is not kept."""
    step = (read_manifest(checkpoint) or {}).get("step", -1)
    if step < max_steps:
        return False
    log.info("nothing left to do: %s is at step %d, max_steps=%d", checkpoint, step, max_steps)
    _remove_unused(run_dir)
    return True


@rank_zero_only
def _remove_unused(run_dir: Path) -> None:
    """Remove a run folder that holds only what Hydra writes before a run starts."""
    held = list(run_dir.iterdir()) if run_dir.is_dir() and run_dir != Path.cwd() else []
    if not held or any(path.name != ".hydra" and path.suffix != ".log" for path in held):
        return
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, logging.FileHandler)]:
        handler.close()
        root.removeHandler(handler)
    shutil.rmtree(run_dir)


def newest_run(root: Path, *, stage: str, name: str) -> Path | None:
    """Return an experiment's run folder with the newest checkpoint, or None."""
    folders = {path.parent for path in root.glob("**/checkpoints/*.ckpt.json")}
    newest = [(_saved_at(found[0]), found[0]) for f in folders if (found := committed(f))]
    for _, path in sorted(newest, reverse=True):
        config = read_config(run_folder(path))
        if config.get("is_debug"):
            continue  # a trial is resumed by naming its file
        if config.get("stage") == stage and config.get("name") == name:
            return run_folder(path)
    return None


def newest_verified(run: Path) -> Path:
    """Return the newest checkpoint that matches its manifest, of a run or of those it was resumed
    from.

    Raises:
        ValueError: There is none; the message says what is wrong with each checkpoint.
    """
    refused: list[str] = []
    seen: set[Path] = set()
    source: Path | None = run
    while source is not None and source not in seen:
        seen.add(source)
        remove_leftovers(source / "checkpoints")
        for path in committed(source / "checkpoints"):
            wrong = verify(path)
            if wrong is None:
                if refused:
                    log.warning("going back to %s", path)
                return path
            log.warning("%s is damaged: %s", path, wrong)
            refused.append(f"{path}: {wrong}")
        before = read_config(source).get("ckpt_path")
        source = run_folder(Path(before)) if before and Path(before).is_file() else None
    raise ValueError(f"cannot resume from any checkpoint of {run}: {'; '.join(refused)}")


def _saved_at(checkpoint: Path) -> float:
    manifest = read_manifest(checkpoint)
    return 0.0 if manifest is None else float(manifest["saved_at"])
