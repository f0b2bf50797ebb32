"""Diffusion: schedules, denoisers, samplers, guidance and the common sampling path."""

from open_supir.diffusion.denoiser import Denoiser
from open_supir.diffusion.guidance import restoration_guidance
from open_supir.diffusion.restoration import restore_latent
from open_supir.diffusion.sampler_settings import SamplerSettings
from open_supir.diffusion.samplers import sample_dpmpp_2m, sample_euler
from open_supir.diffusion.tiling import tiled
from open_supir.diffusion.training_noise import TableNoise

__all__ = [
    "Denoiser",
    "SamplerSettings",
    "TableNoise",
    "restoration_guidance",
    "restore_latent",
    "sample_dpmpp_2m",
    "sample_euler",
    "tiled",
]
