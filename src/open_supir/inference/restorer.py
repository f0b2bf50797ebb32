"""Restorer: image in, image out.

Shapes: H W image size, h w latent size. Images are in [0, 1] at the interface, [-1, 1] inside.
"""

import gc
import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from open_supir.base.devices import free_cache
from open_supir.base.dtypes import is_finite
from open_supir.base.images import to_signed, to_unit
from open_supir.base.images.tensors import crop_to, pad_to_multiple
from open_supir.diffusion import Denoiser, restore_latent
from open_supir.diffusion.restoration import image_noise
from open_supir.diffusion.samplers import OnStep, Randn
from open_supir.inference.captioner import Captioner, NoCaptioner
from open_supir.inference.color_fix import COLOR_FIXES
from open_supir.inference.grain import with_grain
from open_supir.inference.loading import Loadable
from open_supir.inference.memory import Rung, fit, is_out_of_memory, step_down
from open_supir.inference.offload import park, visiting
from open_supir.inference.options import RestoreOptions
from open_supir.inference.pixels import (
    check_finite,
    finished,
    for_captioner,
    mixed,
    noise_seed,
    resized,
)
from open_supir.inference.prompt_encoder import PromptEncoder
from open_supir.inference.region import feathered
from open_supir.inference.result import Call, Restoration
from open_supir.networks import (
    AutoencoderKL,
    Conditioner,
    Conditioning,
    ControlledUNet,
    RobustEncoder,
)
from open_supir.networks.conditioner import count_tokens as count_clip_tokens
from open_supir.networks.tiled_vae import VaeTiles, decode_tiled, encode_tiled

log = logging.getLogger(__name__)

PREVIEW_SIDE = 64  # latent pixels


