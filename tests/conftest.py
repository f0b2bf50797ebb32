"""Shared by all tests: few threads, fixed seeds, tiny networks."""

import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from open_supir.networks import AutoencoderKL, Conditioner, ControlAdaptor, ControlledUNet, UNet
from open_supir.networks.conditioner import TextTowerConfig
from open_supir.networks.connectors import Connector, ZeroSFTConnector

WIDTHS: dict[str, Any] = dict(model_channels=32, channel_mult=[1, 2], num_res_blocks=1)
TRUNK: dict[str, Any] = dict(
    in_channels=4,
    transformer_depth=[0, 1],
    head_channels=32,
    context_dim=32,
    vector_dim=40,
    **WIDTHS,
)

# With ATEN_CPU_CAPABILITY below the CPU's own, torch's bfloat16 attention still asks oneDNN, which
# then packs for AVX-512 and fails; so oneDNN gets the same limit, before its first use.
if os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")


@pytest.fixture(autouse=True)
def one_thread_and_fixed_seed() -> Iterator[None]:
    """torch's thread pool spins where cores are busy, and `make test` keeps two processes busy."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield


@pytest.fixture(autouse=True)
def log_handlers_end_with_their_test() -> Iterator[None]:
    """A command that sets up logging writes to the test's captured streams, which close."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def unet() -> UNet:
    """A small UNet with every parameter random, the zero-initialised ones too."""
    return randomise(UNet(out_channels=4, **TRUNK))


@pytest.fixture
def vae() -> AutoencoderKL:
    """A small autoencoder, 4x down."""
    return AutoencoderKL(
        ch=8, ch_mult=[1, 1, 2], num_res_blocks=1, z_channels=4, scale_factor=0.5, groups=4
    )


@pytest.fixture
def conditioner() -> Conditioner:
    """Two small text towers; context 32 wide, vector 40."""
    return Conditioner(
        clip_l=TextTowerConfig(width=16, layers=2, heads=1, quick_gelu=True),
        clip_g=TextTowerConfig(width=16, layers=2, heads=1),
        size_channels=4,
    )


def controlled(unet: UNet, connector: Connector | None = None) -> ControlledUNet:
    """Return the UNet under a new control adaptor."""
    connector = connector or ZeroSFTConnector(cross_attention=True, head_channels=32, **WIDTHS)
    control = ControlAdaptor(**TRUNK)
    own, shared = control.state_dict(), unet.state_dict()
    control.load_state_dict(own | {name: shared[name] for name in own if name in shared})
    return ControlledUNet(unet, control, connector)


def randomise(module: Any, scale: float = 0.05) -> Any:
    """Give zero-initialised parameters random values, so that nothing hides behind a zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=scale)
    return module
