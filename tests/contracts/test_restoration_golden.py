"""Whole restorations by toy networks against the released SUPIR, from degraded image to colour fix.

Weights are read under their official names; tolerance is 1e-5 relative, in float32.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from src.diffusion import Denoiser, RestoreSettings, restore_latent
from src.inference.color_fix import COLOR_FIXES
from src.networks import (
    AutoencoderKL,
    Conditioning,
    ControlAdaptor,
    ControlledUNet,
    RobustEncoder,
    UNet,
)
from src.networks.connectors import ZeroSFTConnector

FOLDER = Path(__file__).parents[3] / "shared" / "fixtures" / "supir"

pytestmark = pytest.mark.skipif(
    not (FOLDER / "golden.pt").is_file(), reason=f"no golden values at {FOLDER}"
)

WIDTHS = dict(model_channels=32, channel_mult=[1, 2, 4], num_res_blocks=2, head_channels=64)
TRUNK = WIDTHS | dict(in_channels=4, transformer_depth=[0, 1, 2], context_dim=64, vector_dim=96)


@pytest.fixture(scope="module")
def parts() -> tuple[ControlledUNet, AutoencoderKL, RobustEncoder]:
    sdxl, supir = (load_file(FOLDER / f"{name}_tiny.safetensors") for name in ("sdxl", "supir"))

    def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        return {
            k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)
        }

    unet, control = UNet(out_channels=4, **TRUNK), ControlAdaptor(**TRUNK)
    connector = ZeroSFTConnector(cross_attention=True, **WIDTHS)
    vae = AutoencoderKL(
        ch=32, ch_mult=[1, 2, 4, 4], num_res_blocks=2, z_channels=4, scale_factor=0.13025
    )
    unet.load_state_dict(below(sdxl, "model.diffusion_model."))
    connector.load_state_dict(below(supir, "model.diffusion_model."))
    trunk = below(supir, "model.control_model.")
    trunk.pop("mask_LQ")  # a dead tensor of the released file
    control.load_state_dict(trunk)
    vae.load_state_dict(below(sdxl, "first_stage_model."))
    robust_encoder = RobustEncoder(vae)
    robust_encoder.encoder.load_state_dict(below(supir, "first_stage_model.denoise_encoder."))
    return ControlledUNet(unet, control, connector).eval(), vae.eval(), robust_encoder.eval()


@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_whole_restoration_matches(parts, index: int) -> None:
    network, vae, robust_encoder = parts
    run = torch.load(FOLDER / "golden.pt", weights_only=True)["pipeline"][index]
    options = run["kw"]
    lq = run["x"].repeat(options.get("num_samples", 1), 1, 1, 1)
    settings = RestoreSettings(
        num_steps=options["num_steps"],
        cfg_scale=options["cfg_scale"],
        cfg_scale_start=options.get("cfg_scale_start") if options.get("use_linear_CFG") else None,
        control_scale=options.get("control_scale", 1.0),
        tau=options["restoration_scale"] if options["restoration_scale"] > 0 else None,
        s_churn=options["s_churn"],
        s_noise=options.get("s_noise", 1.003),
        churn_beyond_table=True,
    )
    cond, uncond = (
        Conditioning(*(field.expand(len(lq), *field.shape) for field in run[key]))
        for key in ("pos", "neg")
    )

    torch.manual_seed(options["seed"])  # the order of draws is the released one
    z_lq = robust_encoder(lq)
    cleaned = vae.decode(z_lq)
    z_center = vae.encode(cleaned, torch.randn(z_lq.shape))
    z = restore_latent(
        network,
        Denoiser(),
        cond,
        uncond,
        z_lq,
        z_center=z_center,
        settings=settings,
        randn=torch.randn_like,
    )
    out = COLOR_FIXES[options["color_fix_type"].lower()](vae.decode(z), cleaned)
    assert ((out - run["out"]).norm() / run["out"].norm()).item() < 1e-5
