"""The networks against outputs of the released implementation on random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from src.networks import (
    AutoencoderKL,
    Conditioning,
    ControlAdaptor,
    ControlledUNet,
    RobustEncoder,
    UNet,
)
from src.networks.connectors import ZeroSFTConnector

FIXTURES = Path(__file__).parents[3] / "shared/fixtures/supir"
pytestmark = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"golden values are not at {FIXTURES}"
)
TOLERANCE = 1e-5  # relative to the output's scale: fp32 sums in another order

SIZES: dict[str, Any] = dict(model_channels=32, channel_mult=[1, 2, 4], num_res_blocks=2)
TRUNK: dict[str, Any] = dict(
    in_channels=4,
    transformer_depth=[0, 1, 2],
    head_channels=64,
    context_dim=64,
    vector_dim=96,
    **SIZES,
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return torch.load(FIXTURES / "golden.pt", weights_only=True)


@pytest.fixture(scope="module")
def sdxl() -> dict[str, Tensor]:
    return load_file(FIXTURES / "sdxl_tiny.safetensors")


@pytest.fixture(scope="module")
def supir() -> dict[str, Tensor]:
    return load_file(FIXTURES / "supir_tiny.safetensors")


@pytest.fixture(scope="module")
def network(sdxl: dict[str, Tensor], supir: dict[str, Tensor]) -> ControlledUNet:
    unet = UNet(out_channels=4, **TRUNK)
    control = ControlAdaptor(**TRUNK)
    connector = ZeroSFTConnector(cross_attention=True, head_channels=64, **SIZES)
    unet.load_state_dict(part(sdxl, "model.diffusion_model."))
    adaptor = part(supir, "model.control_model.")
    del adaptor["mask_LQ"]  # dead in the released model
    control.load_state_dict(adaptor)
    connector.load_state_dict(part(supir, "model.diffusion_model."))
    return ControlledUNet(unet, control, connector)


@pytest.fixture(scope="module")
def vae(sdxl: dict[str, Tensor]) -> AutoencoderKL:
    vae = AutoencoderKL(
        ch=32, ch_mult=[1, 2, 4, 4], num_res_blocks=2, z_channels=4, scale_factor=0.13025
    )
    vae.load_state_dict(part(sdxl, "first_stage_model."))
    return vae


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v.float() for k, v in tensors.items() if k.startswith(prefix)}


def deviation(out: Tensor, expected: Tensor) -> float:
    return ((out - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def test_control_features_equal_the_released_ones(
    network: ControlledUNet, golden: dict[str, Any]
) -> None:
    given = golden["net"]["in"]
    cond = Conditioning(given["ctx"], given["y"])
    features = network.control(given["xt"], given["t"], cond, given["lq"])
    expected = golden["net"]["control_out"]
    assert len(features) == len(expected)
    for feature, value in zip(features, expected, strict=True):
        assert deviation(feature, value) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("index", range(12))
def test_connector_modules_equal_the_released_ones(
    network: ControlledUNet, golden: dict[str, Any], index: int
) -> None:
    tap = golden["net"]["taps"][index]
    module = network.connector.project_modules[index]
    inputs = tap["in"]
    if index in (3, 7):  # cross-attention: the recorded order is (context, x)
        out = module(inputs[1], inputs[0], tap["control_scale"])
    else:
        out = module(*inputs, scale=tap["control_scale"])
    assert deviation(out, tap["out"]) < TOLERANCE


@torch.no_grad()
def test_controlled_unet_equals_the_released_one_at_every_control_scale(
    network: ControlledUNet, golden: dict[str, Any]
) -> None:
    given = golden["net"]["in"]
    cond = Conditioning(given["ctx"], given["y"])
    for scale, expected in golden["net"]["unet_out"].items():
        out = network(given["xt"], given["t"], cond, given["lq"], float(scale))
        assert deviation(out, expected) < TOLERANCE, f"control_scale {scale}"


@torch.no_grad()
def test_autoencoder_equals_the_released_one(vae: AutoencoderKL, golden: dict[str, Any]) -> None:
    expected = golden["vae"]
    moments = vae.quant_conv(vae.encoder(expected["img"]))
    assert deviation(moments, expected["moments"]) < TOLERANCE
    assert deviation(vae.decode(expected["z_denoise_mode"]), expected["dec"]) < TOLERANCE


@torch.no_grad()
def test_robust_encoder_equals_the_released_one(
    vae: AutoencoderKL, supir: dict[str, Tensor], golden: dict[str, Any]
) -> None:
    robust_encoder = RobustEncoder(vae)
    robust_encoder.encoder.load_state_dict(part(supir, "first_stage_model.denoise_encoder."))
    expected = golden["vae"]["z_denoise_mode"]
    assert deviation(robust_encoder(golden["vae"]["img"]), expected) < TOLERANCE
