"""Build networks from the plain values that a checkpoint carries.

A checkpoint from elsewhere is data: only the classes listed here are built from it, and no
configuration library ever sees it.
"""

from collections.abc import Mapping
from typing import Any

import torch

from open_supir.networks.conditioner import Conditioner, TextTowerConfig
from open_supir.networks.connectors import (
    CrossAttentionConnector,
    PlainConnector,
    ResidualConnector,
    ZeroSFTConnector,
)
from open_supir.networks.control import ControlAdaptor
from open_supir.networks.unet import UNet
from open_supir.networks.vae import AutoencoderKL

BUILDABLE = {
    cls.__name__: cls
    for cls in (
        AutoencoderKL,
        Conditioner,
        ControlAdaptor,
        CrossAttentionConnector,
        PlainConnector,
        ResidualConnector,
        TextTowerConfig,
        UNet,
        ZeroSFTConnector,
    )
}


def build_network(spec: Mapping[str, Any]) -> Any:
    """Build what `spec` says: `_target_` names the class, the rest are its arguments.

    Raises:
        ValueError: The class is not one of ours, or its arguments do not fit.
    """
    name = str(spec.get("_target_", "")).rpartition(".")[2]
    if name not in BUILDABLE:
        raise ValueError(
            f"a checkpoint asks for {spec.get('_target_')!r}; known: {', '.join(sorted(BUILDABLE))}"
        )
    arguments = {
        key: build_network(value) if isinstance(value, Mapping) else value
        for key, value in spec.items()
        if key != "_target_"
    }
    try:
        return BUILDABLE[name](**arguments)
    except TypeError as error:
        raise ValueError(f"{name} cannot be built from {arguments}: {error}") from error


def build_on_meta(network: Mapping[str, Any]) -> Any:
    """Build what `network` says without giving it memory: that comes with the weights.

    Raises:
        ValueError: See `build_network`.
    """
    with torch.device("meta"):
        return build_network(network)