class Restorer(Loadable):
    """Restores images one call at a time; only encoded prompts are kept between calls.

    Args:
        network: UNet with adaptor and connector, controlled by the degraded image's latent.
        vae: Decodes latents; encodes the cleaned image for restoration guidance.
        captioner: Describes the cleaned image if the caller gives no caption.
        count_tokens: Number of tokens of a text for the conditioner's encoders.
        device: Where modules are moved and work is done.
        dtype: Dtype of the modules. With float16 the VAE stays float32, since it would overflow.
        changes: Fields of `options` to replace.

    Raises:
        ValueError: An option is out of range.
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
        options: RestoreOptions | None = None,
        count_tokens: Callable[[str], int] = count_clip_tokens,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        **changes: Any,
    ) -> None:
        self.options = replace(options or RestoreOptions(), **changes)
        self.device = torch.device(device)
        vae_dtype = torch.float32 if dtype == torch.float16 else dtype
        place = torch.device("cpu") if self.options.offload else self.device
        self.network = network.to(place, dtype).eval()
        self.conditioner = conditioner.to(place, dtype).eval()
        self.vae = vae.to(place, vae_dtype).eval()
        self.robust_encoder = robust_encoder.to(place, vae_dtype).eval()
        self.denoiser = denoiser
        self.captioner = captioner or NoCaptioner()
        self.latent_factor = vae.downsampling  # image pixels per latent pixel and side
        self.multiple = self.latent_factor * network.downsampling
        self.prompts = PromptEncoder(self.conditioner, count_tokens)

    @property
    def native_tile(self) -> int:
        """The latent side that the networks were trained at, according to the options."""
        return min(self.options.size_condition or (1024, 1024)) // self.latent_factor

    @torch.no_grad()
    def clean(self, image: Tensor, *, robust: bool = True) -> Tensor:
        """Encode and decode an image (1, 3, H, W) in [0, 1] with the robust or ordinary encoder."""
        padded, inner = pad_to_multiple(image.to(self.device), self.multiple)
        with visiting(self.robust_encoder, self.device), visiting(self.vae, self.device):
            encode = self.robust_encoder if robust else self.vae.encode
            decoded = self.vae.decode(encode(to_signed(padded)))
        check_finite(decoded, "the cleaned image")
        return to_unit(crop_to(decoded, inner)).to(image.device)

    @torch.no_grad()
    def preview(self, denoised: Tensor) -> Tensor:
        """Decode a reduced estimate of the clean latent (1, C, h, w) quickly, to (3, H', W').

        May be called between the steps of a call, whose options may keep the VAE on the CPU.
        """
        scale = min(1.0, PREVIEW_SIDE / max(denoised.shape[-2:]))
        if scale < 1:
            size = [max(1, round(side * scale)) for side in denoised.shape[-2:]]
            denoised = nn.functional.interpolate(denoised, size=size, mode="area")
        with visiting(self.vae, self.device):
            return to_unit(self.vae.decode(denoised.to(self.device)))[0].cpu()

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,
        *,
        caption: str | None = None,
        source: Path | None = None,
        mask: Tensor | None = None,
        on_step: OnStep | None = None,
        options: RestoreOptions | None = None,
        **changes: Any,
    ) -> Restoration:
        """Restore one image.

        The noise depends on the seed, the image's content and the sample's number, not on device,
        tile size or order. If memory runs out, less demanding options are tried.

        Args:
            image: (3, H, W) or (1, 3, H, W) in [0, 1].
            caption: What the image shows; None asks the captioner.
            source: The image's file, for captioners that read files beside it.
            mask: (1, 1, H, W) in [0, 1]: 0 leaves the input as it is, 1 restores fully. Inside its
                borders the restoration sets in over a few pixels.
            on_step: Called after each step; may raise to cancel.
            options: None is the restorer's options.
            changes: Fields of the options to replace, such as seed=1 or scale=2.

        Raises:
            ValueError: `image` is not a single finite floating-point RGB image, or an option is
                out of range.
            FloatingPointError: A latent or a decoded image holds NaN or infinity.
            torch.OutOfMemoryError: Even the least demanding options do not fit.
        """
        batch = image[None] if image.ndim == 3 else image
        if batch.ndim != 4 or batch.shape[:2] != (1, 3) or not batch.is_floating_point():
            raise ValueError(
                f"expected a float image (3, H, W) or (1, 3, H, W) in [0, 1], "
                f"got {image.dtype} {tuple(image.shape)}"
            )
        if not is_finite(batch):
            raise ValueError("the image holds NaN or infinity; expected values in [0, 1]")
        options = replace(options or self.options, **changes)
        soft = None if mask is None else feathered(mask, batch)
        call = Call(batch, caption, source, on_step, {}, mask=mask, soft=soft)
        size = options.output_size(*batch.shape[-2:])
        if options.strength == 0:
            untouched = resized(batch, size).to(image.device)
            result = Restoration(
                samples=(untouched,) * options.num_samples,
                cleaned=untouched,
                caption="",
                prompt="",
                options=options,
                seconds={},
            )
        else:
            result = self._with_ladder(call, options)
        if image.ndim == 4:
            return result
        samples = tuple(sample[0] for sample in result.samples)
        return replace(result, samples=samples, cleaned=result.cleaned[0])

    def _with_ladder(self, call: Call, options: RestoreOptions) -> Restoration:
        height, width = (  # padded, as they are worked at
            math.ceil(side / self.multiple) * self.multiple
            for side in options.working_size(*call.image.shape[-2:])
        )
        options, given_up = self._fit(options, (height, width))
        for rung in given_up:
            log.info("the image is large for this device: %s", rung.name)
        while True:
            try:
                return self._restore(call, options, given_up)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                in_autoencoder = call.stage in ("encode", "decode")
                failure = str(error).partition("\n")[0] or type(error).__name__
            # outside the except block, since the traceback keeps the tensors alive
            lower = step_down(
                options,
                native_tile=self.native_tile,
                has_device=self.device.type != "cpu",
                in_autoencoder=in_autoencoder,
            )
            if lower is None:
                raise torch.OutOfMemoryError(
                    f"out of memory even with the least demanding options ({failure}); "
                    "reduce scale, or use a machine with more memory"
                )
            options, rung = lower
            given_up = [*given_up, rung]
            log.warning("out of memory; retrying with %s", rung.name)
            gc.collect()
            free_cache(self.device)

    def _fit(
        self, options: RestoreOptions, size: tuple[int, int]
    ) -> tuple[RestoreOptions, list[Rung]]:
        if not isinstance(self.vae, AutoencoderKL):  # stand-ins in tests have no known size
            return options, []
        return fit(
            options,
            size=size,
            vae=self.vae,
            network=self.network,
            native_tile=self.native_tile,
            device=self.device,
            weights=_weight_bytes(*[self.vae] if options.offload else self._parts),
            sampling_weights=_weight_bytes(*[self.network] if options.offload else self._parts),
        )

    def _restore(self, call: Call, options: RestoreOptions, given_up: list[Rung]) -> Restoration:
        """Restore with exactly these options: clean, caption, then sample each result."""
        self._place(options)
        size = options.output_size(*call.image.shape[-2:])
        place = self.device if options.vae_tile is None else torch.device("cpu")
        working = resized(call.image.to(place), options.working_size(*call.image.shape[-2:]))
        padded, inner = pad_to_multiple(working, self.multiple)

        with call.timed("encode"), self._at_work(options, self.robust_encoder):
            z_lq = self._encode(self.robust_encoder, to_signed(padded), options)
        check_finite(z_lq, "the latent of the image")
        with call.timed("decode"), self._at_work(options, self.vae):
            cleaned = self._decode(z_lq, options)  # about [-1, 1], not clamped
        check_finite(cleaned, "the cleaned image")
        kept = self._kept(call, options, padded, working, z_lq)
        if call.caption is None:
            with call.timed("caption"):
                shown = for_captioner(crop_to(cleaned, inner))
                call.caption = self.captioner(shown, source=call.source)
        told = options.size_condition or (padded.shape[-2], padded.shape[-1])
        with call.timed("text"), self._at_work(options, self.conditioner):
            prompt, cond, uncond = self.prompts(call.caption, options, told, self.device)

        samples, z_center = [], None
        for number in range(options.num_samples):
            noise = image_noise([noise_seed(call.image, options.seed, number)])
            if z_center is None or options.sampler.center == "clean_sampled":
                z_center = self._center(call, options, cleaned, z_lq, noise)
            z = self._sample(call, options, (cond, uncond), z_lq, z_center, kept, noise)
            check_finite(z, "the sampled latent")
            with call.timed("decode"), self._at_work(options, self.vae):
                restored = crop_to(self._decode(z, options), inner)
            with call.timed("finish"):
                is_input = options.color_reference == "input"
                reference = to_signed(working) if is_input else crop_to(cleaned, inner)
                fixed = COLOR_FIXES[options.color_fix](restored, reference, device=self.device)
                check_finite(fixed, "the restored image")
                del restored, reference
                unit = finished(fixed, size, call.image.device)
                if options.grain == "keep":  # the same in all samples
                    unit = with_grain(unit, call.image, noise_seed(call.image, options.seed))
                samples.append(mixed(unit, call.image, options.strength, call.soft))
                del fixed, unit
        tokens = z_lq.shape[-2] * z_lq.shape[-1]
        whole = options.vae_tile is None or self._tiles(options).is_exact(tokens, self.device)
        return Restoration(
            samples=tuple(samples),
            cleaned=finished(crop_to(cleaned, inner), size, call.image.device),
            caption=call.caption,
            prompt=prompt,
            options=options,
            given_up=tuple(given_up),
            is_exact=whole and all(rung.is_exact for rung in given_up),
            seconds=dict(call.seconds),
        )

    def _kept(
        self, call: Call, options: RestoreOptions, padded: Tensor, working: Tensor, z_lq: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Return the latent that stays where the mask is black, and the mask at its size."""
        if call.mask is None:
            return None
        with call.timed("encode"), self._at_work(options, self.vae):
            z_keep = self._encode(self.vae, to_signed(padded), options)
        mask = resized(call.mask, (working.shape[-2], working.shape[-1])).to(working)
        mask, _ = pad_to_multiple(mask, self.multiple)
        # the highest: what is one pixel wide is restored fully, too
        small = nn.functional.adaptive_max_pool2d(mask, z_lq.shape[-2:])
        return z_keep, small.to(z_lq.device)

    def _center(
        self, call: Call, options: RestoreOptions, cleaned: Tensor, z_lq: Tensor, noise: Randn
    ) -> Tensor | None:
        """Return the latent that restoration guidance pulls towards; None if it needs none."""
        if not options.sampler.needs_clean_center:
            return None
        with call.timed("encode"), self._at_work(options, self.vae):
            is_drawn = options.sampler.center == "clean_sampled"
            draw = noise(z_lq) if is_drawn else None  # before the start's noise, as released
            return self._encode(self.vae, cleaned, options, draw)

    def _sample(
        self,
        call: Call,
        options: RestoreOptions,
        conditions: tuple[Conditioning, Conditioning],
        z_lq: Tensor,
        z_center: Tensor | None,
        kept: tuple[Tensor, Tensor] | None,
        noise: Randn,
    ) -> Tensor:
        z_keep, mask = kept or (None, None)
        with call.timed("sample"), self._at_work(options, self.network):
            return restore_latent(
                self.network,
                self.denoiser,
                *conditions,
                z_lq,
                z_center=z_center,
                z_keep=z_keep,
                mask=mask,
                settings=options.sampler,
                randn=noise,
                on_step=call.on_step,
            )

    def _tiles(self, options: RestoreOptions) -> VaeTiles:
        assert options.vae_tile is not None
        return VaeTiles(
            tile=options.vae_tile,
            norms=options.vae_tile_norms,
            attention_tokens=options.attention_tokens,
        )

    def _encode(
        self,
        part: AutoencoderKL | RobustEncoder,
        signed: Tensor,
        options: RestoreOptions,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return the scaled latent of an image: the posterior's mean, or a sample with `noise`."""
        if options.vae_tile is not None:
            posterior = encode_tiled(part, signed, self._tiles(options))
            z = posterior.mean if noise is None else posterior.sample(noise)
            return part.scale_factor * z.float()
        return part(signed) if part is self.robust_encoder else self.vae.encode(signed, noise)

    def _decode(self, z: Tensor, options: RestoreOptions) -> Tensor:
        if options.vae_tile is None:
            return self.vae.decode(z)
        return decode_tiled(self.vae, z, self._tiles(options))

    @property
    def _parts(self) -> tuple[nn.Module, ...]:
        return self.conditioner, self.vae, self.robust_encoder, self.network

    def _place(self, options: RestoreOptions) -> None:
        """Move all parts to where they are kept: the device, or the CPU with offload."""
        for part in self._parts:
            if options.offload:
                park(part, self.device)
            else:
                part.to(self.device)

    def _at_work(self, options: RestoreOptions, part: nn.Module) -> AbstractContextManager[None]:
        """With offload, have `part` on the device only inside the block."""
        return visiting(part, self.device) if options.offload else nullcontext()


def _weight_bytes(*parts: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
