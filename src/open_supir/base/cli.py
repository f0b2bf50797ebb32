"""Starting a command: Hydra, with users' mistakes reported in one line.

Paths and texts are taken as typed (see `arguments`), a mistyped key is refused with the keys that
exist, and an error is one line and exit status 1 (see `failures`). Set HYDRA_FULL_ERROR=1 for the
traceback.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from open_supir.base.arguments import as_typed
from open_supir.base.failures import explain
from open_supir.base.help import help_text
from open_supir.base.hub import accept
from open_supir.base.places import CONF
from open_supir.base.registry import import_plugins
from open_supir.base.sweeps import name_jobs, note_job
from open_supir.base.values import check_values

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a command out of `task(cfg)`; its config is conf/<config_name>.yaml.

    The modules of `plugins=[...]` are imported before the task runs. A sweep goes on after a failed
    job, and ends with status 1.
    """

    def wrap(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        def main() -> None:
            if {"-h", "--help"} & set(sys.argv[1:]):
                _show(help_text(config_name, sys.modules[task.__module__].__doc__ or ""))
                return
            wants_traceback = bool(os.environ.get("HYDRA_FULL_ERROR"))
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print and exit; we want the error
            failed: list[str] = []
            start = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
            try:
                sys.argv[1:] = name_jobs(_with_log(as_typed(sys.argv[1:], config_name)))
                start(_guarded(task, config_name, failed if not wants_traceback else None))()
            except Exception as error:
                if wants_traceback:
                    raise
                sys.exit(f"error: {explain(error, config_name, sys.argv[1:])}")
            except KeyboardInterrupt:
                if wants_traceback:
                    raise
                print("interrupted", file=sys.stderr)
                sys.exit(128 + signal.SIGINT)  # what a shell reports for ctrl-C
            if failed:
                sys.exit(f"error: {len(failed)} jobs of the sweep failed:\n" + "\n".join(failed))

        return main

    return wrap


def _show(text: str) -> None:
    """Print a text, for as long as it is read: `| head` closes the pipe early."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # Python flushes once more at exit, which must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_log(words: list[str]) -> list[str]:
    """Let Hydra's folder, with the log, be the run folder that `run_dir=` names, if it does."""
    if {"-m", "--multirun"} & set(words) or any(w.startswith("hydra.run.dir=") for w in words):
        return words
    named = [word.removeprefix("run_dir=") for word in words if word.startswith("run_dir=")]
    return [*words, *(f"hydra.run.dir={folder}" for folder in named)]


def _guarded(
    task: Callable[[DictConfig], Any], config_name: str, failed: list[str] | None
) -> Callable[[DictConfig], Any]:
    """Return the task with its errors told in one line; a sweep's are collected in `failed`.

    Without a list, errors are raised.
    """
    main_process = os.getpid()

    @wraps(task)
    def job(cfg: DictConfig) -> Any:
        in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        try:
            if in_sweep:
                hydra_cfg = HydraConfig.get()
                note_job(Path(hydra_cfg.runtime.output_dir), hydra_cfg.overrides.task)
            check_values(cfg, HydraConfig.get().overrides.task, config_name)
            import_plugins(cfg.get("plugins", ()))
            accept(cfg.get("accept_license", ()))
            return task(cfg)
        except Exception as error:
            if failed is None or (in_sweep and os.getpid() != main_process):
                raise  # in another process: to the launcher that started it
            said = explain(error, config_name, sys.argv[1:])
            if not in_sweep:
                sys.exit(f"error: {said}")
            failed.append(f"job {HydraConfig.get().job.num}: {said}")
            log.error("%s", failed[-1])
            return None

    return job


def plain(node: Any) -> Any:
    """Return a configuration node as plain values, resolved; other values as they are."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def picked(cfg: DictConfig, *keys: str) -> dict[str, Any]:
    """Return settings by name, as plain values."""
    return {key: plain(cfg[key]) for key in keys}


def require(cfg: DictConfig, *keys: str) -> None:
    """Check that keys of the command line are set.

    Raises:
        ValueError: One is missing or null.
    """
    for key in keys:
        if OmegaConf.is_missing(cfg, key) or cfg[key] is None:
            wanted = " ".join(f"{name}=..." for name in keys)
            raise ValueError(f"{key}= is missing: give {wanted} (--help lists all settings)")


def pick_device(name: str) -> "torch.device":
    """Return the device of that name; see `find_device`.

    Under a launcher of several processes each gets a GPU of its own.

    Raises:
        ValueError: There is no such device here.
    """
    import torch  # takes seconds, and --help does without

    from open_supir.base.devices import find_device

    device, own = find_device(name), os.environ.get("LOCAL_RANK")
    if device.type in ("cuda", "xpu") and device.index is None and own is not None:
        return torch.device(device.type, int(own))
    return device
