"""Settings of a training run that only its parts together can judge, refused before it starts."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from open_supir.data.datamodule import RestorationDataModule
from open_supir.networks import AutoencoderKL, UNet

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "32", "16", "bf16")


STEPS = ("max_steps", "val_every", "save_every")
COUNTS = ("accumulate_grad_batches", "log_every_n_steps")  # of the trainer


def check_settings(config: Mapping[str, Any]) -> None:
    """Check a run's numbers of steps, and its trainer's counts and precision.

    Raises:
        ValueError: One is out of its range.
    """
    for key in STEPS:
        if config[key] < 1:
            raise ValueError(f"{key}={config[key]}: must be at least 1 optimiser step")
    for key in COUNTS:
        if config["trainer"].get(key, 1) < 1:
            raise ValueError(f"trainer.{key}={config['trainer'][key]}: must be at least 1")
    precision = config["trainer"]["precision"]
    if str(precision) not in PRECISIONS:
        raise ValueError(
            f"trainer.precision={precision}: trained parts stay float32; use one of "
            f"{', '.join(PRECISIONS[:3])}"
        )


def check_crops(module: nn.Module, datamodule: RestorationDataModule) -> None:
    """Check that the networks can halve the crops as often as they do.

    Raises:
        ValueError: A crop's side is no such multiple.
    """
    unets = (part for part in module.modules() if isinstance(part, UNet))
    vaes = (part for part in module.modules() if isinstance(part, AutoencoderKL))
    factors = [next((part.downsampling for part in parts), 1) for parts in (unets, vaes)]
    multiple = math.prod(factors)
    sides = {
        "data.crop_size": datamodule.sample_reader.crop_size,
        "data.val_crop_size": datamodule.val_crop_size,
    }
    for key, side in sides.items():
        if side < 1 or side % multiple:
            below = side // multiple * multiple
            near = ", ".join(str(n) for n in (below, below + multiple) if n > 0)
            raise ValueError(
                f"{key}={side}: these networks need a multiple of {multiple}, such as {near}"
            )
