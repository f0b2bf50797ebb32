"""Whole restorations by toy networks against the released SUPIR, from degraded image to colour fix.

Weights come through the public loader from files in the official layout. Tolerance is 1e-5
relative, in float32.
"""

import dataclasses
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from open_supir.base.images import resize, to_signed
from open_supir.checkpoints import load_parts
from open_supir.diffusion import Denoiser, SamplerSettings, restore_latent
from open_supir.inference import RestoreOptions
from open_supir.inference.color_fix import COLOR_FIXES
from open_supir.networks import (
    AutoencoderKL,
    Conditioning,
    ControlAdaptor,
    ControlledUNet,
    RobustEncoder,
    UNet,
)
from open_supir.networks.connectors import ZeroSFTConnector
from tests.test_configs import CONF

FOLDER = Path(__file__).parents[3] / "shared" / "fixtures" / "supir"

pytestmark = pytest.mark.skipif(
    not (FOLDER / "golden.pt").is_file(), reason=f"no golden values at {FOLDER}"
)

WIDTHS = dict(model_channels=32, channel_mult=[1, 2, 4], num_res_blocks=2, head_channels=64)
TRUNK = WIDTHS | dict(in_channels=4, transformer_depth=[0, 1, 2], context_dim=64, vector_dim=96)


@pytest.fixture(scope="module")
def parts() -> tuple[ControlledUNet, AutoencoderKL, RobustEncoder]:
    unet, control = UNet(out_channels=4, **TRUNK), ControlAdaptor(**TRUNK)
    connector = ZeroSFTConnector(cross_attention=True, **WIDTHS)
    vae = AutoencoderKL(
        ch=32, ch_mult=[1, 2, 4, 4], num_res_blocks=2, z_channels=4, scale_factor=0.13025
    )
    load_parts(FOLDER / "sdxl_tiny.safetensors", {"unet": unet, "vae": vae}, dtype=torch.float32)
    robust_encoder = RobustEncoder(vae)
    trained = {"control": control, "connector": connector, "robust_encoder": robust_encoder}
    load_parts(FOLDER / "supir_tiny.safetensors", trained, dtype=torch.float32)
    return ControlledUNet(unet, control, connector).eval(), vae.eval(), robust_encoder.eval()


def released() -> SamplerSettings:
    """Return the sampler of preset `released`; each run of the file changes some of its numbers."""
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("restore", overrides=["preset=released", "input=x", "output=y"])
    return instantiate(cfg.sampler, _convert_="all")


@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_whole_restoration_matches(parts, index: int) -> None:
    network, vae, robust_encoder = parts
    run = torch.load(FOLDER / "golden.pt", weights_only=True)["pipeline"][index]
    options = run["kw"]
    lq = run["x"].repeat(options.get("num_samples", 1), 1, 1, 1)
    settings = dataclasses.replace(
        released(),
        num_steps=options["num_steps"],
        cfg_scale=options["cfg_scale"],
        cfg_scale_start=options.get("cfg_scale_start") if options.get("use_linear_CFG") else None,
        control_scale=options.get("control_scale", 1.0),
        tau=options["restoration_scale"] if options["restoration_scale"] > 0 else None,
        s_churn=options["s_churn"],
        s_noise=options.get("s_noise", 1.003),
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


@pytest.mark.parametrize("index", range(4))
def test_preprocessing_resamples_alike_and_keeps_the_aspect_that_the_released_changes(
    index: int,
) -> None:
    """The released code scales each side to a multiple of 64 on its own; ours pads instead.

    The resampling is the same bicubic, but Pillow rounds to 8 bits and clamps after each of two
    passes: a level in the mean, more where an edge overshoots.
    """
    golden = torch.load(FOLDER / "golden.pt", weights_only=True)["preproc"]
    case, image = golden["cases"][index], golden["img"].permute(2, 0, 1)
    upscale, min_size, fixed = case["args"]
    released_size = tuple(case["x"].shape[-2:])
    ours = to_signed(resize(image.float() / 255, released_size).clamp(0, 1))
    assert (ours - case["x"]).abs().mean() <= 2 / 255
    height, width = image.shape[-2:]
    if fixed is None:
        options = RestoreOptions(scale=upscale, min_size=min_size)
        assert options.output_size(height, width) == tuple(case["h0w0"])
        size = options.working_size(height, width)
        assert size[0] / size[1] == pytest.approx(height / width, rel=0.005)
    assert abs(released_size[0] / released_size[1] - height / width) > 0.02 * height / width
