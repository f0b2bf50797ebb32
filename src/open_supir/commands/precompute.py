"""Store latents and text features next to the shards, for faster training.

Give the arguments of the run that will use them, with data.precomputed=[latents,text]. Features
that exist already and were made the same way from the same tar are kept.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from open_supir.base.cli import command, pick_device
from open_supir.base.images import to_signed
from open_supir.checkpoints import load_parts
from open_supir.data import SourceConfig
from open_supir.data.datamodule import RestorationDataModule
from open_supir.data.dataset import read_caption, read_meta
from open_supir.data.precomputed import (
    constant_texts,
    possible_texts,
    read_metadata,
    recipe_of,
    text_key,
    write_columns,
)
from open_supir.data.samples import SampleError, open_training_image
from open_supir.data.shards import ShardFolder
from open_supir.networks import AutoencoderKL, Conditioner

log = logging.getLogger(__name__)

BATCH = 8
T = TypeVar("T")
Columns = Callable[[ShardFolder, int, SourceConfig], dict[str, Tensor]]


@command("train")
def main(cfg: DictConfig) -> None:
    """Precompute what `data.precomputed` lists, for all shards of the run."""
    precompute_all(cfg)


def precompute_all(cfg: DictConfig) -> int:
    """Write all files that are missing or of another make; returns how many."""
    kinds = list(cfg.data.precomputed)
    if not kinds:
        raise ValueError("nothing to precompute; say data.precomputed=[latents,text]")
    data: RestorationDataModule = instantiate(cfg.data, _convert_="all")
    data.prepare_data()
    data.setup("fit")
    device, written = pick_device("auto"), 0
    for kind in kinds:
        columns, recipe = (latents if kind == "latents" else text)(cfg, data, device)
        written += precompute(data, kind, columns, recipe)
    return written


def precompute(data: RestorationDataModule, kind: str, columns: Columns, recipe: str) -> int:
    """Write the files of one kind; returns how many were missing or of another make."""
    if data.plan is None:
        raise ValueError("data.reader=stream has no index to precompute by; use reader=index")
    written = 0
    for folder, chosen, source in zip(
        data.plan.folders, data.plan.shards, data.sources.values(), strict=True
    ):
        for shard in chosen.tolist():
            entry, tar = folder.entries[shard], Path(folder.folder) / folder.name(shard)
            if read_metadata(tar, kind) == {"tar": entry.sha256, "recipe": recipe}:
                continue
            made = columns(folder, shard, source)
            write_columns(tar, kind, made, sha256=entry.sha256, recipe=recipe)
            written += 1
        log.info("%s of %s: done", kind, folder.folder)
    return written


def latents(
    cfg: DictConfig, data: RestorationDataModule, device: torch.device
) -> tuple[Columns, str]:
    """Return what encodes the images of a shard that are one whole crop, and its recipe."""
    vae: AutoencoderKL = instantiate(cfg.vae).to(device).requires_grad_(False).eval()
    path, key = cfg.weights.vae or cfg.weights.sdxl, "weights.vae"
    key = key if cfg.weights.vae else "weights.sdxl"
    load_parts(path, {"vae": vae}, dtype=torch.float32, key=key)
    size, limits = data.sample_reader.crop_size, data.sample_reader.limits

    def columns(folder: ShardFolder, shard: int, source: SourceConfig) -> dict[str, Tensor]:
        count = folder.entries[shard].count
        found, valid = [], torch.zeros(count, dtype=torch.bool)
        for numbers in batches(range(count)):
            images = torch.zeros(len(numbers), 3, size, size, dtype=torch.uint8)
            for i, number in enumerate(numbers):
                try:
                    image = open_training_image(folder.read(shard, number).image, limits)
                    if (image.height, image.width) == (size, size):
                        images[i] = torch.from_numpy(image.rows(0, size)).permute(2, 0, 1)
                        valid[number] = True
                except SampleError as error:
                    log.warning("%s, sample %d: %s", folder.name(shard), number, error)
            with torch.no_grad():
                found.append(vae.encode(to_signed(images.to(device))).bfloat16().cpu())
        return {"latents": torch.cat(found), "valid": valid}

    return columns, recipe_of(vae, size=size)


def text(cfg: DictConfig, data: RestorationDataModule, device: torch.device) -> tuple[Columns, str]:
    """Return what encodes the possible texts of a shard's samples, and its recipe."""
    conditioner: Conditioner = instantiate(cfg.conditioner).to(device).requires_grad_(False).eval()
    parts: dict[str, torch.nn.Module] = {
        "clip_l": conditioner.clip_l, "clip_g": conditioner.clip_g,
    }  # fmt: skip
    load_parts(cfg.weights.sdxl, parts, dtype=torch.float32, key="weights.sdxl")
    count_tokens = data.sample_reader.count_tokens
    constants = constant_texts(data.caption_policies(), count_tokens)

    def encode(texts: Sequence[str]) -> dict[str, Tensor]:
        features = []
        with torch.no_grad():
            for some in batches(texts):
                cond = conditioner(list(some), torch.zeros(len(some), 6, device=device))
                pooled = cond.vector[:, : -6 * conditioner.size_channels]  # the rest embeds sizes
                features.append((cond.context.bfloat16().cpu(), pooled.bfloat16().cpu()))
        context, pooled = (torch.cat(parts) for parts in zip(*features, strict=True))
        keys = torch.tensor([text_key(t) for t in texts])
        return {"keys": keys, "context": context, "pooled": pooled}

    def columns(folder: ShardFolder, shard: int, source: SourceConfig) -> dict[str, Tensor]:
        texts = []
        policy = source.captions or data.sample_reader.captions
        for number in range(folder.entries[shard].count):
            raw = folder.read(shard, number)
            try:
                caption, meta = read_caption(raw.text, "empty"), read_meta(raw.meta)
            except SampleError:
                caption, meta = "", {}  # training passes over this sample
            negative = source.is_negative or meta.get("is_negative") is True
            texts += possible_texts(
                policy, count_tokens, caption=caption, meta=meta, is_negative=negative
            )
        found = {name: t.unflatten(0, (-1, 2)) for name, t in encode(texts).items()}
        return found | {f"constant_{name}": t for name, t in encode(constants).items()}

    return columns, recipe_of(conditioner)


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut a sequence into batches."""
    return (items[i : i + BATCH] for i in range(0, len(items), BATCH))


if __name__ == "__main__":
    main()
