"""The message of a command that fails: one line, and where the traceback is if that is needed."""

import itertools
import logging
import re
import tempfile
import traceback
from pathlib import Path
from typing import Any

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from open_supir.base.places import CONF, PACKAGE


def explain(error: BaseException, config_name: str, overrides: list[str]) -> str:
    """Say in one line what was wrong.

    The traceback goes to the log file of the run, if it has one. Where the message was not written
    for the user, the line names the class of the error and the file with the traceback.
    """
    cause, where = error, ""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        place = re.search(r"full_key: (\S+)", str(error))
        cause, where = error.__cause__, f" (in {place.group(1)})" if place else ""
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read the argument {error.override!r}: expected key=value; quote values that "
            "hold spaces for the shell, and other special characters for Hydra too: 'key=\"a, b\"'"
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}={option}: no such choice; known: {', '.join(error.options)}"
    if isinstance(error, ConfigCompositionException):
        unknown = re.search(r"Could not override '([^']+)'", str(error))
        if unknown:
            return unknown_key(unknown.group(1), config_name, overrides)
    logs = _run_logs()
    if _is_clear(cause):
        _write_traceback(error, logs)
        return f"{message(cause)}{where}"
    kept = _write_traceback(error, logs) or _traceback_file(error, config_name)
    said = message(cause).removeprefix(f"{type(cause).__name__}: ")
    return f"{type(cause).__name__}: {said}{where}; the traceback is in {kept}"


def message(error: BaseException) -> str:
    """Return an error's message in one line, without the tracebacks of other processes."""
    if isinstance(error, KeyError) and len(error.args) == 1:
        text = str(error.args[0])  # str() of a KeyError is the repr of its message
    else:
        text = str(error)
    if isinstance(error, OmegaConfBaseException):
        key = re.search(r"full_key: (\S+)", text)
        text = text.splitlines()[0]
        text = text if key is None or key.group(1) in text else f"{key.group(1)}: {text}"
    elif "Traceback (most recent call last)" in text:  # of a loader's worker
        text = text.rstrip().splitlines()[-1]
    return " ".join(text.split())


def unknown_key(key: str, config_name: str, overrides: list[str]) -> str:
    """Name an unknown key and the keys that exist in its place; in a sweep, of the first job that
    lacks it.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    groups = [o.partition("=") for o in overrides if not o.startswith(("-", "+", "~"))]
    groups = [(group, value) for group, _, value in groups if (CONF / group).is_dir()]
    choices = [[f"{group}={one}" for one in value.split(",")] for group, value in groups]
    said = ""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for job in itertools.product(*choices):
            cfg = OmegaConf.to_container(compose(config_name, overrides=list(job)), resolve=False)
            path, node = _follow(cfg, key.split("."))
            known = sorted(k for k in node if k[0] != "_") if isinstance(node, dict) else []
            place = f"under {'.'.join(path)!r}" if path else "at the top level"
            swept = [one for one, all_of_it in zip(job, choices, strict=True) if len(all_of_it) > 1]
            with_what = f" with {' '.join(swept)}" if swept else ""
            said = f"unknown key {key!r}{with_what}; known {place}: {', '.join(known) or 'none'}"
            if len(path) < key.count(".") + 1:
                break
    return said


def _follow(node: Any, names: list[str]) -> tuple[list[str], Any]:
    """Return how many names of a path exist in nested dicts, and the value there."""
    for count, name in enumerate(names):
        if not isinstance(node, dict) or name not in node:
            return names[:count], node
        node = node[name]
    return names, node


def _is_clear(error: BaseException) -> bool:
    """Whether a message was written for users: by our own `raise`, the system or Hydra."""
    if isinstance(error, (OSError, HydraException, OmegaConfBaseException)):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not Path(frames[-1].filename).is_relative_to(PACKAGE):
        return False
    return (frames[-1].line or "").startswith("raise")


def _run_logs() -> list[logging.FileHandler]:
    return [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]


def _write_traceback(error: BaseException, logs: list[logging.FileHandler]) -> str | None:
    """Write the traceback to log files, and not to the terminal; returns the first one's name."""
    text = "".join(traceback.format_exception(error))
    for log in logs:
        log.handle(logging.LogRecord("open_supir", logging.ERROR, "", 0, text, None, None))
    return logs[0].baseFilename if logs else None


def _traceback_file(error: BaseException, name: str) -> str:
    options = {"prefix": f"open-supir-{name}-", "suffix": ".log", "delete": False}
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", **options) as file:  # type: ignore[call-overload]
        file.write("".join(traceback.format_exception(error)))
    return file.name
