"""Store latents and text features next to the shards, for faster training.

Pass the same arguments as to the run that will use them, with data.precomputed=[latents,text].
Existing features that were made the same way from the same tar are kept.
"""

from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from open_supir.base.cli import command, pick_device, plain
from open_supir.base.registry import build
from open_supir.checkpoints import load_parts
from open_supir.checkpoints.load import ignored_for
from open_supir.checkpoints.loras import lora_files
from open_supir.data.datamodule import RestorationDataModule
from open_supir.networks import AutoencoderKL, Conditioner
from open_supir.training.precompute import write_latents, write_text_features


@command("train")
def main(cfg: DictConfig) -> None:
    """Precompute what `data.precomputed` lists, for all shards of the run."""
    precompute(cfg)


def precompute(cfg: DictConfig) -> int:
    """Write all files that are missing or out of date; returns how many."""
    kinds = list(cfg.data.precomputed)
    if not kinds:
        raise ValueError("nothing to precompute; set data.precomputed=[latents,text]")
    data: RestorationDataModule = instantiate(cfg.data, _convert_="all")
    data.prepare_data()
    data.setup("fit")
    device, written = pick_device("auto"), 0
    if "latents" in kinds:
        vae: AutoencoderKL = _frozen(cfg.vae, device)
        key = "vae" if cfg.weights.vae else "sdxl"
        _load(cfg, key, {"vae": vae})
        written += write_latents(data, vae, device)
    if "text" in kinds:
        conditioner: Conditioner = _frozen(cfg.conditioner, device)
        _load(cfg, "sdxl", {"clip_l": conditioner.clip_l, "clip_g": conditioner.clip_g})
        written += write_text_features(data, conditioner, device)
    return written


def _frozen(spec: DictConfig, device: torch.device) -> Any:
    return build(plain(spec)).to(device).requires_grad_(False).eval()


def _load(cfg: DictConfig, key: str, parts: dict[str, nn.Module]) -> None:
    ignored = (*ignored_for(cfg.denoiser.prediction), *cfg.ignored_keys)
    options = {"dtype": torch.float32, "key": f"weights.{key}", "ignored": ignored}
    loras = () if "vae" in parts else lora_files(plain(cfg.weights.get("loras")))
    load_parts(cfg.weights[key], parts, loras=loras, **options)


if __name__ == "__main__":
    main()
