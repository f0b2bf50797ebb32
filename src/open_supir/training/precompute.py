"""Precompute: writes latents and text features next to the shards they are made from.

Files made from the same tar by the same weights are kept.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from open_supir.base.images import to_signed
from open_supir.data import SourceConfig
from open_supir.data.datamodule import RestorationDataModule
from open_supir.data.dataset import read_caption, read_meta
from open_supir.data.precomputed import (
    constant_texts,
    describe_maker,
    is_current,
    possible_texts,
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


def write_latents(data: RestorationDataModule, vae: AutoencoderKL, device: torch.device) -> int:
    """Encode the images that have the size of a crop; returns how many files were written."""
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

    return _write_missing(data, "latents", columns, describe_maker(vae, size=size))


def write_text_features(
    data: RestorationDataModule, conditioner: Conditioner, device: torch.device
) -> int:
    """Encode all texts that samples may have; returns how many files were written."""
    count_tokens = data.sample_reader.count_tokens
    constants = constant_texts(data.caption_policies(), count_tokens)

    def encode(texts: Sequence[str]) -> dict[str, Tensor]:
        features = []
        with torch.no_grad():
            for some in batches(texts):
                context, pooled = conditioner.encode(list(some), device)
                features.append((context.bfloat16().cpu(), pooled.bfloat16().cpu()))
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
                caption, meta = "", {}  # training skips this sample
            negative = source.is_negative or meta.get("is_negative") is True
            texts += possible_texts(
                policy, count_tokens, caption=caption, meta=meta, is_negative=negative
            )
        found = {name: t.unflatten(0, (-1, 2)) for name, t in encode(texts).items()}
        return found | {f"constant_{name}": t for name, t in encode(constants).items()}

    return _write_missing(data, "text", columns, describe_maker(conditioner))


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut a sequence into batches."""
    return (items[i : i + BATCH] for i in range(0, len(items), BATCH))


def _write_missing(data: RestorationDataModule, kind: str, columns: Columns, made_by: str) -> int:
    if data.plan is None:
        raise ValueError("precomputing needs data.reader=index, not stream")
    if data.pairs is not None:
        raise ValueError("precomputing is for shards: leave out data.pairs")
    written = 0
    for folder, chosen, source in zip(
        data.plan.folders, data.plan.shards, data.sources.values(), strict=True
    ):
        assert isinstance(folder, ShardFolder)
        for shard in chosen.tolist():
            tar, sha256 = Path(folder.folder) / folder.name(shard), folder.entries[shard].sha256
            if is_current(tar, kind, sha256=sha256, made_by=made_by):
                continue
            made = columns(folder, shard, source)
            write_columns(tar, kind, made, sha256=sha256, made_by=made_by)
            written += 1
        log.info("%s of %s: done", kind, folder.folder)
    return written
