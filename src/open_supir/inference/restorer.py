"""Restorer: image in, image out.

Shapes: H W image size, h w latent size. Images are in [0, 1] at the door, [-1, 1] inside.
"""

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from open_supir.base.images import to_signed, to_unit
from open_supir.base.images.tensors import crop_to, pad_to_multiple
from open_supir.base.registry import build
from open_supir.diffusion import Denoiser, SamplerSettings, restore_latent
from open_supir.diffusion.restoration import image_noise
from open_supir.diffusion.samplers import OnStep, Randn
from open_supir.inference.captioner import Captioner, NoCaptioner
from open_supir.inference.checkpoint import load_networks, read_recipe
from open_supir.inference.color_fix import COLOR_FIXES
from open_supir.inference.memory import Rung, fit, is_out_of_memory, step_down
from open_supir.inference.options import RestoreOptions
from open_supir.inference.pixels import finished, for_captioner, mixed, noise_seed, resized
from open_supir.inference.prompt_encoder import PromptEncoder
from open_supir.inference.result import Restoration, Run
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


class Restorer:
    """Restores one image after another, one call at a time.

    Keeps nothing between calls but encoded prompts.

    Args:
        network: Predicts from noisy latents under the control of the degraded image's latent.
        denoiser: Turns its output into an estimate of the clean latent.
        conditioner: Captions and sizes -> Conditioning.
        vae: Decodes latents; encodes the cleaned image for restoration guidance.
        robust_encoder: Encodes degraded images.
        captioner: Describes the cleaned image where the caller gives no caption.
        options: What is wanted where the caller does not say.
        latent_factor: Pixels a latent pixel; None asks the VAE. 8 for SDXL.
        count_tokens: Tokens of a text as the conditioner's encoders count them.
        device: Where modules are moved and work is done.
        dtype: Of the modules. The VAE stays float32 under float16, in which it overflows.
        changes: Fields of `options` to replace.

    Raises:
        ValueError: An option is out of its range.
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
        latent_factor: int | None = None,
        count_tokens: Callable[[str], int] = count_clip_tokens,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        **changes: Any,
    ) -> None:
        self.options = replace(options or RestoreOptions(), **changes)
        self.device = torch.device(device)
        vae_dtype = torch.float32 if dtype == torch.float16 else dtype
        self.network = network.to(self.device, dtype).eval()
        self.conditioner = conditioner.to(self.device, dtype).eval()
        self.vae = vae.to(self.device, vae_dtype).eval()
        self.robust_encoder = robust_encoder.to(self.device, vae_dtype).eval()
        self.denoiser = denoiser
        self.captioner = captioner or NoCaptioner()
        self.latent_factor = latent_factor or vae.downsampling
        self.multiple = self.latent_factor * network.downsampling
        self.prompts = PromptEncoder(self.conditioner, count_tokens)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        recipe: Mapping[str, Any] | None = None,
        weights: Mapping[str, str | None] | None = None,
        settings: SamplerSettings | None = None,
        captioner: Captioner | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        quantize: str | None = None,
        **options: Any,
    ) -> "Restorer":
        """Build a restorer from a stage-2 checkpoint, which says what it is made of.

        Args:
            path: A training checkpoint of stage supir, or a SUPIR file.
            recipe: The result of `read_recipe`, if the caller already has it.
            weights: Base files to use in place of the recorded ones: sdxl, vae, robust_encoder.
            settings: How to sample; None samples as the run's validation pictures did.
            captioner, device, dtype: See the class.
            quantize: "int8" or "fp8" for the UNet's linear weights; None keeps their dtype.
            options: Fields of `RestoreOptions`, in place of the recorded ones.

        Raises:
            FileNotFoundError: The checkpoint or a base file is missing; names it.
            ValueError: The file is not a stage-2 checkpoint.
        """
        recipe = read_recipe(path) if recipe is None else recipe
        settings = settings or build(recipe["sampler"])
        restorer = cls(
            *load_networks(path, recipe=recipe, weights=weights, dtype=dtype),
            captioner=captioner,
            device=device,
            dtype=dtype,
            **{**recipe["options"], "settings": settings, **options},
        )
        if quantize is not None:
            from open_supir.inference.quantization import quantize_weights

            quantize_weights(restorer.network.unet, quantize)
        return restorer

    @property
    def native_tile(self) -> int:
        """The latent side that the networks were trained at, as far as the options tell."""
        return min(self.options.size_condition or (1024, 1024)) // self.latent_factor

    @torch.no_grad()
    def clean(self, image: Tensor, *, robust: bool = True) -> Tensor:
        """Return what the robust encoder alone makes of an image (1, 3, H, W) in [0, 1], or the
        autoencoder's ordinary one.
        """
        padded, inner = pad_to_multiple(image.to(self.device), self.multiple)
        encode = self.robust_encoder if robust else self.vae.encode
        decoded = self.vae.decode(encode(to_signed(padded)))
        return to_unit(crop_to(decoded, inner)).to(image.device)

    @torch.no_grad()
    def preview(self, denoised: Tensor) -> Tensor:
        """Decode an estimate of the clean latent (1, C, h, w), small and fast: (3, H', W')."""
        scale = min(1.0, PREVIEW_SIDE / max(denoised.shape[-2:]))
        if scale < 1:
            size = [max(1, round(side * scale)) for side in denoised.shape[-2:]]
            denoised = nn.functional.interpolate(denoised, size=size, mode="area")
        with self._at_work(self.options, self.vae):
            return to_unit(self.vae.decode(denoised.to(self.device)))[0].cpu()

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,
        *,
        caption: str | None = None,
        source: Path | None = None,
        on_step: OnStep | None = None,
        options: RestoreOptions | None = None,
        **changes: Any,
    ) -> Restoration:
        """Restore one image.

        The noise depends on the seed, the image's content and the sample's number, not on device,
        tile or order. Where memory runs out, less demanding options are tried.

        Args:
            image: (3, H, W) or (1, 3, H, W) in [0, 1].
            caption: What the image shows; None asks the captioner.
            source: File of the image, for captioners that look beside it.
            on_step: Called after each step; may raise, to cancel.
            options: What is wanted; None takes the restorer's own.
            changes: Fields of the options to replace, such as seed=1 or scale=2.

        Raises:
            ValueError: `image` is not one RGB image in floating point, or an option is out of
                range.
            torch.OutOfMemoryError: Not even the least demanding options fit.
        """
        batch = image[None] if image.ndim == 3 else image
        if batch.ndim != 4 or batch.shape[:2] != (1, 3) or not batch.is_floating_point():
            raise ValueError(
                f"expected a float image (3, H, W) or (1, 3, H, W) in [0, 1], "
                f"got {image.dtype} {tuple(image.shape)}"
            )
        options = replace(options or self.options, **changes)
        run = Run(batch, caption, source, on_step, {})
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
            result = self._with_ladder(run, options)
        if image.ndim == 4:
            return result
        samples = tuple(sample[0] for sample in result.samples)
        return replace(result, samples=samples, cleaned=result.cleaned[0])

    def _with_ladder(self, run: Run, options: RestoreOptions) -> Restoration:
        options, given_up = self._fit(options, options.working_size(*run.image.shape[-2:]))
        for rung in given_up:
            log.info("the image is large for this device: %s", rung.name)
        while True:
            try:
                return self._restore(run, options, given_up)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error).partition("\n")[0] or type(error).__name__
            # outside of the except block: the traceback holds the tensors that did not fit
            lower = step_down(
                options, native_tile=self.native_tile, has_device=self.device.type != "cpu"
            )
            if lower is None:
                raise torch.OutOfMemoryError(
                    f"out of memory with the least demanding options too ({failure}); "
                    "reduce scale, or use a machine with more memory"
                )
            options, rung = lower
            given_up = [*given_up, rung]
            log.warning("out of memory; trying again with %s", rung.name)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _fit(
        self, options: RestoreOptions, size: tuple[int, int]
    ) -> tuple[RestoreOptions, list[Rung]]:
        if not isinstance(self.vae, AutoencoderKL):  # stand-ins have no size to estimate by
            return options, []
        return fit(
            options,
            size=size,
            vae=self.vae,
            network=self.network,
            native_tile=self.native_tile,
            device=self.device,
        )

    def _restore(self, run: Run, options: RestoreOptions, given_up: list[Rung]) -> Restoration:
        """Restore with the options as they are: clean, describe, then sample each result."""
        self._place(options)
        size = options.output_size(*run.image.shape[-2:])
        place = self.device if options.vae_tile is None else torch.device("cpu")
        working = resized(run.image.to(place), options.working_size(*run.image.shape[-2:]))
        padded, inner = pad_to_multiple(working, self.multiple)

        with run.timed("encode"), self._at_work(options, self.robust_encoder):
            z_lq = self._encode(self.robust_encoder, to_signed(padded), options)
        with run.timed("decode"), self._at_work(options, self.vae):
            cleaned = self._decode(z_lq, options)  # about [-1, 1], not clamped
        if run.caption is None:
            with run.timed("caption"):
                shown = for_captioner(crop_to(cleaned, inner))
                run.caption = self.captioner(shown, source=run.source)
        told = options.size_condition or (padded.shape[-2], padded.shape[-1])
        with run.timed("text"), self._at_work(options, self.conditioner):
            prompt, cond, uncond = self.prompts(run.caption, options, told, self.device)

        samples, z_center = [], None
        for number in range(options.num_samples):
            noise = image_noise([noise_seed(run.image, options.seed, number)])
            if z_center is None or options.settings.center == "clean_sampled":
                z_center = self._center(run, options, cleaned, z_lq, noise)
            z = self._sample(run, options, (cond, uncond), z_lq, z_center, noise)
            with run.timed("decode"), self._at_work(options, self.vae):
                restored = crop_to(self._decode(z, options), inner)
            with run.timed("finish"):
                is_input = options.color_reference == "input"
                reference = to_signed(working) if is_input else crop_to(cleaned, inner)
                fixed = COLOR_FIXES[options.color_fix](restored, reference, device=self.device)
                del restored, reference
                unit = finished(fixed, size, run.image.device)
                samples.append(mixed(unit, run.image, options.strength))
                del fixed, unit
        tokens = z_lq.shape[-2] * z_lq.shape[-1]
        whole = options.vae_tile is None or self._tiles(options).is_exact(tokens, self.device)
        return Restoration(
            samples=tuple(samples),
            cleaned=finished(crop_to(cleaned, inner), size, run.image.device),
            caption=run.caption,
            prompt=prompt,
            options=options,
            given_up=tuple(given_up),
            is_exact=whole and all(rung.is_exact for rung in given_up),
            seconds=dict(run.seconds),
        )

    def _center(
        self, run: Run, options: RestoreOptions, cleaned: Tensor, z_lq: Tensor, noise: Randn
    ) -> Tensor | None:
        """Return the latent that restoration guidance pulls to; None where it needs none."""
        if not options.settings.needs_clean_center:
            return None
        with run.timed("encode"), self._at_work(options, self.vae):
            is_drawn = options.settings.center == "clean_sampled"
            draw = noise(z_lq) if is_drawn else None  # before the start's noise, as released
            return self._encode(self.vae, cleaned, options, draw)

    def _sample(
        self,
        run: Run,
        options: RestoreOptions,
        conditions: tuple[Conditioning, Conditioning],
        z_lq: Tensor,
        z_center: Tensor | None,
        noise: Randn,
    ) -> Tensor:
        with run.timed("sample"), self._at_work(options, self.network):
            return restore_latent(
                self.network,
                self.denoiser,
                *conditions,
                z_lq,
                z_center=z_center,
                settings=options.settings,
                randn=noise,
                on_step=run.on_step,
            )

    def _tiles(self, options: RestoreOptions) -> VaeTiles:
        assert options.vae_tile is not None
        return VaeTiles(tile=options.vae_tile, attention_tokens=options.attention_tokens)

    def _encode(
        self,
        part: AutoencoderKL | RobustEncoder,
        signed: Tensor,
        options: RestoreOptions,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Return the scaled latent of an image: the posterior's mean, or a draw by `noise`."""
        if options.vae_tile is not None:
            posterior = encode_tiled(part, signed, self._tiles(options))
            z = posterior.mean if noise is None else posterior.sample(noise)
            return part.scale_factor * z.float()
        return part(signed) if part is self.robust_encoder else self.vae.encode(signed, noise)

    def _decode(self, z: Tensor, options: RestoreOptions) -> Tensor:
        if options.vae_tile is None:
            return self.vae.decode(z)
        return decode_tiled(self.vae, z, self._tiles(options))

    def _place(self, options: RestoreOptions) -> None:
        """Put all parts where they wait: on the device, or off it under offload."""
        place = torch.device("cpu") if options.offload else self.device
        for part in (self.conditioner, self.vae, self.robust_encoder, self.network):
            part.to(place)

    @contextmanager
    def _at_work(self, options: RestoreOptions, part: nn.Module) -> Iterator[None]:
        """Under offload, have `part` on the device within the block only."""
        if not options.offload:
            yield
            return
        part.to(self.device)
        try:
            yield
        finally:
            part.to("cpu")
