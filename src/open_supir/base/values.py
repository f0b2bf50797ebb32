"""Values of the command line that are of another kind than the configuration's.

Hydra reads `overwrite=no` as the text "no", which Python takes for true.
"""

import re
from collections.abc import Sequence

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from open_supir.base.arguments import is_taken_as_typed

NUMBERS = r"\w+$|data\.|optim\."  # keys whose numbers have no words, such as `auto`, beside them


def check_values(cfg: DictConfig, overrides: Sequence[str], config_name: str) -> None:
    """Check that no text was given for a switch, or for a number of `NUMBERS`.

    Args:
        cfg: The composed configuration.
        overrides: The command line of this job, as Hydra takes it.

    Raises:
        ValueError: One was; names the key and what it takes.
    """
    keys = [each.key_or_group for each in OverridesParser.create().parse_overrides([*overrides])]
    texts = {
        override: key
        for override, key in zip(overrides, keys, strict=True)
        if not is_taken_as_typed(key) and isinstance(OmegaConf.select(cfg, key), str)
    }
    if not texts:
        return
    without = [override for override in overrides if override not in texts]
    defaults = compose(config_name, overrides=without)
    for key in texts.values():
        default, given = OmegaConf.select(defaults, key), OmegaConf.select(cfg, key)
        if isinstance(default, bool):
            raise ValueError(f"{key}={given}: must be true or false")
        if isinstance(default, (int, float)) and re.match(NUMBERS, key):
            raise ValueError(f"{key}={given}: must be a number, such as {default}")
