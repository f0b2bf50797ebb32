"""Run folders: where they are, and what the newest checkpoint of a kind is.

A run folder is runs/<experiment>/<date_time>/, or runs/<experiment>/multirun/<date_time>/<job>/,
with config.yaml, summary.json, csv/, tensorboard/, checkpoints/, pictures/ and eval/.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from open_supir.base.files import write_text
from open_supir.base.places import CONF, DEMO, SHIPPED_MODEL, located

LAST = "checkpoints/last.ckpt"
HYDRA = ".hydra"  # its copies of the configuration


def newest_checkpoint(root: str | Path, *, stage: str, name: str | None = None) -> Path | None:
    """Return the newest last.ckpt below `root` of a stage (and experiment), or None.

    Those of trials (debug=NAME) do not count.

    Args:
        stage: vae, prior, robust_encoder or supir.
        name: Only runs of this experiment.
    """
    found = sorted(Path(root).glob(f"**/{LAST}"), key=lambda path: path.stat().st_mtime)
    for path in reversed(found):
        config = read_config(run_folder(path))
        if config.get("is_debug"):
            continue
        if config.get("stage") == stage and name in (None, config.get("name")):
            return path
    return None


def run_folder(checkpoint: str | Path) -> Path:
    """Return the run folder that a checkpoint lies in; elsewhere, the checkpoint's own folder."""
    folder = Path(checkpoint).parent
    return folder.parent if folder.name == "checkpoints" else folder


def remove_empty_run(folder: Path, runs_dir: Path) -> None:
    """Remove a run folder that holds nothing but Hydra's files, and empty folders up to `runs_dir`.

    Its log is closed. Does nothing if there is anything else in the folder.
    """
    root = logging.getLogger()
    files = [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]
    logs = {
        Path(h.baseFilename): h for h in files if Path(h.baseFilename).parent == folder.absolute()
    }
    hydra = folder.absolute() / HYDRA
    if not folder.is_dir() or {path.absolute() for path in folder.iterdir()} - {hydra, *logs}:
        return
    for path, handler in logs.items():
        root.removeHandler(handler)
        handler.close()
        path.unlink(missing_ok=True)
    shutil.rmtree(hydra, ignore_errors=True)
    for empty in (folder, *folder.parents):
        if not empty.absolute().is_relative_to(runs_dir.absolute()) and empty != folder:
            return
        try:
            empty.rmdir()
        except OSError:  # another run is in it
            return


def run_of(checkpoint: Path, runs_dir: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return a checkpoint's run folder and configuration, which is empty where it lies in none.

    A shipped checkpoint has no run: its results go to a folder below `runs_dir`, and it is used
    with the data and the degradation of the embedded default.
    """
    if checkpoint.parent != DEMO:
        run = run_folder(checkpoint)
        return run, read_config(run)
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    is_command = GlobalHydra.instance().is_initialized()  # then Hydra has its place already
    place = nullcontext() if is_command else initialize_config_dir(str(CONF), version_base="1.3")
    with place:
        usual = compose("train", overrides=["experiment=zerosft"])
    kept = ("data", "degradation")
    trained = {key: OmegaConf.to_container(usual[key], resolve=True) for key in kept}
    name = "shipped" if checkpoint == located(SHIPPED_MODEL) else f"shipped_{checkpoint.stem}"
    return Path(runs_dir) / name, trained


def read_config(run: Path) -> dict[str, Any]:
    """Return the run's configuration as plain values; empty if there is none."""
    path = run / "config.yaml"
    return OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}  # type: ignore[return-value]


def write_config(run: Path, config: Mapping[str, Any] | DictConfig) -> None:
    """Write the resolved configuration of a run."""
    write_text(run / "config.yaml", OmegaConf.to_yaml(config, resolve=True))


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to one with dotted keys; lists are kept as values."""
    if not isinstance(tree, dict) or (not tree and prefix):
        return {prefix: tree} if prefix else {}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def write_summary(run: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary of a finished run as JSON."""
    write_text(run / "summary.json", json.dumps(summary, indent=2) + "\n")


def config_digest(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a configuration as YAML with sorted keys."""
    text = OmegaConf.to_yaml(OmegaConf.create(dict(values)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sweep_folder(trained: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Path | None:
    """Return the output folder of an evaluation in a multirun: eval/ of its job; otherwise None.

    `ablation` reads the job's folder as a run. Its configuration is the training's, with the
    evaluation's under `evaluation`.
    """
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    folder = Path(HydraConfig.get().runtime.output_dir)
    write_config(folder, {**trained, "evaluation": evaluation})
    overrides = OmegaConf.to_yaml(HydraConfig.get().overrides.task)
    write_text(folder / ".hydra" / "overrides.yaml", overrides)  # ablation labels runs by them
    return folder / "eval"
