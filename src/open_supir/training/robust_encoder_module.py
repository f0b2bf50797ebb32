"""Stage 1: train a copy of the VAE's encoder to see through degradation; the decoder is frozen.

The published loss || D(E_dr(lq)) - D(E_dr(hq)) ||^2 has the trained encoder in both terms, so a
constant image is a global minimum, and reproductions do collapse to dark pictures. Here, the target
is fixed: the HQ image itself. It is the stronger anchor of two candidates (the other one, the
frozen encoder's reconstruction D(E(hq)), would teach its own error as well), and needs no second
pass through the networks.

The loss uses the logarithm of each image's squared error, so that it is the mean PSNR up to scale
(as in NAFNet, arXiv:2204.04676) and a few hopelessly degraded images do not dominate. A latent term
|| E_dr(lq) - E(hq) ||^2 keeps z_lq among the latents that the diffusion prior knows.

Shapes: B batch, H W crop, h w latent size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from open_supir.base.images import to_signed, to_unit
from open_supir.data.samples import Batch
from open_supir.degradation import DegradationPipeline
from open_supir.networks import AutoencoderKL, RobustEncoder
from open_supir.training.optim import OptimSettings
from open_supir.training.trained_parts import TrainedParts, lq_of

ERROR_FLOOR = 1e-4  # 46 dB: below it an image has nothing left to teach


class RobustEncoderModule(TrainedParts):
    """Trains `robust_encoder.encoder`.

    Args:
        robust_encoder: Starts as a copy of the autoencoder's encoder.
        latent_weight: Weight of the latent term relative to the log error of pixels.
    """

    def __init__(
        self,
        *,
        vae: AutoencoderKL,
        robust_encoder: RobustEncoder,
        degradation: DegradationPipeline,
        latent_weight: float,
        optim: OptimSettings,
        recipe: dict[str, Any],
    ) -> None:
        super().__init__(optim=optim, recipe=recipe)
        self.vae = vae.requires_grad_(False).eval()
        self.robust_encoder = robust_encoder
        self.degradation = degradation
        self.latent_weight = latent_weight

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss of one batch, and the pixel losses (B,) of its samples."""
        hq = to_signed(batch["hq"])  # uint8 -> (B, 3, H, W) in [-1, 1]
        with torch.no_grad():
            lq = lq_of(batch, hq, self.degradation)  # (B, 3, H, W) in [-1, 1]
            hq = self.degradation.target(hq)  # unchanged unless the degradation sharpens
            z = self.vae.encode(hq)  # (B, 4, h, w), scaled
        z_lq = self.robust_encoder(lq)  # (B, 4, h, w), scaled
        error = (self.vae.decode(z_lq) - hq).square().mean(dim=(1, 2, 3))
        losses = (error + ERROR_FLOOR).log()  # (B,)
        latent_loss = F.mse_loss(z_lq, z)
        loss = losses.mean() + self.latent_weight * latent_loss
        self.log_dict({"train/pixel_loss": losses.mean(), "train/latent_loss": latent_loss})
        return {"loss": loss, "losses": losses.detach()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the PSNR in dB of both encoders' decodes against the held-out HQ."""
        hq = to_signed(batch["hq"])
        lq = lq_of(batch, hq, self.degradation)
        robust = psnr(self.vae.decode(self.robust_encoder(lq)), hq)
        frozen = psnr(self.vae.decode(self.vae.encode(lq)), hq)
        self.log("val/psnr", robust, prog_bar=True, batch_size=len(hq), sync_dist=True)
        self.log("val/psnr_frozen_encoder", frozen, batch_size=len(hq), sync_dist=True)
        self.log("val/psnr_gain", robust - frozen, batch_size=len(hq), sync_dist=True)

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return LQ, both encoders' decodes, and HQ."""
        hq = to_signed(batch["hq"])
        lq = lq_of(batch, hq, self.degradation)
        columns = {
            "LQ": lq,
            "frozen encoder": self.vae.decode(self.vae.encode(lq)),
            "robust encoder": self.vae.decode(self.robust_encoder(lq)),
            "HQ": hq,
        }
        return {title: to_unit(image) for title, image in columns.items()}


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Return the mean PSNR in dB of images (B, 3, H, W) in [-1, 1]."""
    error = ((image.clamp(-1, 1) - reference) / 2).square().mean(dim=(1, 2, 3))
    return (-10 * error.clamp_min(1e-10).log10()).mean()
