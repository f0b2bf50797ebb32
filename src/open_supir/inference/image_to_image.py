"""Image-to-image with the prior alone, for making negative samples.

Shapes: B batch, H W image size, h w latent size. Images are in [0, 1].
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from open_supir.base.images import to_signed, to_unit
from open_supir.base.images.tensors import crop_to, pad_to_multiple
from open_supir.diffusion import Denoiser, SamplerSettings
from open_supir.diffusion.restoration import generate_latent, image_noise
from open_supir.networks import AutoencoderKL, Conditioner, UNet


@torch.no_grad()
def image_to_image(
    network: UNet,
    denoiser: Denoiser,
    conditioner: Conditioner,
    vae: AutoencoderKL,
    images: Tensor,
    captions: Sequence[str],
    negative_captions: Sequence[str],
    *,
    strength: float,
    settings: SamplerSettings,
    seeds: Sequence[int],
    size_condition: tuple[int, int] | None = None,
) -> Tensor:
    """Sample images (B, 3, H, W) from the prior, starting from `images` (SDEdit, arXiv:2108.01073).

    Args:
        network: The UNet; called with z_lq=None.
        vae: Encodes images and decodes latents; work is done on its device.
        images: (B, 3, H, W) in [0, 1], of any size.
        strength: Share of the sampling steps that are run: 0 returns the VAE's reconstruction of
            `images`, 1 ignores them. SUPIR makes its negative samples at 0.5.
        settings: Sampler settings; those for control and restoration guidance are ignored.
        seeds: One per image; an image's noise depends on nothing else.
        size_condition: (h, w) given to the conditioner; None is the images' size.

    Raises:
        ValueError: `strength` is not in [0, 1], or the lists differ in length.
    """
    device = vae.post_quant_conv.weight.device
    padded, inner = pad_to_multiple(images.to(device), vae.downsampling * network.downsampling)
    cond, uncond = _conditions(
        conditioner, captions, negative_captions, seeds, size_condition or inner, device
    )
    z = generate_latent(
        network,
        denoiser,
        cond,
        uncond,
        vae.encode(to_signed(padded)),
        strength=strength,
        settings=settings,
        randn=image_noise(seeds),
    )
    return to_unit(crop_to(vae.decode(z), inner))


def _conditions(
    conditioner: Conditioner,
    captions: Sequence[str],
    negative_captions: Sequence[str],
    seeds: Sequence[int],
    size: tuple[int, int],
    device: torch.device,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    if not len(captions) == len(negative_captions) == len(seeds):
        raise ValueError(
            f"expected one caption, one negative caption and one seed per image, got "
            f"{len(captions)}, {len(negative_captions)} and {len(seeds)}"
        )
    sizes = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32, device=device)
    sizes = sizes.expand(len(seeds), -1)
    return conditioner(list(captions), sizes), conditioner(list(negative_captions), sizes)
