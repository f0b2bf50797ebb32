"""Stage 2: train adaptor and connector; the UNet, the encoders and the text towers are frozen.

Shapes: B batch, H W crop, h w latent size.
"""

from typing import Any

import torch
from torch import Tensor

from open_supir.base.images import to_signed, to_unit
from open_supir.data.samples import Batch
from open_supir.degradation import DegradationPipeline
from open_supir.diffusion import Denoiser, SamplerSettings, TableNoise, restore_latent
from open_supir.diffusion.denoiser import append_dims
from open_supir.diffusion.restoration import image_noise
from open_supir.diffusion.training_noise import seeded_noise, seeded_randn
from open_supir.networks import AutoencoderKL, Conditioner, ControlledUNet, RobustEncoder
from open_supir.networks.conditioner import Conditioning
from open_supir.training.optim import OptimSettings
from open_supir.training.trained_parts import TrainedParts, lq_of


class SupirModule(TrainedParts):
    """Trains `network.control` and `network.connector`.

    Args:
        network: Frozen UNet, control adaptor and connector.
        vae, robust_encoder, conditioner: Frozen.
        denoiser: Preconditioning of the prior.
        noise: Distribution of sigma, and the loss weight of each sigma.
        sampler: Sampler settings of the validation pictures.
        val_draws: Noise levels drawn per validation image; determined by its seed.
        offset_noise: Strength of the noise component that is constant over an image; see
            `seeded_noise`.
    """

    def __init__(
        self,
        *,
        network: ControlledUNet,
        vae: AutoencoderKL,
        robust_encoder: RobustEncoder,
        conditioner: Conditioner,
        denoiser: Denoiser,
        noise: TableNoise,
        degradation: DegradationPipeline,
        sampler: SamplerSettings,
        negative_prompt: str,
        val_draws: int,
        offset_noise: float = 0.0,
        optim: OptimSettings,
        recipe: dict[str, Any],
    ) -> None:
        super().__init__(optim=optim, recipe=recipe)
        self.network = network
        self.vae = vae.requires_grad_(False).eval()
        self.robust_encoder = robust_encoder.requires_grad_(False).eval()
        self.conditioner = conditioner.requires_grad_(False).eval()
        self.denoiser = denoiser
        self.noise = noise
        self.degradation = degradation
        self.sampler = sampler
        self.negative_prompt = negative_prompt
        self.val_draws = val_draws
        self.offset_noise = offset_noise

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss of one batch, and the losses (B,) and sigmas (B,) of its samples."""
        hq = to_signed(batch["hq"])  # uint8 -> (B, 3, H, W) in [-1, 1]
        with torch.no_grad():
            lq = lq_of(batch, hq, self.degradation)  # (B, 3, H, W) in [-1, 1]
            z = self.target_latents(batch, hq)  # (B, 4, h, w), scaled
            z_lq = self.robust_encoder(lq)  # (B, 4, h, w), scaled
            cond = self.conditioning(batch)
        sigma = self.noise.sample(batch["seed"], z.device)  # (B,)
        noise = seeded_noise(batch["seed"], z.shape, offset=self.offset_noise, device=z.device)
        x = z + append_dims(sigma, z.ndim) * noise
        denoised = self.denoiser(self.network, x, sigma, cond, z_lq)
        error = (denoised - z).square().mean(dim=(1, 2, 3))
        losses = self.noise.weight(sigma) * error  # (B,)
        return {"loss": losses.mean(), "losses": losses.detach(), "sigma": sigma}

    def target_latents(self, batch: Batch, hq: Tensor) -> Tensor:
        """Encode what the network learns to restore, or use the precomputed latents."""
        if "latents" not in batch:
            return self.vae.encode(self.degradation.target(hq))
        if self.degradation.config.sharpen:
            raise ValueError("precomputed latents need degradation.config.sharpen=false")
        return batch["latents"].to(hq.dtype)

    def conditioning(self, batch: Batch) -> Conditioning:
        """Encode captions and sizes, using precomputed text features if there are any."""
        if "context" not in batch or "pooled" not in batch:
            return self.conditioner(batch.get("tokens", batch["caption"]), batch["sizes"])
        context, pooled = batch["context"].float(), batch["pooled"].float()
        return self.conditioner.with_sizes(context, pooled, batch["sizes"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss on held-out images; their seeds determine noise levels and noise."""
        hq = to_signed(batch["hq"])
        z = self.vae.encode(self.degradation.target(hq))
        z_lq = self.robust_encoder(lq_of(batch, hq, self.degradation))
        cond = self.conditioner(batch["caption"], batch["sizes"])
        losses = []
        for draw in range(self.val_draws):
            seeds = batch["seed"] + draw
            sigma = self.noise.sample(seeds, z.device)
            noise = seeded_randn(seeds, z.shape, device=z.device)
            x = z + append_dims(sigma, z.ndim) * noise
            denoised = self.denoiser(self.network, x, sigma, cond, z_lq)
            error = (denoised - z).square().mean(dim=(1, 2, 3))
            losses.append((self.noise.weight(sigma) * error).mean())
        loss = torch.stack(losses).mean()
        self.log("val/loss", loss, prog_bar=True, batch_size=len(hq), sync_dist=True)

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return LQ, the decoded robust latent, the restored image, and HQ."""
        hq = to_signed(batch["hq"])
        lq = lq_of(batch, hq, self.degradation)
        z_lq = self.robust_encoder(lq)
        cleaned = self.vae.decode(z_lq)
        z = restore_latent(
            self.network,
            self.denoiser,
            self.conditioner(batch["caption"], batch["sizes"]),
            self.conditioner([self.negative_prompt] * len(hq), batch["sizes"]),
            z_lq,
            z_center=self.vae.encode(cleaned.clamp(-1, 1)),
            settings=self.sampler,
            randn=image_noise(batch["seed"].tolist()),
        )
        columns = {"LQ": lq, "robust encoder": cleaned, "restored": self.vae.decode(z), "HQ": hq}
        return {title: to_unit(image) for title, image in columns.items()}
