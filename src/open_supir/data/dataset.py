"""Training dataset: position -> sample; bad samples are counted and replaced by a fixed rule.

All randomness of a sample comes from (seed, position). A bad sample is replaced by another one from
its block of shards; positions never shift.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from torch.utils.data import Dataset

from open_supir.base.rng import keyed_hash, keyed_rng
from open_supir.data.captions import CaptionPolicy, approximate_tokens, choose_caption
from open_supir.data.counters import LoaderCounters
from open_supir.data.order import Mixture
from open_supir.data.pair_source import PairFolder, RawPair
from open_supir.data.precomputed import Precomputed
from open_supir.data.samples import (
    CropPolicy,
    ImageLimits,
    SampleError,
    TrainingSample,
    crop_sample,
    open_training_image,
)
from open_supir.data.shards import RawSample, ShardFolder, StorageError

ATTEMPTS = 8


def position_seed(seed: int, position: int) -> int:
    """Return the 63-bit seed of a position, for the degradation and other work on the device."""
    return keyed_hash("degradation", seed, position, size=8) >> 1


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of the mixture.

    `weight` is its share relative to the others (sample counts will do); `folder` is relative to
    the data root and defaults to the source's name; `missing_caption` "skip" counts a sample
    without a caption as bad, "empty" trains it with ""; `captions` replaces the data module's
    policy; `urls` are the tars that the stream reader reads instead of those in `folder`.
    """

    weight: float
    folder: str | None = None
    is_negative: bool = False
    missing_caption: str = "skip"
    captions: CaptionPolicy | None = None
    urls: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight of a source must be positive, got {self.weight}")
        if self.missing_caption not in ("skip", "empty"):
            raise ValueError(f"missing_caption must be skip or empty, got {self.missing_caption!r}")


@dataclass(frozen=True, kw_only=True)
class SampleReader:
    """Turns a stored sample into a training sample: checks, decodes, crops and captions it."""

    crop_size: int
    crop: CropPolicy
    captions: CaptionPolicy
    seed: int
    limits: ImageLimits = field(default_factory=ImageLimits)
    count_tokens: Callable[[str], int] = approximate_tokens

    def __call__(
        self, raw: RawSample | RawPair, name: str, config: SourceConfig, position: int
    ) -> tuple[TrainingSample, bool]:
        """Make the sample at `position` from `raw`, which comes from source `name`.

        Returns:
            The sample, and whether its caption was shortened.

        Raises:
            SampleError: The stored sample is bad.
        """
        if isinstance(raw, RawPair):
            caption, meta, policy = raw.caption(), {}, self.crop.for_pairs()
            image = raw.open()
        else:
            caption = read_caption(raw.text, config.missing_caption)
            meta, policy = read_meta(raw.meta), self.crop
            image = open_training_image(raw.image, self.limits)
        rng = keyed_rng("sample", self.seed, position)
        crop = crop_sample(image, self.crop_size, policy, rng)
        is_negative = config.is_negative or meta.get("is_negative") is True
        words = choose_caption(
            config.captions or self.captions,
            rng,
            caption=caption,
            meta=meta,
            is_negative=is_negative,
            visible=crop.visible,
            box=crop.box,
            count_tokens=self.count_tokens,
        )
        sample = TrainingSample(
            hq=np.ascontiguousarray(crop.pixels[..., :3]),
            caption=words.text,
            sizes=crop.sizes,
            is_negative=is_negative,
            source=name,
            key=raw.key,
            seed=position_seed(self.seed, position),
        )
        if isinstance(raw, RawPair):
            sample["lq"] = np.ascontiguousarray(crop.pixels[..., 3:])
        return sample, words.truncated


def read_caption(data: bytes | None, missing: str) -> str:
    """Decode a caption strictly; if it is absent or empty, `missing` decides: "skip" or "empty"."""
    try:
        text = (data or b"").decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise SampleError("caption not UTF-8", str(error)) from error
    if not text and missing == "skip":
        raise SampleError("caption missing")
    return text


