"""Build objects from plain values: `_target_` names the class, the rest are its arguments.

A checkpoint from elsewhere is data, but importing a module runs its code. So `build` only builds
registered classes: those of open_supir decorated with `register`, those of modules that the user
names (`plugins=[my_module]`), and those named in the user's own configuration.
"""

import importlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T", bound=type)

OWN = "open_supir."
FORMERLY = "src."  # this package's name in checkpoints made before it was installable
_REGISTERED: dict[str, type] = {}


def register(cls: T) -> T:
    """Allow `build` to build this class; a decorator."""
    _REGISTERED[f"{cls.__module__}.{cls.__qualname__}"] = cls
    return cls


def import_plugins(modules: Iterable[str]) -> None:
    """Import the user's modules and register the classes that they define.

    Raises:
        ValueError: A module cannot be imported.
    """
    for name in modules:
        module = _import(name, f"plugins=[{name}]")
        for key, value in vars(module).items():
            if isinstance(value, type) and f"{value.__module__}.".startswith(f"{name}."):
                _REGISTERED[f"{name}.{key}"] = value


def trust(spec: Any) -> None:
    """Register the classes named in the user's own configuration.

    Raises:
        ValueError: A class or its module does not exist.
    """
    if not isinstance(spec, Mapping):
        return
    target = str(spec.get("_target_", OWN))
    if not target.startswith((OWN, FORMERLY)):
        module, _, name = target.rpartition(".")
        found = getattr(_import(module, f"_target_={target}"), name, None)
        if not isinstance(found, type):
            raise ValueError(f"_target_={target}: {module} has no class {name}")
        _REGISTERED[target] = found
    for value in spec.values():
        trust(value)


def build(spec: Mapping[str, Any]) -> Any:
    """Build the object that `spec` describes; arguments with a `_target_` are built first.

    Raises:
        ValueError: The class is not registered, or its arguments do not fit.
    """
    cls = _find(str(spec.get("_target_", "")))
    arguments = {
        key: build(value) if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in spec.items()
        if not key.startswith("_")
    }
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(f"{cls.__name__} cannot be built from {arguments}: {error}") from error


def _find(target: str) -> type:
    if target in _REGISTERED:
        return _REGISTERED[target]
    if target.startswith(FORMERLY):
        target = OWN + target.removeprefix(FORMERLY)
    module, _, name = target.rpartition(".")
    if not target.startswith(OWN):
        raise ValueError(
            f"a checkpoint or configuration names the unknown class {target!r}; if you trust it, "
            f"name its module: plugins=[{module or 'MODULE'}]"
        )
    found = getattr(_import(module, target), name, None)
    if not isinstance(found, type) or found not in _REGISTERED.values():
        raise ValueError(f"{target} is not a class that a checkpoint may name")
    return found


def _import(module: str, wanted: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, ValueError) as error:  # ValueError: an empty name
        raise ValueError(
            f"{wanted}: {error}; your own modules must be importable (set PYTHONPATH)"
        ) from error
