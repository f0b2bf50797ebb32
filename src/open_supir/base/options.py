"""Options of conf/ as plain values, for code that runs without a composed configuration."""

from typing import Any

from omegaconf import OmegaConf

from open_supir.base.places import CONF


def choices(group: str) -> list[str]:
    """Return the options of a group, such as `experiment`."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def read_options(*, scale: str, **options: str) -> dict[str, dict[str, Any]]:
    """Return options by group: `read_options(scale="sdxl", unet="sdxl", control="half")`.

    References are resolved, to the scale and to each other. Options with a `defaults`
    list are not supported.

    Raises:
        ValueError: An option is unknown; names the known ones.
    """
    root = OmegaConf.load(CONF / "scale" / f"{scale}.yaml")
    for group, option in options.items():
        if option not in choices(group):
            raise ValueError(f"unknown {group} {option!r}; known: {', '.join(choices(group))}")
        root[group] = OmegaConf.load(CONF / group / f"{option}.yaml")  # type: ignore[index]
    return {group: OmegaConf.to_container(root[group], resolve=True) for group in options}  # type: ignore[index, misc]