def read_meta(data: bytes | None) -> dict[str, Any]:
    """Parse a sample's json; an absent one reads as empty."""
    if not data:
        return {}
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SampleError("json damaged", str(error)[:100]) from error
    if not isinstance(meta, dict):
        raise SampleError("json damaged", f"a {type(meta).__name__}, not an object")
    return meta


def check_source(
    name: str, config: SourceConfig, folder: ShardFolder | PairFolder, reader: SampleReader
) -> None:
    """Read the first samples of a source under the rules of training.

    Raises:
        ValueError: None of them can be used; the message says why, and which key decides.
    """
    errors = []
    for sample in range(min(ATTEMPTS, folder.entries[0].count)):
        raw = folder.read(0, sample)
        try:
            reader(raw, name, config, sample)
        except SampleError as error:
            errors.append(f"{raw.key}: {describe(error, name, reader)}")
        else:
            return
    raise ValueError(
        f"source {name} ({folder.folder}): none of its first {len(errors)} samples can be used, "
        f"{errors[0]}. Without this source: data.sources.{name}=null"
    )


def describe(error: SampleError, source: str, reader: SampleReader) -> str:
    """Say why a sample is bad, and which key decides that."""
    limits = reader.limits
    keys = {
        "too small": f"data.crop_size={reader.crop_size} and data.image_limits.min_side="
        f"{limits.min_side} ask for more",
        "too large": f"data.image_limits.max_side={limits.max_side} and max_pixels="
        f"{limits.max_pixels} allow no more",
        "caption missing": f"data.sources.{source}.missing_caption=empty trains without captions",
        "not normalised": "python -m src.curate normalises images",
    }
    hint = keys.get(error.reason)
    return f"{error} ({hint})" if hint else str(error)


class ShardDataset(Dataset[TrainingSample]):
    """Map-style dataset over endless positions: `dataset[position]` is a TrainingSample."""

    def __init__(
        self,
        mixture: Mixture,
        folders: Sequence[ShardFolder | PairFolder],
        configs: Sequence[SourceConfig],
        reader: SampleReader,
        counters: LoaderCounters,
        *,
        shards: Sequence[np.ndarray],
        precomputed: Sequence[Precomputed] = (),
    ) -> None:
        """Combine order, storage and reader.

        `shards` maps each source's shard numbers in its order to those in its folder;
        `precomputed` holds one entry per source, or none.
        """
        self.mixture, self.folders, self.configs = mixture, folders, configs
        self.reader, self.counters, self.shards = reader, counters, shards
        self.precomputed = precomputed
        self.has_pairs = any(isinstance(folder, PairFolder) for folder in folders)

    def __getitem__(self, position: int) -> TrainingSample:
        """Read the sample at `position`, or its first readable replacement.

        Raises:
            StorageError: The storage failed, or every replacement was bad.
        """
        last = ""
        for attempt in range(ATTEMPTS):
            place = self.mixture.locate(position, attempt)
            folder = self.folders[place.source]
            shard = int(self.shards[place.source][place.shard])
            name = self.mixture.sources[place.source].name
            raw = folder.read(shard, place.sample)
            try:
                sample, truncated = self.reader(raw, name, self.configs[place.source], position)
                if self.precomputed:
                    stored = self.precomputed[place.source]
                    found = stored.read(shard, place.sample, sample["caption"])
                    sample = cast(TrainingSample, {**sample, **found})
            except SampleError as error:
                where = {"shard": folder.name(shard), "key": raw.key, "position": position}
                self.counters.count_skip(place.source, error, where)
                last = f"{raw.key}: {describe(error, name, self.reader)}"
                continue
            self.counters.count_sample(truncated=truncated)
            if self.has_pairs:  # in every batch, so that all have the same shapes
                sample["paired"] = "lq" in sample
                sample.setdefault("lq", np.zeros_like(sample["hq"]))
            return sample
        raise StorageError(
            f"{ATTEMPTS} bad samples in a row at position {position} of source {name!r}: the "
            f"storage or the whole source is at fault, not one sample; last {last}; "
            f"skipped so far: {self.counters.skipped()}"
        )
