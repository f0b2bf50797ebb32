"""The page's dials: which options they set, and between which bounds."""

import dataclasses
from typing import Any

from open_supir.inference.options import RestoreOptions

# fields that the page's dials set, in the dials' order
OPTION_DIALS = ("scale", "strength", "seed", "num_samples", "color_fix", "format", "bits")
SETTING_DIALS = ("num_steps", "cfg_scale", "control_scale", "tau")
PROMPT_DIALS = ("positive_prompt", "negative_prompt")
LABELS = {
    "scale": "Enlarge",
    "strength": "Strength",
    "seed": "Seed",
    "num_samples": "Samples",
    "color_fix": "Colour fix",
    "format": "File format",
    "bits": "Bits per channel",
    "num_steps": "Steps",
    "cfg_scale": "Guidance",
    "control_scale": "Control",
    "tau": "Restoration guidance tau (0: off)",
    "positive_prompt": "Quality words",
    "negative_prompt": "Not wanted",
}
RANGES = {  # lowest, highest, step
    "scale": (1, 8, 0.25),
    "strength": (0, 1, 0.01),
    "num_samples": (1, 8, 1),
    "num_steps": (1, 200, 1),
    "cfg_scale": (0, 15, 0.1),
    "control_scale": (0, 1.5, 0.01),
    "tau": (0, 10, 0.1),
}
DIALS = (*OPTION_DIALS, *SETTING_DIALS, *PROMPT_DIALS)


def with_dials(base: RestoreOptions, values: dict[str, Any]) -> RestoreOptions:
    """Return a preset with the values of the page's dials applied.

    Raises:
        ValueError: A dial is out of range.
    """
    for name, (low, high, _) in RANGES.items():
        if values[name] is None or not low <= values[name] <= high:
            raise ValueError(f"{LABELS[name]} must be in {low}..{high}, got {values[name]}")
    if values["seed"] is None or values["seed"] != int(values["seed"]):
        raise ValueError(f"{LABELS['seed']} must be a whole number, got {values['seed']}")
    sampler = dataclasses.replace(
        base.sampler,
        num_steps=int(values["num_steps"]),
        cfg_scale=float(values["cfg_scale"]),
        control_scale=float(values["control_scale"]),
        tau=float(values["tau"]) if values["tau"] else None,
    )
    return dataclasses.replace(
        base,
        sampler=sampler,
        scale=float(values["scale"]),
        strength=float(values["strength"]),
        seed=int(values["seed"]),
        num_samples=int(values["num_samples"]),
        color_fix=values["color_fix"],
        format=values["format"],
        bits=int(values["bits"]) if values["bits"] in ("8", "16") else None,
        positive_prompt=values["positive_prompt"],
        negative_prompt=values["negative_prompt"],
    )


def dial_values(options: RestoreOptions) -> list[Any]:
    """Return the dials' values for options, in the dials' order."""
    own = [getattr(options, name) for name in OPTION_DIALS]
    own[-1] = str(options.bits or "as the input")
    sampler = [getattr(options.sampler, name) for name in SETTING_DIALS]
    sampler[-1] = options.sampler.tau or 0
    return own + sampler + [getattr(options, name) for name in PROMPT_DIALS]
