"""SDXL and SUPIR at their released sizes, on the meta device: names and shapes without memory."""

import torch
from torch import nn

from src.networks import AutoencoderKL, Conditioner, ControlAdaptor, RobustEncoder, UNet
from src.networks.conditioner import TextTowerConfig
from src.networks.connectors import ZeroSFTConnector

LEVELS = {
    "model_channels": 320,
    "channel_mult": (1, 2, 4),
    "num_res_blocks": 2,
    "head_channels": 64,
}
TRUNK = {
    **LEVELS,
    "in_channels": 4,
    "transformer_depth": (0, 2, 10),
    "context_dim": 2048,
    "vector_dim": 2816,
}


def full_size_parts() -> dict[str, nn.Module]:
    """Build every part as released: untrimmed adaptor, ZeroSFT with its two cross-attentions."""
    with torch.device("meta"):
        vae = AutoencoderKL(
            ch=128, ch_mult=(1, 2, 4, 4), num_res_blocks=2, z_channels=4, scale_factor=0.13025
        )
        conditioner = Conditioner(
            clip_l=TextTowerConfig(width=768, layers=12, heads=12, quick_gelu=True),
            clip_g=TextTowerConfig(width=1280, layers=32, heads=20),
            size_channels=256,
        )
        return {
            "unet": UNet(out_channels=4, **TRUNK),
            "control": ControlAdaptor(**TRUNK),
            "connector": ZeroSFTConnector(cross_attention=True, **LEVELS),
            "vae": vae,
            "robust_encoder": RobustEncoder(vae),
            "clip_l": conditioner.clip_l,
            "clip_g": conditioner.clip_g,
        }
