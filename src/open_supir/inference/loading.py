"""Loading a restorer: from a checkpoint, or from a folder of `convert format=hub`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import torch

from open_supir.base.devices import best_dtype, find_device
from open_supir.base.dtypes import parse_dtype
from open_supir.base.hub import HF
from open_supir.base.places import located
from open_supir.base.registry import build
from open_supir.inference.captioner import Captioner
from open_supir.inference.checkpoint import load_networks, read_recipe
from open_supir.networks import ControlledUNet


class Loadable:
    """What `Restorer` can be made from."""

    network: ControlledUNet
    device: torch.device

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        recipe: Mapping[str, Any] | None = None,
        weights: Mapping[str, Any] | None = None,
        captioner: Captioner | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        quantize: str | None = None,
        ignored_keys: Iterable[str] = (),
        **options: Any,
    ) -> Self:
        """Build a restorer from a stage-2 checkpoint and its recipe.

        Args:
            path: A training checkpoint of stage supir, or a SUPIR file.
            recipe: The result of `read_recipe`, if the caller already has it.
            weights: Base files that replace the recorded ones: sdxl, vae, robust_encoder,
                loras.
            captioner, device, dtype: See `Restorer`.
            quantize: "int8" or "fp8" for the UNet's linear weights; None keeps their dtype.
            ignored_keys: Keys that the files may have in addition; see `load_parts`.
            options: Fields of `RestoreOptions` that replace the recorded ones.

        Raises:
            FileNotFoundError: The checkpoint or a base file is missing; the message names it.
            ValueError: The file is not a stage-2 checkpoint.
        """
        recipe = read_recipe(path) if recipe is None else recipe
        options.setdefault("sampler", build(recipe["sampler"]))
        restorer = cls(  # pyright: ignore[reportCallIssue]
            *load_networks(
                path, recipe=recipe, weights=weights, dtype=dtype, ignored_keys=ignored_keys
            ),
            captioner=captioner,
            device=device,
            dtype=dtype,
            **{**recipe["options"], **options},
        )
        if quantize is not None:
            from open_supir.inference.quantization import quantize_weights

            unet = restorer.network.unet.to(restorer.device)  # offload has it on the CPU
            quantize_weights(unet, quantize)
        return restorer

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str = "auto",
        dtype: torch.dtype | str | None = None,
        **more: Any,
    ) -> Self:
        """Build a restorer from a folder of `convert format=hub`, or a repository OWNER/REPO.

        Args:
            revision: Branch, tag or commit of the repository.
            device: See `find_device`.
            dtype: None is `best_dtype` of the device.
            more: As in `from_checkpoint`.

        Raises:
            OSError: The repository or a file of it cannot be had; see `fetch`.
            ValueError: See `from_checkpoint`.
        """
        at = f"@{revision}" if revision else ""
        folder = Path(name) if Path(name).is_dir() else located(f"{HF}{name}{at}")
        place = find_device(str(device))
        precision = dtype or best_dtype(place)
        if isinstance(precision, str):
            precision = parse_dtype(precision)
        return cls.from_checkpoint(folder, device=place, dtype=precision, **more)
