"""Training of a one-step restorer from a finished stage 2.

The student is the stage 2 itself, from z_lq at one noise level, without noise or guidance; its
picture is compared with the clean one and judged by a discriminator. Losses and weights are HYPIR's
(arXiv:2507.20590), the choice of the level is OMGSR's (arXiv:2508.08227).

Shapes: B batch, H W crop, h w latent size.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from open_supir.base.images import to_signed, to_unit
from open_supir.data.samples import Batch
from open_supir.diffusion.one_step import OneStepSettings, matched_sigma
from open_supir.diffusion.schedule import index_to_sigma, nearest_index
from open_supir.networks.conditioner import Conditioning
from open_supir.training.adapters import add_adapters
from open_supir.training.agreement import Ranks
from open_supir.training.discriminators import Discriminator, Seen, judged
from open_supir.training.optim import OptimSettings
from open_supir.training.perceptual import EncoderDistance
from open_supir.training.robust_encoder_module import psnr
from open_supir.training.supir_module import SupirModule
from open_supir.training.trained_parts import lq_of
from open_supir.training.two_optimizers import TwoOptimizers

log = logging.getLogger(__name__)

Score = Callable[[Tensor, Tensor], float]  # (restored, reference), (1, 3, H, W) in [0, 1]


@dataclass(frozen=True, kw_only=True)
class OneStepLoss:
    """Weights of the generator's loss, and targets of the discriminator.

    Raises:
        ValueError: A weight is negative, or the target is no probability.
    """

    pixel: float = 1.0  # of the squared error of pixels in [-1, 1]
    perceptual: float = 5.0
    adversarial: float = 0.5  # 0 trains no discriminator
    real_target: float = 0.8  # of clean images; the generator's own target is always 1

    def __post_init__(self) -> None:
        if min(self.pixel, self.perceptual, self.adversarial) < 0 or not 0 < self.real_target <= 1:
            raise ValueError(f"weights must be >= 0, real_target in (0, 1], got {asdict(self)}")


class OneStepModule(TwoOptimizers, SupirModule):
    """Trains adaptor and connector as a one-step generator, against a discriminator.

    Args:
        discriminator: Its heads are trained; they are left out of exports.
        perceptual: (image, reference) in [-1, 1] -> distances (B,); None: `EncoderDistance`.
        loss: Weights.
        discriminator_optim: Optimiser of the heads; `optim` is that of the generator.
        unet_lora: Rank of LoRA layers that are added to the UNet and trained too; None for none.
        snr_samples: Training samples that the noise level is measured on, if `sampler.sigma` is
            None.
        scores: Metrics of validation by name.
        stage_2: Arguments of `SupirModule`; `sampler` is a `OneStepSettings`.

    Raises:
        ValueError: The sampler is not a one-step one.
    """

    sampler: OneStepSettings  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        *,
        discriminator: Discriminator,
        perceptual: nn.Module | None,
        loss: OneStepLoss,
        discriminator_optim: OptimSettings,
        snr_samples: int,
        unet_lora: int | None = None,
        scores: Mapping[str, Score] | None = None,
        **stage_2: Any,
    ) -> None:
        super().__init__(**stage_2)
        if not isinstance(self.sampler, OneStepSettings):
            raise ValueError("experiment=one_step needs sampler=one_step")
        self.discriminator = discriminator
        self.perceptual = perceptual or EncoderDistance(self.vae)
        self.loss = loss
        self.discriminator_optim = discriminator_optim
        self.snr_samples, self.unet_lora = snr_samples, unet_lora
        self.scores = dict(scores or {})
        if self.sampler.sigma is not None:
            self.set_sigma(self.sampler.sigma)

    def take_over(self, trainer: pl.Trainer) -> None:
        """Also add LoRA layers, if wanted; the base weights are loaded by now."""
        super().take_over(trainer)
        if self.unet_lora is not None:
            count = add_adapters(self.network.unet, self.unet_lora)
            self.network.trains_unet = True
            self.recipe = {**self.recipe, "unet_lora": self.unet_lora}
            log.info("LoRA layers of rank %d on %d layers of the UNet", self.unet_lora, count)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:  # type: ignore[override]
        """Step the generator, then the discriminator; return the generator's losses (B,)."""
        hq = to_signed(batch["hq"])  # uint8 -> (B, 3, H, W) in [-1, 1]
        with torch.no_grad():
            lq = lq_of(batch, hq, self.degradation)  # (B, 3, H, W) in [-1, 1]
            hq = self.degradation.target(hq)
            z_lq = self.robust_encoder(lq)  # (B, 4, h, w), scaled
            cond = self.conditioning(batch)
        z = self.student(z_lq, cond)  # (B, 4, h, w), scaled
        x = self.vae.decode(z)  # (B, 3, H, W), about [-1, 1]
        pixel = (x - hq).square().mean(dim=(1, 2, 3))  # (B,)
        perceptual = self.perceptual(x, hq)  # (B,)
        losses = self.loss.pixel * pixel + self.loss.perceptual * perceptual
        terms = {"pixel": pixel, "perceptual": perceptual}
        if self.loss.adversarial:
            fooled = judged(self.discriminator(self.seen(x, z, cond, batch), is_frozen=True), 1.0)
            losses = losses + self.loss.adversarial * fooled
            terms["adversarial"] = fooled
        self.update(losses.mean())
        if self.loss.adversarial:
            x, z = x.detach(), z.detach()
            with torch.no_grad():
                z_hq = self.vae.encode(hq) if self.discriminator.sees_latent else z
            real = judged(
                self.discriminator(self.seen(hq, z_hq, cond, batch)), self.loss.real_target
            )
            fake = judged(self.discriminator(self.seen(x, z, cond, batch)), 0.0)
            terms["discriminator"] = real + fake
            self.update((real + fake).mean(), discriminator=True)
        self.log_dict({f"train/{name}": term.detach().mean() for name, term in terms.items()})
        return {"loss": losses.detach().mean(), "losses": losses.detach()}

    def student(self, z_lq: Tensor, cond: Conditioning) -> Tensor:
        """Return the restored latent (B, 4, h, w) of `z_lq`: one evaluation, no noise."""
        (sigma, _) = self.sampler.sigmas()
        x = self.sampler.start(z_lq, sigma, torch.zeros_like)
        level = torch.full((len(x),), sigma, device=x.device)
        return self.denoiser(self.network, x, level, cond, z_lq)

    def seen(self, x: Tensor, z: Tensor, cond: Conditioning, batch: Batch) -> Seen:
        """Return the inputs that a discriminator may use."""
        return Seen(x, z, cond, batch["seed"], self.network.unet)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the distance, PSNR in dB and `scores` of held-out images."""
        hq = to_signed(batch["hq"])
        z_lq = self.robust_encoder(lq_of(batch, hq, self.degradation))
        x = self.vae.decode(self.student(z_lq, self.conditioning(batch)))
        figures = {"psnr": psnr(x, hq), "perceptual": self.perceptual(x, hq).mean()}
        pairs = list(zip(to_unit(x).split(1), to_unit(hq).split(1), strict=True))
        for name, score in self.scores.items():
            figures[name] = torch.tensor([score(*pair) for pair in pairs]).mean().to(x)
        logged = {f"val/{name}": value for name, value in figures.items()}
        self.log_dict(logged, prog_bar=True, batch_size=len(hq), sync_dist=True)

    def set_sigma(self, sigma: float) -> None:
        """Use `sigma`, or the table's nearest if the denoiser uses that, from now on."""
        if self.denoiser.quantize and self.denoiser.prediction != "edm":
            with torch.device("cpu"):  # modules are also built on meta
                sigma = float(index_to_sigma(nearest_index(torch.tensor([sigma]))))
        self.sampler = replace(self.sampler, sigma=sigma)

    @torch.inference_mode(False)  # validation may ask, and its tensors are of no use in training
    @torch.no_grad()
    def measure_sigma(self) -> None:
        """Measure the noise level of equal signal-to-noise on the first training samples."""
        ranks, sums = Ranks(), torch.zeros(3, dtype=torch.float64)
        ranks.join()
        for batch in self._first_batches():
            hq = to_signed(batch["hq"])
            with self.trainer.precision_plugin.val_step_context():
                z_lq = self.robust_encoder(lq_of(batch, hq, self.degradation))
                z = self.vae.encode(self.degradation.target(hq))
            terms = ((z_lq - z).square().mean(), z.square().mean(), torch.ones(()))
            sums += len(hq) * torch.stack([term.double().cpu() for term in terms])
            if sums[2] * ranks.count >= self.snr_samples:
                break
        error, signal, count = ranks.sum(*sums.tolist())
        measured = matched_sigma(error / count, signal / count)
        self.set_sigma(measured)
        words = "noise level by matched signal-to-noise of %d samples: sigma %.4f, used as %.4f"
        log.info(words, count, measured, self.sampler.sigma)

    def _first_batches(self) -> Iterator[Batch]:
        """Yield this rank's batches from the first one on, without counting them as trained on."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        counters, data.counters = data.counters, None
        data.setup("fit")
        try:
            for batch in data.train_dataloader():
                yield data.transfer_batch_to_device(batch, self.device, 0)
        finally:
            data.counters = counters

    def on_validation_start(self) -> None:
        """Measure the noise level if nothing has set it."""
        if self.sampler.sigma is None:
            self.measure_sigma()

    def on_fit_start(self) -> None:
        """Measure the noise level if neither a checkpoint nor validation has set it."""
        self.on_validation_start()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the noise level in the recipe, with which the checkpoint is restored from."""
        super().on_save_checkpoint(checkpoint)
        sampler = {**self.recipe.get("sampler", {}), "sigma": self.sampler.sigma}
        checkpoint["recipe"] = {**self.recipe, "sampler": sampler}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the noise level of the resumed run."""
        super().on_load_checkpoint(checkpoint)
        sigma = checkpoint["recipe"].get("sampler", {}).get("sigma")
        if sigma is not None and self.sampler.sigma is None:
            self.set_sigma(sigma)
