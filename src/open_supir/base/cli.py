"""How every command starts: Hydra, with mistakes answered in one line.

A mistyped key is refused with the keys that exist; a wrong path, value or file is one clear line
and exit status 1. Set HYDRA_FULL_ERROR=1 for the traceback.
"""

import os
import re
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import hydra
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from open_supir.base.places import CONF
from open_supir.base.registry import import_plugins

if TYPE_CHECKING:
    import torch

USER_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    ValueError,
    KeyError,
    OSError,
    FloatingPointError,
)


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a command out of `task(cfg)`; its config is conf/<config_name>.yaml.

    The modules of `plugins=[...]` are imported before the task runs.
    """

    def wrap(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @wraps(task)
        def with_plugins(cfg: DictConfig) -> Any:
            import_plugins(cfg.get("plugins", ()))
            return task(cfg)

        def main() -> None:
            wants_traceback = bool(os.environ.get("HYDRA_FULL_ERROR"))
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print and exit; we want the error
            run = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(
                with_plugins
            )
            try:
                run()
            except USER_ERRORS as error:
                if wants_traceback:
                    raise
                sys.exit(f"error: {explain(error, config_name, sys.argv[1:])}")
            except KeyboardInterrupt:
                if wants_traceback:
                    raise
                print("interrupted", file=sys.stderr)
                sys.exit(128 + signal.SIGINT)  # what a shell reports for ctrl-C

        return main

    return wrap


def plain(node: Any) -> Any:
    """Return a configuration node as plain values, resolved; other values as they are."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def pick_device(name: str) -> "torch.device":
    """Return the device of that name; `auto` is the GPU if there is one.

    Under a launcher of several processes each gets a GPU of its own.
    """
    import torch  # takes seconds, and --help does without

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    own = os.environ.get("LOCAL_RANK")
    if device.type == "cuda" and device.index is None and own is not None:
        return torch.device("cuda", int(own))
    return device


def explain(error: BaseException, config_name: str, overrides: list[str]) -> str:
    """Say what was wrong, in one line where possible."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        place = re.search(r"full_key: (\S+)", str(error))
        where = f" (in {place.group(1)})" if place else ""
        return f"{_text(error.__cause__)}{where}"
    if isinstance(error, ConfigCompositionException):
        unknown = re.search(r"Could not override '([^']+)'", str(error))
        if unknown:
            return unknown_key(unknown.group(1), config_name, overrides)
    return _text(error)


def unknown_key(key: str, config_name: str, overrides: list[str]) -> str:
    """Name an unknown key and the keys that exist in its place."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    groups = [o for o in overrides if "." not in o.split("=")[0] and not o.startswith(("-", "+"))]
    groups = [o for o in groups if (CONF / o.split("=")[0].lstrip("~")).is_dir()]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(config_name, overrides=[o for o in groups if "," not in o])
    path: list[str] = []
    node: Any = OmegaConf.to_container(cfg, resolve=False)
    for name in key.split("."):
        if not isinstance(node, dict) or name not in node:
            break
        path.append(name)
        node = node[name]
    known = sorted(k for k in node if not str(k).startswith("_")) if isinstance(node, dict) else []
    place = f"under {'.'.join(path)!r}" if path else "at the top level"
    return f"unknown key {key!r}; known {place}: {', '.join(map(str, known)) or 'none'}"


def _text(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])  # str() of a KeyError is the repr of its message
    return str(error)
