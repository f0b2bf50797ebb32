"""The networks against outputs of the released implementation on random weights.

Weights come through the public loader, from files in the two official formats.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from open_supir.checkpoints import load_parts
from open_supir.diffusion import Denoiser
from open_supir.networks import (
    AutoencoderKL,
    Conditioner,
    Conditioning,
    ControlAdaptor,
    ControlledUNet,
    RobustEncoder,
    UNet,
)
from open_supir.networks.conditioner import TextTowerConfig
from open_supir.networks.connectors import ZeroSFTConnector
from open_supir.networks.vae import DiagonalGaussian

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
def network() -> ControlledUNet:
    return load_network(FIXTURES)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return load_autoencoders(FIXTURES)[0]


@pytest.fixture(scope="module")
def robust_encoder() -> RobustEncoder:
    return load_autoencoders(FIXTURES)[1]


def load_network(folder: Path) -> ControlledUNet:
    """Load the toy's UNet, adaptor and connector, built without memory."""
    with torch.device("meta"):
        unet, control = UNet(out_channels=4, **TRUNK), ControlAdaptor(**TRUNK)
        connector = ZeroSFTConnector(cross_attention=True, head_channels=64, **SIZES)
    load_parts(folder / "sdxl_tiny.safetensors", {"unet": unet}, dtype=torch.float32)
    trained = {"control": control, "connector": connector}
    load_parts(folder / "supir_tiny.safetensors", trained, dtype=torch.float32)
    return ControlledUNet(unet, control, connector).eval()


def load_autoencoders(folder: Path) -> tuple[AutoencoderKL, RobustEncoder]:
    """Load the toy's VAE and robust encoder, whose quant_conv is the VAE's."""
    with torch.device("meta"):
        vae = AutoencoderKL(
            ch=32, ch_mult=[1, 2, 4, 4], num_res_blocks=2, z_channels=4, scale_factor=0.13025
        )
        robust_encoder = RobustEncoder(vae)
    load_parts(
        folder / "sdxl_tiny.safetensors",
        {"vae": vae, "robust_encoder": robust_encoder},
        taken_from={"robust_encoder": "vae"},
        dtype=torch.float32,
    )
    load_parts(
        folder / "supir_tiny.safetensors", {"robust_encoder": robust_encoder}, dtype=torch.float32
    )
    return vae.eval(), robust_encoder.eval()


def deviation(out: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest number expected."""
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
@pytest.mark.parametrize("scale", [1.0, 0.6])
@pytest.mark.parametrize("index", range(12))
def test_connector_modules_equal_the_released_ones(
    network: ControlledUNet, golden: dict[str, Any], index: int, scale: float
) -> None:
    """Recorded at scale 1; at another the output lies between it and the plain join."""
    tap = golden["net"]["taps"][index]
    assert tap["control_scale"] == 1.0
    module, inputs = network.connector.project_modules[index], tap["in"]
    if index in (3, 7):  # cross-attention: the recorded order is (context, x)
        plain, out = inputs[1], module(inputs[1], inputs[0], scale)
    else:
        plain = torch.cat([inputs[2], inputs[1]], dim=1) if len(inputs) == 3 else inputs[1]
        out = module(*inputs, scale=scale)
    assert deviation(out, plain + scale * (tap["out"] - plain)) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 0.6, 0.0])
def test_controlled_unet_equals_the_released_one(
    network: ControlledUNet, golden: dict[str, Any], scale: float
) -> None:
    given = golden["net"]["in"]
    cond = Conditioning(given["ctx"], given["y"])
    out = network(given["xt"], given["t"], cond, given["lq"], scale)
    expected = golden["net"]["unet_out"]
    assert deviation(out, {float(key): value for key, value in expected.items()}[scale]) < TOLERANCE


@torch.no_grad()
def test_unet_alone_equals_the_released_one_without_control(
    network: ControlledUNet, golden: dict[str, Any]
) -> None:
    given = golden["net"]["in"]
    out = network.unet(given["xt"], given["t"], Conditioning(given["ctx"], given["y"]))
    expected = {float(key): value for key, value in golden["net"]["unet_out"].items()}
    assert deviation(out, expected[0.0]) < TOLERANCE


@torch.no_grad()
def test_denoiser_equals_the_released_one(network: ControlledUNet, golden: dict[str, Any]) -> None:
    """Recorded for pure noise of the levels' strength, at control scale 0.8; one level is above the
    table.
    """
    given, expected = golden["net"]["in"], golden["denoiser"]
    sigma = expected["sigma"]
    x = sigma[:, None, None, None] * given["xt"]
    cond = Conditioning(given["ctx"], given["y"])
    out = Denoiser()(network, x, sigma, cond, given["lq"], 0.8)
    assert deviation(out, expected["out"]) < TOLERANCE


@torch.no_grad()
def test_autoencoder_equals_the_released_one(vae: AutoencoderKL, golden: dict[str, Any]) -> None:
    expected = golden["vae"]
    moments = vae.quant_conv(vae.encoder(expected["img"]))
    assert deviation(moments, expected["moments"]) < TOLERANCE
    mean = DiagonalGaussian.from_moments(expected["moments"]).mean
    assert deviation(vae.encode(expected["img"]), 0.13025 * mean) < TOLERANCE
    torch.manual_seed(5)
    noise = torch.randn(mean.shape)
    drawn = vae.encode(expected["img"], noise)
    assert deviation(drawn, expected["z_sample_seed5"]) < TOLERANCE
    assert deviation(vae.decode(expected["z_denoise_mode"]), expected["dec"]) < TOLERANCE


@torch.no_grad()
def test_robust_encoder_equals_the_released_one(
    robust_encoder: RobustEncoder, golden: dict[str, Any]
) -> None:
    expected = golden["vae"]["z_denoise_mode"]
    assert deviation(robust_encoder(golden["vae"]["img"]), expected) < TOLERANCE


def test_size_embedding_equals_the_released_one(golden: dict[str, Any]) -> None:
    """Two numbers a size, 256 channels each: 512 of the vector's 2816."""
    config = TextTowerConfig(width=16, layers=2, heads=1)
    conditioner = Conditioner(clip_l=config, clip_g=config, size_channels=256)
    given = golden["size_embed"]
    out = conditioner.embed_sizes(given["in"].float())
    assert out.shape == given["out"].shape == (2, 512)
    assert ((out - given["out"]).abs() <= sinusoid_bound(given["in"], 256)).all()


def sinusoid_bound(values: Tensor, width: int) -> Tensor:
    """Return how far apart float32 embeddings of (B, N) values may lie, as (B, N * width).

    Libraries' exponentials differ in a frequency's last bit, and its exponent is rounded too; the
    angle is off by as much times the value. Its own rounding may then go the other way, and sines
    and cosines are good to their last bit. At 1024 this comes to 2.5e-4.
    """
    exponents = -math.log(10_000.0) * torch.arange(width // 2, dtype=torch.float64) / (width // 2)
    frequencies, values = exponents.exp(), values.double().abs()[..., None]
    frequency_error = _last_bit(frequencies) + frequencies * _last_bit(exponents)
    angle_error = values * frequency_error + _last_bit(values * frequencies)
    return (angle_error + 2**-23).repeat(1, 1, 2).flatten(1)


def _last_bit(values: Tensor) -> Tensor:
    """Return the spacing of float32 numbers at each value: 2^-23 of the power of two below it."""
    exponents = torch.frexp(values).exponent - 24
    return torch.ldexp(torch.ones_like(values), exponents)
