"""A pipeline of diffusers, called as its image-to-image pipelines are; `Restorer` does the work."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor, nn

from open_supir.base.hub import HF
from open_supir.base.places import located
from open_supir.checkpoints.loras import LoraFile, merge_into
from open_supir.diffusion.samplers import OnStep, Step
from open_supir.inference import Restorer

OnStepEnd = Callable[[DiffusionPipeline, int, float, dict[str, Tensor]], Any]


class SupirModel(ModelMixin):
    """All networks of a restorer as one module, which diffusers loads, moves and converts."""

    def __init__(self, restorer: Restorer) -> None:
        super().__init__()
        self.restorer = restorer
        self.network = restorer.network
        self.conditioner = restorer.conditioner
        self.vae = restorer.vae
        self.robust_encoder = restorer.robust_encoder

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, torch_dtype: torch.dtype | None = None, **unused: Any
    ) -> "SupirModel":
        """Load a folder of `convert format=hub` onto the CPU."""
        dtype = torch_dtype or torch.float32
        return cls(Restorer.from_pretrained(folder, device="cpu", dtype=dtype))

    def save_pretrained(self, folder: str | Path, **unused: Any) -> None:
        """Refuse: `convert format=hub` writes such folders.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("write the folder with: open-supir convert format=hub")

    def to(self, *where: Any, **options: Any) -> "SupirModel":
        """Move and convert as modules do, but keep the autoencoder out of float16."""
        super().to(*where, **options)
        if self.dtype == torch.float16:
            self.vae.float()
            self.robust_encoder.float()
        self.restorer.device = self.device
        return self

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the UNet."""
        return next(self.network.parameters()).dtype


class SupirPipeline(DiffusionPipeline):
    """Restores photographs; the model's sampler settings apply unless the call overrides them.

    Args:
        model: See `SupirModel`.
    """

    def __init__(self, model: SupirModel) -> None:
        super().__init__()
        self.register_modules(model=model)
        self.images = VaeImageProcessor(do_normalize=False, do_resize=False)
        self._originals: dict[str, Tensor] = {}

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> "SupirPipeline":
        """Load a folder of `convert format=hub`, or a repository OWNER/REPO.

        Raises:
            OSError, ValueError: See `Restorer.from_pretrained`.
        """
        revision = options.pop("revision", None)
        at = f"@{revision}" if revision else ""
        folder = Path(name) if Path(name).is_dir() else located(f"{HF}{name}{at}")
        dtype = options.pop("torch_dtype", None)
        return cls(SupirModel.from_pretrained(folder, torch_dtype=dtype))

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keep only the active part on the device, an accelerator if none is named."""
        if device is None:
            device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        place = torch.device(device)
        if gpu_id is not None:
            place = torch.device(place.type, gpu_id)
        restorer = self.model.restorer
        restorer.device, restorer.options = place, replace(restorer.options, offload=True)

    def load_lora_weights(
        self, path: str, *, weight_name: str | None = None, scale: float = 1.0, **unused: Any
    ) -> None:
        """Merge a LoRA file of the base, or `weight_name` in the folder or repository `path`.

        Raises:
            FileNotFoundError, ValueError: See `merge_into`.
        """
        if weight_name is not None:
            is_folder = Path(path).is_dir()
            path = str(Path(path) / weight_name) if is_folder else f"{HF}{path}/{weight_name}"
        changed = merge_into(self._lora_parts(), LoraFile(path, scale))
        self._originals = changed | self._originals

    def unload_lora_weights(self) -> None:
        """Bring back the weights as they were before the first LoRA."""
        parts = self._lora_parts()
        for name, original in self._originals.items():
            part, _, inner = name.partition(".")
            parts[part].get_parameter(inner).data.copy_(original)
        self._originals = {}

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        **options: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Restore one or more images.

        Args:
            image: A picture, a list of them, or a tensor (B, 3, H, W) or (3, H, W) in [0, 1].
            prompt: What the image shows, or one text an image; quality words are added to it.
            negative_prompt, num_inference_steps, guidance_scale: None is the model's own.
            generator: Its initial seed is the restoration's; None is the model's.
            num_images_per_prompt: Restorations per image.
            output_type: "pil", "np" or "pt".
            callback_on_step_end: Called after each step with the pipeline, the step's number, its
                noise level, and {"latents": x}; it may raise to cancel.
            options: Further fields of RestoreOptions, such as scale=2 or strength=0.8.
        """
        batch = self.images.preprocess(image).float()
        texts = [prompt] * len(batch) if prompt is None or isinstance(prompt, str) else list(prompt)
        if len(texts) != len(batch):
            raise ValueError(f"{len(batch)} images need as many prompts, got {len(texts)}")
        restorer = self.model.restorer
        changes = {"num_steps": num_inference_steps, "cfg_scale": guidance_scale}
        given = {name: value for name, value in changes.items() if value is not None}
        options |= {"sampler": replace(restorer.options.sampler, **given)} if given else {}
        options |= {"negative_prompt": negative_prompt} if negative_prompt is not None else {}
        options |= {"seed": generator.initial_seed()} if generator is not None else {}
        options["num_samples"] = num_images_per_prompt
        on_step = None if callback_on_step_end is None else self._on_step(callback_on_step_end)
        samples = [
            sample
            for one, text in zip(batch, texts, strict=True)
            for sample in restorer(one, caption=text, on_step=on_step, **options).samples
        ]
        images: Any = self.images.postprocess(
            torch.stack(samples), output_type, do_denormalize=[False] * len(samples)
        )
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _on_step(self, call: OnStepEnd) -> OnStep:
        def on_step(step: Step, x: Tensor, denoised: Tensor) -> None:
            call(self, step.index, step.sigma, {"latents": x})

        return on_step

    def _lora_parts(self) -> dict[str, nn.Module]:
        towers = self.model.conditioner
        return {
            "unet": self.model.network.unet, "clip_l": towers.clip_l, "clip_g": towers.clip_g
        }  # fmt: skip
