"""LoRA files: low-rank changes of a base's weights, merged while the base is read.

A layer's weight W becomes W + s B A, where B (out, r) and A (r, in) are the file's tensors and s is
the wanted scale times alpha / r (arXiv:2106.09685); LoCon does the same for convolutions. DoRA then
scales each row to the length that the file gives (arXiv:2402.09353). Sums are float32.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from open_supir.base.hashes import weights_sha256
from open_supir.base.places import located
from open_supir.checkpoints.files import Checkpoint, TensorSpec, open_checkpoint
from open_supir.checkpoints.identify import DESCRIPTIONS, kind_of
from open_supir.checkpoints.keymaps import split_marker, to_piece
from open_supir.checkpoints.lora_names import PREFIXES, guess_base, layer_names, split_key
from open_supir.checkpoints.matching import fits
from open_supir.checkpoints.parts import Contents, PartTensors

log = logging.getLogger(__name__)

FOLDER_FILE = "pytorch_lora_weights.safetensors"  # as diffusers names it in a folder
_CONTEXT = re.compile(r"attn2[._]to_[kv]$")
_PEFT = "lora_adapter_metadata"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file and how strongly it counts."""

    path: str
    scale: float = 1.0
    sha256: str | None = None  # what the file must be; None takes any

    def plain(self) -> dict[str, Any]:
        """Return it as a recipe records it, with the hash of the file."""
        return {"path": self.path, "scale": self.scale, "sha256": weights_sha256(_file(self.path))}

    def described(self) -> dict[str, Any]:
        """Return it for records: without folders."""
        file = _file(self.path)
        return {"name": file.name, "scale": self.scale, "sha256": weights_sha256(file)}


class _Specs(Checkpoint):
    """Names, shapes and dtypes alone."""

    def __init__(self, specs: dict[str, TensorSpec]) -> None:
        self.path, self.metadata, self.specs = Path(), {}, specs

    def __getitem__(self, key: str) -> Tensor:
        raise KeyError(key)


@dataclass(frozen=True)
class Change:
    """What a LoRA does to one layer: stored keys by kind, in an open file."""

    checkpoint: Checkpoint
    keys: Mapping[str, str]
    factor: float

    def __call__(self, weight: Tensor) -> Tensor:
        """Return the changed weight, (out, in) or (out, in, k, k), float32."""
        held = {kind: self.checkpoint[key].float() for kind, key in self.keys.items()}
        change = _product(held["down"], held["up"], held.get("mid"))
        changed = weight + self.factor * change.reshape(weight.shape)
        if "magnitude" in held:  # peft: one number per row
            return _rows_of_length(held["magnitude"], changed)
        wanted = held.get("dora_scale")
        if wanted is None:
            return changed
        if wanted.shape[0] == len(changed):
            return _rows_of_length(wanted, changed)
        columns = changed.transpose(0, 1)  # LyCORIS' first form: one number per column
        return _rows_of_length(wanted, columns).transpose(0, 1)


class ModuleTensors(PartTensors):
    """A module's tensors by name, as those of a file."""

    def __init__(self, module: nn.Module) -> None:
        tensors = module.state_dict()
        specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
        super().__init__(_Specs(specs), {name: {"": name} for name in specs})


class MergedTensors(PartTensors):
    """A part's tensors with changes applied, in order, as they are read."""

    def __init__(self, base: PartTensors, changes: Mapping[str, Sequence[tuple[str, Change]]]):
        super().__init__(base._checkpoint, base._sources)
        self._base, self._changes = base, changes  # name -> markers of the pieces, and changes

    def changed(self, name: str, stored: Tensor) -> Tensor:
        """Return a tensor, of which `stored` is in the file, with all changes; float32 if any."""
        tensor = self._base.changed(name, stored)
        if name not in self._changes:
            return tensor
        tensor = tensor.float().clone()
        for marker, change in self._changes[name]:
            piece = to_piece(tensor, marker)  # a view
            piece.copy_(change(piece))
        return tensor


def lora_files(given: Any) -> tuple[LoraFile, ...]:
    """Return the LoRAs that a setting lists: FILE, {path: FILE, scale: NUMBER}, or several of them.

    Raises:
        ValueError: An entry is neither, or its scale is no number.
    """
    if given is None:
        return ()
    entries = [given] if isinstance(given, str | Mapping) else given
    return tuple(_entry(entry) for entry in entries)


