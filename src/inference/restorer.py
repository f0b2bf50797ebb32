"""Restorer: image in, image out.

Shapes: H W image size, h w latent size. Images are in [0, 1] at the door, [-1, 1] inside.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.diffusion import Denoiser, RestoreSettings, restore_latent
from src.diffusion.restoration import image_noise
from src.diffusion.samplers import OnStep
from src.images import (
    crop_to,
    pad_to_multiple,
    resize,
    resize_short_side,
    to_signed,
    to_uint8,
    to_unit,
)
from src.inference.captioner import Captioner, NoCaptioner
from src.inference.checkpoint import load_networks, read_recipe
from src.inference.color_fix import COLOR_FIXES
from src.inference.prompts import NEGATIVE_PROMPT, POSITIVE_PROMPT, compose_prompt
from src.networks import AutoencoderKL, Conditioner, Conditioning, ControlledUNet, RobustEncoder
from src.networks.conditioner import count_tokens as count_clip_tokens


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """What a restoration gives.

    Attributes:
        restored: Shaped as the input, or scaled; [0, 1].
        cleaned: The same size: what the robust encoder alone makes of the input; [0, 1].
        caption: The caption used, before the quality words.
        prompt: The whole positive prompt.
        seed: As given.
        settings: How it was sampled.
    """

    restored: Tensor
    cleaned: Tensor
    caption: str
    prompt: str
    seed: int
    settings: RestoreSettings


class Restorer:
    """Restores one image after another; keeps no state between them.

    Args:
        network: Predicts from noisy latents under the control of the degraded image's latent.
        denoiser: Turns its output into an estimate of the clean latent.
        conditioner: Captions and sizes -> Conditioning.
        vae: Decodes latents; encodes the cleaned image for restoration guidance.
        robust_encoder: Encodes degraded images.
        captioner: Describes the cleaned image where the caller gives no caption.
        settings: How to sample where the caller does not say.
        latent_factor: Pixels a latent pixel; None asks the VAE. 8 for SDXL.
        size_condition: (h, w) told to the conditioner as original and target size, whatever the
            real one; None tells it the size at work. SUPIR always says 1024x1024.
        positive_prompt: Quality words that follow every caption.
        negative_prompt: What is not wanted.
        color_fix: "wavelet", "adain" or "none"; the reference is the cleaned image.
        min_side: Images with a shorter side below this are restored enlarged, and reduced after.
        count_tokens: Tokens of a text as the conditioner's encoders count them.
        device: Where modules are moved and work is done.
        dtype: Of the modules. The VAE stays float32 under float16, in which it overflows.

    Raises:
        ValueError: `color_fix` is unknown.
    """

    def __init__(
        self,
        network: ControlledUNet,
        denoiser: Denoiser,
        conditioner: Conditioner,
        vae: AutoencoderKL,
        robust_encoder: RobustEncoder,
        *,
        captioner: Captioner | None = None,
        settings: RestoreSettings,
        latent_factor: int | None = None,
        size_condition: tuple[int, int] | None = None,
        positive_prompt: str = POSITIVE_PROMPT,
        negative_prompt: str = NEGATIVE_PROMPT,
        color_fix: str = "wavelet",
        min_side: int = 0,
        count_tokens: Callable[[str], int] = count_clip_tokens,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if color_fix not in COLOR_FIXES:
            raise ValueError(f"unknown color_fix {color_fix!r}; known: {', '.join(COLOR_FIXES)}")
        self.device = torch.device(device)
        vae_dtype = torch.float32 if dtype == torch.float16 else dtype
        self.network = network.to(self.device, dtype).eval()
        self.conditioner = conditioner.to(self.device, dtype).eval()
        self.vae = vae.to(self.device, vae_dtype).eval()
        self.robust_encoder = robust_encoder.to(self.device, vae_dtype).eval()
        self.denoiser = denoiser
        self.captioner = captioner or NoCaptioner()
        self.settings = settings
        self.multiple = (latent_factor or vae.downsampling) * network.downsampling
        self.size_condition = size_condition
        self.positive_prompt = positive_prompt
        self.negative_prompt = negative_prompt
        self.color_fix = COLOR_FIXES[color_fix]
        self.min_side = min_side
        self.count_tokens = count_tokens

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        weights: Mapping[str, str | None] | None = None,
        settings: RestoreSettings | None = None,
        captioner: Captioner | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> "Restorer":
        """Build a restorer from a stage-2 checkpoint, which says what it is made of.

        Args:
            path: A checkpoint of `python -m src.train`, stage supir.
            weights: Base files to use in place of the recorded ones: sdxl, vae, robust_encoder.
            settings: How to sample; None samples as the run's validation pictures did.
            captioner, device, dtype: See the class.
            options: Further arguments of the class, in place of the recorded ones.

        Raises:
            FileNotFoundError: The checkpoint or a base file is missing; names it.
            ValueError: The checkpoint is of another kind.
        """
        recipe = read_recipe(path)
        recorded = dict(recipe["restore"])
        own = RestoreSettings(**recorded.pop("settings"))
        networks = load_networks(path, weights=weights, dtype=dtype)
        return cls(
            *networks,
            captioner=captioner,
            settings=settings or own,
            device=device,
            dtype=dtype,
            **{**recorded, **options},
        )

    @torch.no_grad()
    def clean(self, image: Tensor) -> Tensor:
        """Return what the robust encoder alone makes of an image (1, 3, H, W) in [0, 1]."""
        padded, inner = pad_to_multiple(image.to(self.device), self.multiple)
        decoded = self.vae.decode(self.robust_encoder(to_signed(padded)))
        return to_unit(crop_to(decoded, inner)).to(image.device)

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,
        *,
        caption: str | None = None,
        seed: int = 0,
        settings: RestoreSettings | None = None,
        scale: float = 1.0,
        source: Path | None = None,
        on_step: OnStep | None = None,
    ) -> Restoration:
        """Restore one image.

        The noise depends on `seed` and the image's content, not on device, tile or order.

        Args:
            image: (3, H, W) or (1, 3, H, W) in [0, 1].
            caption: What the image shows; None asks the captioner.
            seed: Another seed gives another restoration.
            settings: How to sample; None takes the restorer's own.
            scale: Enlarge by this factor first.
            source: File of the image, for captioners that look beside it.
            on_step: Called after each step.

        Raises:
            ValueError: `image` is not one RGB image in floating point, or `scale` is not positive.
        """
        batch = image[None] if image.ndim == 3 else image
        if batch.ndim != 4 or batch.shape[:2] != (1, 3) or not batch.is_floating_point():
            raise ValueError(
                f"expected a float image (3, H, W) or (1, 3, H, W) in [0, 1], "
                f"got {image.dtype} {tuple(image.shape)}"
            )
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}")
        settings = settings or self.settings
        randn = image_noise([noise_seed(batch, seed)])

        height, width = (max(1, round(side * scale)) for side in batch.shape[-2:])
        size = (height, width)
        working = resize(batch.to(self.device), size).clamp(0, 1)
        if min(size) < self.min_side:
            working = resize_short_side(working, self.min_side).clamp(0, 1)
        padded, inner = pad_to_multiple(working, self.multiple)

        z_lq = self.robust_encoder(to_signed(padded))
        cleaned = self.vae.decode(z_lq)  # about [-1, 1], not clamped
        if caption is None:
            caption = self.captioner(to_unit(crop_to(cleaned, inner))[0], source=source)
        z_center = self.vae.encode(cleaned) if settings.needs_clean_center else None
        prompt = compose_prompt(caption, self.positive_prompt, count_tokens=self.count_tokens)
        z = restore_latent(
            self.network,
            self.denoiser,
            self._condition(prompt, padded),
            self._condition(self.negative_prompt, padded),
            z_lq,
            z_center=z_center,
            settings=settings,
            randn=randn,
            on_step=on_step,
        )
        cleaned = crop_to(cleaned, inner)
        restored = self.color_fix(crop_to(self.vae.decode(z), inner), cleaned)

        def finish(signed: Tensor) -> Tensor:
            unit = resize(to_unit(signed), size).clamp(0, 1).to(image.device)
            return unit[0] if image.ndim == 3 else unit

        return Restoration(
            restored=finish(restored),
            cleaned=finish(cleaned),
            caption=caption,
            prompt=prompt,
            seed=seed,
            settings=settings,
        )

    def _condition(self, prompt: str, padded: Tensor) -> Conditioning:
        height, width = self.size_condition or padded.shape[-2:]
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
        return self.conditioner([prompt], sizes.to(self.device))


def noise_seed(image: Tensor, seed: int) -> int:
    """Return the seed of an image's noise: a hash of its 8-bit content, its size and `seed`."""
    pixels = to_uint8(image).cpu().contiguous()
    digest = hashlib.sha256(f"{seed} {tuple(pixels.shape[-2:])} ".encode())
    digest.update(pixels.numpy().tobytes())
    return int.from_bytes(digest.digest()[:8], "little") >> 1  # non-negative as int64
