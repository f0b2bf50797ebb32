"""Diffusion: schedules, denoisers, samplers, guidance and the one sampling path."""

from src.diffusion.denoiser import Denoiser
from src.diffusion.guidance import restoration_guidance
from src.diffusion.restoration import RestoreSettings, restore_latent
from src.diffusion.samplers import sample_dpmpp_2m, sample_euler
from src.diffusion.tiling import tiled
from src.diffusion.training_noise import TableNoise

__all__ = [
    "Denoiser",
    "RestoreSettings",
    "TableNoise",
    "restoration_guidance",
    "restore_latent",
    "sample_dpmpp_2m",
    "sample_euler",
    "tiled",
]