def with_loras(
    contents: Contents, loras: Sequence[LoraFile], *, ignored: Iterable[str] = ()
) -> Contents:
    """Return a base's contents with LoRAs merged, in this order. Reads headers only.

    Args:
        ignored: Patterns of keys that the LoRAs may have in addition.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is no LoRA, has been changed, or does not fit this base.
    """
    parts = dict(contents.parts)
    for lora in loras:
        for part, changes in _read(lora, parts, tuple(ignored)).items():
            parts[part] = MergedTensors(parts[part], changes)
    return Contents(parts=parts, unknown=contents.unknown)


@torch.no_grad()
def merge_into(parts: Mapping[str, nn.Module], lora: LoraFile) -> dict[str, Tensor]:
    """Merge a LoRA into loaded modules, in place; returns what was there, by `part.name`.

    Args:
        parts: Any of unet, clip_l, clip_g.

    Raises:
        FileNotFoundError, ValueError: See `with_loras`; nothing is changed then.
    """
    found = _read(lora, {part: ModuleTensors(module) for part, module in parts.items()}, ())
    before = {}
    for part, changes in found.items():
        merged = MergedTensors(ModuleTensors(parts[part]), changes)
        for name in changes:
            parameter = parts[part].get_parameter(name)
            before[f"{part}.{name}"] = parameter.detach().cpu().clone()
            parameter.copy_(merged.changed(name, parameter.detach().cpu()))
    return before


def _entry(entry: Any) -> LoraFile:
    if isinstance(entry, str):
        return LoraFile(entry)
    known = {"path", "scale", "sha256"}
    if not isinstance(entry, Mapping) or "path" not in entry or set(entry) - known:
        raise ValueError(
            f"weights.loras: expected FILE or {{path: FILE, scale: NUMBER}}, got {entry!r}"
        )
    scale = entry.get("scale", 1.0)
    try:
        return LoraFile(str(entry["path"]), float(scale), entry.get("sha256"))
    except (TypeError, ValueError):
        raise ValueError(f"weights.loras: scale must be a number, got {scale!r}") from None


def _file(path: str) -> Path:
    found = located(path)
    if not found.exists():
        raise FileNotFoundError(f"{path}: no such file or folder (setting weights.loras)")
    return found / FOLDER_FILE if (found / FOLDER_FILE).is_file() else found


def _read(
    lora: LoraFile, parts: Mapping[str, PartTensors], ignored: tuple[str, ...]
) -> dict[str, dict[str, list[tuple[str, Change]]]]:
    """Return the changes of a LoRA: part -> our name -> markers and changes."""
    checkpoint = open_checkpoint(_file(lora.path), key="weights.loras")
    if lora.sha256 not in (None, weights_sha256(checkpoint.path)):
        raise ValueError(
            f"{checkpoint.path}: not the LoRA that the checkpoint was trained with; name the right "
            "file, or this one to use it: weights.loras=[FILE]"
        )
    layers = _layers(checkpoint, ignored)
    held = [part for part in PREFIXES if part in parts]
    names = layer_names(f"{part}.{name}" for part in held for name in parts[part])
    _check_fit(checkpoint, layers, names, parts)
    factors = _factors(checkpoint, layers)
    found: dict[str, dict[str, list[tuple[str, Change]]]] = {}
    for layer, keys in layers.items():
        kept = {kind: key for kind, key in keys.items() if kind != "alpha"}
        name, marker = split_marker(names[layer])
        part, _, inner = name.partition(".")
        change = Change(checkpoint, kept, lora.scale * factors[layer])
        found.setdefault(part, {}).setdefault(inner, []).append((marker, change))
    counts = ", ".join(f"{len(changes)} weights of {part}" for part, changes in found.items())
    log.info("LoRA %s: merged with scale %g into %s", checkpoint.path, lora.scale, counts)
    return found


