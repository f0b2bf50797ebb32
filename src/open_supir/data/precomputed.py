"""Precomputed latents and text features: one safetensors file per shard and kind, next to the tar.

For N samples, `NAME.latents.safetensors` holds `latents` (N, z, h, w) of whole images and `valid`
(N,). With K texts per sample, `NAME.text.safetensors` holds `keys` (N, K), `context` (N, K, T, D)
and `pooled` (N, K, P), and the same without N, named `constant_...`, for texts that any sample may
have. `src.precompute` writes both; their metadata holds the sha256 of the tar and the fingerprint
of the network.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from open_supir.base.files import replacing
from open_supir.base.fingerprints import fingerprint
from open_supir.base.rng import keyed_hash
from open_supir.data.captions import CaptionPolicy, TokenCounter, compose
from open_supir.data.samples import CropPolicy, SampleError
from open_supir.data.shards import ShardEntry
from open_supir.data.storage import StorageError, is_remote

KINDS = ("latents", "text")
MAX_OPEN = 64
MADE_BY = "recipe"  # key of the fingerprint in the files' metadata


def text_key(text: str) -> int:
    """Return the 63-bit key of a text."""
    return keyed_hash("text", text, size=8) >> 1


def possible_texts(
    policy: CaptionPolicy,
    count_tokens: TokenCounter,
    *,
    caption: str,
    meta: Mapping[str, Any],
    is_negative: bool,
) -> list[str]:
    """Return the two texts that a policy may give this sample, besides `constant_texts`."""
    if is_negative:
        content = meta.get("content")
        pairs = [(content if isinstance(content, str) else "", policy.negative_words)] * 2
    else:
        pairs = [(caption, ""), (caption, policy.quality_words)]
    return [compose(body, suffix, policy, count_tokens).text for body, suffix in pairs]


def constant_texts(policies: Sequence[CaptionPolicy], count_tokens: TokenCounter) -> list[str]:
    """Return the texts that do not depend on the sample: the empty one and the negative words."""
    words = [compose("", p.negative_words, p, count_tokens).text for p in policies]
    return list(dict.fromkeys(["", *words]))


def check_policies(
    kinds: Sequence[str], crop: CropPolicy, captions: Sequence[CaptionPolicy]
) -> None:
    """Refuse policies under which samples need other features than the stored ones.

    Raises:
        ValueError: A policy does not fit; the message names the key and the value it needs.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"precomputed may list {', '.join(KINDS)}, got {unknown[0]!r}")
    cut = crop.area or crop.whole or crop.flip_prob or crop.shuffle_channels
    if "latents" in kinds and cut:
        raise ValueError(
            "precomputed latents show whole, unflipped images: they need crop.native=1 "
            "crop.area=0 crop.whole=0 crop.flip_prob=0 crop.shuffle_channels=0"
        )
    if "text" in kinds and any(policy.min_visible for policy in captions):
        raise ValueError("precomputed text does not depend on the crop: it needs min_visible=0")


def describe_maker(network: nn.Module, **settings: int) -> str:
    """Return the settings and the fingerprint of the network that makes features."""
    return json.dumps({"weights": fingerprint(network.state_dict().items()), **settings})


def column_path(tar: Path, kind: str) -> Path:
    """Return the path of the features of `tar`."""
    return tar.with_suffix(f".{kind}.safetensors")


def write_columns(
    tar: Path, kind: str, tensors: Mapping[str, Tensor], *, sha256: str, made_by: str
) -> None:
    """Write the features of a shard atomically."""
    with replacing(column_path(tar, kind)) as temporary:
        save_file(dict(tensors), temporary, metadata={"tar": sha256, MADE_BY: made_by})
        temporary.chmod(0o644)  # save_file makes it private, but other users' jobs read it too


def read_metadata(tar: Path, kind: str) -> dict[str, str]:
    """Return a file's metadata; empty if the file is missing or unreadable."""
    try:
        with safe_open(column_path(tar, kind), framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def is_current(tar: Path, kind: str, *, sha256: str, made_by: str) -> bool:
    """Return whether the features of a shard are for this tar and by this network."""
    return read_metadata(tar, kind) == {"tar": sha256, MADE_BY: made_by}


class Precomputed:
    """The precomputed features of one folder; at most `MAX_OPEN` files stay open."""

    def __init__(
        self, folder: str | Path, entries: Sequence[ShardEntry], kinds: Sequence[str]
    ) -> None:
        if is_remote(folder):
            raise ValueError(f"{folder}: precomputed files can only be read from local folders")
        self.folder, self.entries, self.kinds = Path(folder), list(entries), list(kinds)
        self._open: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def check(self, shards: Sequence[int], wanted: Mapping[str, str]) -> None:
        """Check that the files of `shards` exist, match their tars and carry the right fingerprint.

        Args:
            shards: Numbers of the shards.
            wanted: Kind -> fingerprint. Files of other kinds must agree on one fingerprint.

        Raises:
            StorageError: A file is missing, belongs to another version of its tar, or has another
                fingerprint.
        """
        for kind in self.kinds:
            makers = set()
            for shard in shards:
                entry = self.entries[shard]
                found = read_metadata(self.folder / entry.name, kind)
                if found.get("tar") != entry.sha256:
                    raise StorageError(
                        f"{column_path(self.folder / entry.name, kind)}: missing, damaged, or for "
                        f"another version of the tar; run python -m src.precompute"
                    )
                makers.add(found.get(MADE_BY))
            if kind in wanted and makers - {wanted[kind]}:
                raise StorageError(
                    f"{self.folder}: {kind} were made with other weights, or for another crop "
                    f"size, than this run uses; run python -m src.precompute"
                )
            if len(makers) > 1:
                raise StorageError(
                    f"{self.folder}: {kind} were made by {len(makers)} different networks; "
                    f"run python -m src.precompute"
                )

    def read(self, shard: int, sample: int, caption: str) -> dict[str, Tensor]:
        """Return `latents` (z, h, w), and `context` (T, D) and `pooled` (P,) of `caption`.

        Raises:
            SampleError: This sample has no latents.
            StorageError: The text was not precomputed.
        """
        found = {}
        if "latents" in self.kinds:
            file = self._file("latents", shard)
            if not file.get_slice("valid")[sample]:
                raise SampleError("not precomputed")
            found["latents"] = file.get_slice("latents")[sample]
        if "text" in self.kinds:
            found |= self._text(self._file("text", shard), shard, sample, text_key(caption))
        return found

    def _text(self, file: Any, shard: int, sample: int, key: int) -> dict[str, Tensor]:
        for prefix, place in (("", (sample,)), ("constant_", ())):
            keys = file.get_slice(f"{prefix}keys")[place or slice(None)].tolist()
            if key in keys:
                at = (*place, keys.index(key))
                return {
                    name: file.get_slice(f"{prefix}{name}")[at] for name in ("context", "pooled")
                }
        raise StorageError(
            f"{self.folder / self.entries[shard].name}: the text of sample {sample} was not "
            f"precomputed: captions or their policy have changed; run python -m src.precompute"
        )

    def _file(self, kind: str, shard: int) -> Any:
        if (kind, shard) in self._open:
            self._open.move_to_end((kind, shard))
            return self._open[kind, shard]
        path = column_path(self.folder / self.entries[shard].name, kind)
        try:
            file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{path}: cannot be read ({error})") from error
        self._open[kind, shard] = file
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)
        return file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}
