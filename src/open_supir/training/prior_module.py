"""The tiny prior of the embedded default: an autoencoder, then a text-to-image UNet.

At full size, both come from SDXL and are not trained here. Shapes: B batch, H W crop, h w latent
size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from open_supir.base.images import to_signed, to_unit
from open_supir.data.samples import Batch
from open_supir.diffusion import Denoiser, SamplerSettings, TableNoise
from open_supir.diffusion.denoiser import append_dims
from open_supir.diffusion.restoration import generate_latent, image_noise
from open_supir.diffusion.training_noise import NOISE_STREAM, seeded_randn
from open_supir.networks import AutoencoderKL, Conditioner, UNet
from open_supir.training.optim import OptimSettings
from open_supir.training.robust_encoder_module import psnr
from open_supir.training.trained_parts import TrainedParts


class VAEModule(TrainedParts):
    """Trains an autoencoder with squared and absolute error and a small KL term.

    Args:
        vae: Trained completely.
        l1_weight: Weight of the absolute error relative to the squared error.
        kl_weight: Weight of the KL divergence of the posterior from the standard normal.
    """

    def __init__(
        self,
        *,
        vae: AutoencoderKL,
        l1_weight: float,
        kl_weight: float,
        optim: OptimSettings,
        recipe: dict[str, Any],
    ) -> None:
        super().__init__(optim=optim, recipe=recipe)
        self.vae = vae
        if isinstance(vae.encoder.norm_out, nn.Identity):
            orthogonal_init(vae)
        self.l1_weight = l1_weight
        self.kl_weight = kl_weight

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        hq = to_signed(batch["hq"])  # (B, 3, H, W) in [-1, 1]
        posterior = self.vae.posterior(hq)
        noise = seeded_randn(batch["seed"], posterior.mean.shape, NOISE_STREAM, hq.device)
        decoded = self.vae.decode(self.vae.scale_factor * posterior.sample(noise))
        mse = F.mse_loss(decoded, hq)
        loss = mse + self.l1_weight * F.l1_loss(decoded, hq) + self.kl_weight * posterior.kl()
        self.log("train/psnr", -10 * (mse.detach() / 4).log10())
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the PSNR in dB of held-out reconstructions, and the deviation of unscaled latents."""
        hq = to_signed(batch["hq"])
        z = self.vae.encode(hq)
        quality = psnr(self.vae.decode(z), hq)
        self.log("val/psnr", quality, prog_bar=True, batch_size=len(hq))
        self.log("val/latent_std", z.std() / self.vae.scale_factor, batch_size=len(hq))

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return the reconstructions and HQ."""
        hq = to_signed(batch["hq"])
        decoded = self.vae.decode(self.vae.encode(hq))
        return {"decoded": to_unit(decoded), "HQ": to_unit(hq)}


class PriorModule(TrainedParts):
    """Trains a text-to-image UNet and its text towers; the autoencoder is frozen.

    Args:
        unet, conditioner: Trained.
        vae: Frozen.
        denoiser, noise: As in stage 2.
        sampler: Sampler settings of the sample pictures.
        val_draws: Noise levels drawn per validation image; determined by its seed.
    """

    def __init__(
        self,
        *,
        unet: UNet,
        conditioner: Conditioner,
        vae: AutoencoderKL,
        denoiser: Denoiser,
        noise: TableNoise,
        sampler: SamplerSettings,
        negative_prompt: str,
        val_draws: int,
        optim: OptimSettings,
        recipe: dict[str, Any],
    ) -> None:
        super().__init__(optim=optim, recipe=recipe)
        self.unet = unet
        self.conditioner = conditioner
        self.vae = vae.requires_grad_(False).eval()
        self.denoiser = denoiser
        self.noise = noise
        self.sampler = sampler
        self.negative_prompt = negative_prompt
        self.val_draws = val_draws

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        hq = to_signed(batch["hq"])  # (B, 3, H, W) in [-1, 1]
        with torch.no_grad():
            z = self.vae.encode(hq)  # (B, 4, h, w), scaled
        loss = self.denoising_loss(batch, z, batch["seed"])
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss on held-out images; their seeds determine noise levels and noise."""
        z = self.vae.encode(to_signed(batch["hq"]))
        losses = [
            self.denoising_loss(batch, z, batch["seed"] + draw) for draw in range(self.val_draws)
        ]
        self.log("val/loss", torch.stack(losses).mean(), prog_bar=True, batch_size=len(z))

    def denoising_loss(self, batch: Batch, z: Tensor, seeds: Tensor) -> Tensor:
        """Return the weighted denoising error of latents z (B, 4, h, w); noise is from `seeds`."""
        cond = self.conditioner(batch.get("tokens", batch["caption"]), batch["sizes"])
        sigma = self.noise.sample(seeds, z.device)  # (B,)
        noise = seeded_randn(seeds, z.shape, device=z.device)
        x = z + append_dims(sigma, z.ndim) * noise
        denoised = self.denoiser(self.unet, x, sigma, cond, None)
        error = (denoised - z).square().mean(dim=(1, 2, 3))
        return (self.noise.weight(sigma) * error).mean()

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return samples for held-out captions, and the photographs with those captions."""
        hq = to_signed(batch["hq"])
        z = generate_latent(
            self.unet,
            self.denoiser,
            self.conditioner(batch["caption"], batch["sizes"]),
            self.conditioner([self.negative_prompt] * len(hq), batch["sizes"]),
            torch.empty_like(self.vae.encode(hq)),
            settings=self.sampler,
            randn=image_noise(batch["seed"].tolist()),
        )
        return {"sample": to_unit(self.vae.decode(z)), "HQ": to_unit(hq)}


def orthogonal_init(network: nn.Module) -> None:
    """Keep the variance of what passes the convolutions, as norms would; zero ones stay zero."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d) and part.weight.any():
            nn.init.orthogonal_(part.weight)
            nn.init.zeros_(part.bias)  # type: ignore[arg-type]