def _layers(checkpoint: Checkpoint, ignored: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Return a LoRA's stored keys by layer and kind."""
    layers: dict[str, dict[str, str]] = {}
    strays = []
    for key in checkpoint:
        found = split_key(key)
        if found is not None:
            layers.setdefault(found[0], {})[found[1]] = key
        elif not fits(key, ignored):
            strays.append(key)
    if not layers and kind_of(checkpoint) != "lora":
        raise ValueError(
            f"{checkpoint.path}: this is {DESCRIPTIONS[kind_of(checkpoint)]}; expected for "
            "weights.loras a LoRA, LoCon or DoRA of SDXL"
        )
    if strays:
        raise ValueError(
            f"{checkpoint.path}: {len(strays)} of {len(checkpoint)} keys belong to no LoRA, LoCon "
            f"or DoRA, first: {strays[0]}{_other_kind(strays)}"
        )
    half = [layer for layer, keys in layers.items() if not {"down", "up"} <= set(keys)]
    if half:
        raise ValueError(
            f"{checkpoint.path}: {len(half)} of {len(layers)} layers lack one of their two "
            f"matrices, first: {half[0]}; get the file again"
        )
    return layers


def _check_fit(
    checkpoint: Checkpoint,
    layers: Mapping[str, Mapping[str, str]],
    names: Mapping[str, str],
    parts: Mapping[str, PartTensors],
) -> None:
    """Raise ValueError, naming count and first layer, unless every layer fits the base."""
    absent = [layer for layer in layers if layer not in names]
    others = []
    for layer in set(layers) - set(absent):
        name, marker = split_marker(names[layer])
        part, _, inner = name.partition(".")
        whole = torch.empty(parts[part].spec(inner).shape, device="meta")
        wanted = tuple(to_piece(whole, marker).shape)
        down, up = (checkpoint.spec(layers[layer][kind]).shape for kind in ("down", "up"))
        kernel = down[2:] if "mid" not in layers[layer] else wanted[2:]
        if (up[0], down[1], *_squeezed(kernel)) != (*wanted[:2], *_squeezed(wanted[2:])):
            sizes = " x ".join(map(str, wanted[:2]))
            others.append(f"{layer}, {up[0]} x {down[1]} instead of {sizes}")
    problems = [
        f"{len(found)} of its {len(layers)} layers {what}, first: {min(found)}"
        for what, found in (("are not in the base", absent), ("have other sizes", others))
        if found
    ]
    if problems:
        contexts = [
            checkpoint.spec(keys["down"]).shape[1]
            for layer, keys in layers.items()
            if _CONTEXT.search(layer)
        ]
        said = checkpoint.metadata.get("ss_base_model_version") or checkpoint.metadata.get(
            "modelspec.architecture"
        )
        base = said or guess_base(layers, contexts) or "another base"
        raise ValueError(
            f"{checkpoint.path}: this LoRA does not fit the base, it was made for {base}: "
            f"{'; '.join(problems)}"
        )


def _factors(checkpoint: Checkpoint, layers: Mapping[str, Mapping[str, str]]) -> dict[str, float]:
    """Return alpha / rank by layer; 1 where the file gives none, as in all programs."""
    said = json.loads(checkpoint.metadata.get(_PEFT, "{}"))
    factors = {}
    for layer, keys in layers.items():
        rank = checkpoint.spec(keys["down"]).shape[0]
        if "alpha" in keys:
            factors[layer] = checkpoint[keys["alpha"]].float().item() / rank
            continue
        part, _, inner = layer.partition(".")
        patterns = said.get(f"{part}.alpha_pattern") or {}
        own = (a for name, a in patterns.items() if re.match(rf"(.*\.)?({name})$", inner))
        alpha = next(own, said.get(f"{part}.lora_alpha", rank))
        factors[layer] = alpha / (rank**0.5 if said.get(f"{part}.use_rslora") else rank)
    return factors


def _product(down: Tensor, up: Tensor, mid: Tensor | None) -> Tensor:
    """Return up times down (out, in * kernel), with the kernel of a factorised convolution."""
    if mid is None:
        return up.flatten(1) @ down.flatten(1)
    return torch.einsum("ijkl,jr,pi->prkl", mid, down.flatten(1), up.flatten(1))


def _rows_of_length(lengths: Tensor, weight: Tensor) -> Tensor:
    """Scale each row of a weight (out, ...) to a length (out numbers in any shape)."""
    factors = lengths.flatten() / weight.flatten(1).norm(dim=1)
    return weight * factors.reshape(-1, *[1] * (weight.ndim - 1))


def _squeezed(kernel: Sequence[int]) -> tuple[int, ...]:
    return () if all(side == 1 for side in kernel) else tuple(kernel)


def _other_kind(keys: Iterable[str]) -> str:
    """Name the kind of adapter that such keys belong to, if it is a known one."""
    kinds = {"hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", "diff": "full differences"}
    counts = Counter(kind for key in keys for mark, kind in kinds.items() if f".{mark}" in key)
    return f" ({counts.most_common(1)[0][0]}, which is not read)" if counts else ""
