"""SDXL and SUPIR at their released sizes, for files that carry no configuration of their own."""

from typing import Any

from open_supir.base.options import read_options


def sdxl_architecture(
    *, control: str = "full", connector: str = "zerosft_released"
) -> dict[str, dict[str, Any]]:
    """Return the specs that `build` takes, by network, as in conf/.

    Args:
        control: An option of conf/control: full as released, half as in the paper, or third.

    Raises:
        ValueError: One of them is unknown.
    """
    sizes = dict.fromkeys(("scale", "unet", "vae", "conditioner"), "sdxl")
    return read_options(**sizes, control=control, connector=connector)
