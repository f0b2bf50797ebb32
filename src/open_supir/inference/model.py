"""The model of a command: a stage-2 checkpoint, files that replace parts of it, and its options."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from open_supir.base.devices import best_dtype
from open_supir.base.dtypes import parse_dtype
from open_supir.base.hashes import weights_sha256
from open_supir.base.places import SHIPPED_MODEL, located
from open_supir.base.registry import build, trust
from open_supir.base.run_folders import newest_checkpoint
from open_supir.checkpoints.hub_folder import CONFIG
from open_supir.checkpoints.loras import lora_files
from open_supir.diffusion.one_step import OneStepSettings
from open_supir.inference.caption_cache import CachedCaptioner
from open_supir.inference.captioner import Captioner
from open_supir.inference.checkpoint import read_recipe, released_recipe
from open_supir.inference.options import RestoreOptions
from open_supir.inference.quantization import check_quantize
from open_supir.inference.restorer import Restorer
from open_supir.networks.switches import Compilation, check_compile, compile_networks

log = logging.getLogger(__name__)

# settings of the commands that `Model.find` takes
MODEL_SETTINGS = (
    "checkpoint", "runs_dir", "shipped", "weights", "dtype", "channels_last", "quantize", "compile",
    "ignored_keys",
)  # fmt: skip
OF_ANY_SAMPLER = ("control_scale", "tile", "overlap", "tile_batch")  # also of a one-step one


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model whose weights are not loaded yet."""

    checkpoint: Path  # a stage-2 checkpoint or a SUPIR file
    recipe: Mapping[str, Any]  # its recipe; see `read_recipe`
    # base files that replace those named by the checkpoint; see `load_networks`
    weights: Mapping[str, Any]
    dtype: str = "float32"  # dtype of the networks: float32, bfloat16 or float16; see `best_dtype`
    quantize: str | None = None  # int8 or fp8 for the UNet's linear weights; None keeps their dtype
    compile: Compilation = "off"  # see `compile_networks`
    channels_last: bool = False  # memory layout of the networks' convolutions
    ignored_keys: tuple[str, ...] = ()  # keys the files may have in addition; see `load_parts`
    # whether a preset has picked the model: a one-step one then keeps to its single step
    is_picked: bool = False

    def __post_init__(self) -> None:
        parse_dtype(self.dtype)
        check_quantize(self.quantize)
        check_compile(self.compile)

    @classmethod
    def find(
        cls,
        checkpoint: str | None,
        *,
        runs_dir: str | Path,
        shipped: str = SHIPPED_MODEL,
        dtype: str | None = None,
        device: torch.device | str = "cpu",
        ignored_keys: Iterable[str] = (),
        **settings: Any,
    ) -> "Model":
        """Return the model of a checkpoint; without one, the newest of `runs_dir` or `shipped`.

        Args:
            checkpoint: A file; None takes the newest.
            shipped: A file that ships with the code.
            dtype: None takes the best of `device`.
            settings: The other attributes of the class, except `recipe`.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is not a stage-2 checkpoint.
        """
        path = find_checkpoint(checkpoint, runs_dir=runs_dir, shipped=shipped)
        is_picked = checkpoint is None and path == located(shipped)
        return cls(
            checkpoint=path,
            recipe=read_recipe(path),
            dtype=dtype or best_dtype(torch.device(device)),
            ignored_keys=tuple(ignored_keys),
            is_picked=is_picked,
            **settings,
        )

    @classmethod
    def released(cls, *, dtype: str) -> "Model":
        """Return the released networks without their files, for rehearsals."""
        recipe = released_recipe()
        return cls(checkpoint=Path("SUPIR"), recipe=recipe, weights={}, dtype=dtype)

    def options(self, sampler: Mapping[str, Any], options: Mapping[str, Any]) -> RestoreOptions:
        """Return the given options, completed from the recipe.

        Args:
            sampler: Sampler settings. With `_target_` they are complete, and its class is trusted;
                without it they override single settings of the recipe. "???" means unset.
            options: Fields of RestoreOptions; None means unset.

        Raises:
            ValueError: A name is unknown, or a value is out of range.
        """
        asked = {name: value for name, value in sampler.items() if value != "???"}
        if self.is_picked and self.is_one_step:
            asked = {name: value for name, value in asked.items() if name in OF_ANY_SAMPLER}
        if "_target_" in asked:
            trust(asked)
            self._check_kind(asked)
        else:
            asked = {**self.recipe["sampler"], **asked}
        given = {name: value for name, value in options.items() if value is not None}
        try:
            return RestoreOptions(**{**self.recipe["options"], **given, "sampler": build(asked)})
        except TypeError as error:  # an unknown name, added by +options.NAME
            raise ValueError(f"options: {error}") from error

    @property
    def is_one_step(self) -> bool:
        """Whether the model restores in one step, as its recipe says."""
        return isinstance(build(self.recipe["sampler"]), OneStepSettings)

    def _check_kind(self, sampler: Mapping[str, Any]) -> None:
        """Refuse to sample a one-step model in several steps, or another one in one.

        Raises:
            ValueError: The sampler is not of the model's kind.
        """
        is_single = isinstance(build(sampler), OneStepSettings)
        if self.is_one_step and not is_single:
            raise ValueError(
                f"checkpoint={self.checkpoint} restores in one step: samplers and presets of "
                "several steps do not fit it; leave sampler and preset out"
            )
        if is_single and not self.is_one_step:
            raise ValueError(
                f"checkpoint={self.checkpoint} was not trained to restore in one step; use "
                "another sampler or preset, or a checkpoint of experiment=one_step"
            )

    @property
    def loras(self) -> list[dict[str, Any]]:
        """Name, scale and SHA-256 of the LoRAs in use, given or recorded, in order."""
        given = self.weights.get("loras")
        used = self.recipe["weights"].get("loras") if given is None else given
        return [lora.described() for lora in lora_files(used)]

    def described(self) -> dict[str, Any]:
        """Return the model's description for records: names and hashes of its files, no folders.

        Reads all files completely.
        """
        said: dict[str, Any] = {
            "checkpoint": self.checkpoint.name,
            "sha256": weights_sha256(self.checkpoint),
            "dtype": self.dtype,
            "quantize": self.quantize,
        }
        if self.ignored_keys:
            said["ignored_keys"] = ", ".join(self.ignored_keys)
        for name, value in self.weights.items():
            if value and name != "loras":
                file = located(value)
                known = weights_sha256(file) if file.exists() else None  # e.g. "clean"
                said |= {f"weights.{name}": file.name, f"weights.{name}.sha256": known}
        return said | ({"weights.loras": self.loras} if self.loras else {})

    def load(
        self,
        options: RestoreOptions,
        *,
        captioner: Captioner | None = None,
        device: torch.device,
    ) -> Restorer:
        """Load the weights onto a device.

        Raises:
            FileNotFoundError, ValueError: See `Restorer.from_checkpoint`.
        """
        restorer = Restorer.from_checkpoint(
            self.checkpoint,
            recipe=self.recipe,
            weights=self.weights,
            captioner=captioner,
            device=device,
            dtype=parse_dtype(self.dtype),
            quantize=self.quantize,
            ignored_keys=self.ignored_keys,
            **vars(options),
        )
        if self.channels_last:
            for part in (restorer.network, restorer.vae, restorer.robust_encoder):
                part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        compile_networks(restorer.network, self.compile)
        return restorer


def find_checkpoint(
    checkpoint: str | None, *, runs_dir: str | Path, shipped: str = SHIPPED_MODEL
) -> Path:
    """Return the given checkpoint, else the newest of stage 2, else the one that ships with us.

    Raises:
        FileNotFoundError: The file does not exist.
    """
    if checkpoint is not None:
        path = located(checkpoint)
        if not path.is_file() and not (path / CONFIG).is_file():
            raise FileNotFoundError(f"checkpoint={path}: file not found")
        return path
    newest = newest_checkpoint(runs_dir, stage="supir")
    if newest is None:
        words = "checkpoint: the shipped one, %s, because %s holds none of stage 2"
        log.info(words, located(shipped).name, runs_dir)
        return located(shipped)
    log.info("checkpoint: the newest of %s, %s", runs_dir, newest)
    return newest


def cached(captioner: Captioner, folder: str | Path | None) -> Captioner:
    """Return a captioner that caches its answers in `folder`.

    Captioners without an identity (text files, none) are returned unchanged.
    """
    if folder and hasattr(captioner, "identity"):
        return CachedCaptioner(captioner, folder)
    return captioner
