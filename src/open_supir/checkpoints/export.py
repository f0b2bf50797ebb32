"""Export parts as SDXL or SUPIR single files, diffusers folders, or files of our own.

Parts are modules or mappings of tensors (such as an opened checkpoint's), so converting a file
builds no network.
"""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from open_supir.base.dtypes import is_finite
from open_supir.base.files import write_text
from open_supir.checkpoints.diffusers_config import component_configs, tokenizer_files
from open_supir.checkpoints.diffusers_names import UNetShape, diffusers_pieces, to_diffusers
from open_supir.checkpoints.files import TensorSpec
from open_supir.checkpoints.identify import CONTROL_DEPTHS, connector_kind, transformer_depth
from open_supir.checkpoints.keymaps import (
    PARTS,
    official_pieces,
    split_marker,
    to_official,
    to_piece,
)
from open_supir.checkpoints.parts import PartTensors
from open_supir.checkpoints.safetensors_writer import write_safetensors

log = logging.getLogger(__name__)

Part = nn.Module | Mapping[str, Tensor]

SDXL_PARTS = ("unet", "vae", "clip_l", "clip_g")
SUPIR_PARTS = ("control", "connector", "robust_encoder")
SHARED = "robust_encoder.quant_conv."  # the VAE's; official files hold it once

_FILE_NAMES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}


def export_sdxl(
    path: str | Path,
    parts: Mapping[str, Part],
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write an SDXL single file, in the official layout.

    Args:
        parts: Any of unet, vae, clip_l, clip_g.
        metadata: The file's metadata: licence, step, base, ….
        dtype: Floating point type in the file; None keeps each tensor's.

    Raises:
        ValueError: There are no parts, or parts that an SDXL file cannot hold.
    """
    _check_parts(parts, SDXL_PARTS, "an SDXL file")
    tensors = _pieces(parts, official_pieces, to_official, dtype, drop=SHARED)
    write_safetensors(path, tensors, {"layout": "sdxl", **metadata})


def export_supir(
    path: str | Path,
    parts: Mapping[str, Part],
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the parts that SUPIR trains, in the official layout; they load on top of an SDXL base.

    Control depth and connector are added to the metadata; the caller supplies the rest (base hash,
    step, licence).

    Args:
        parts: Any of control, connector, robust_encoder; the encoder's `quant_conv` stays with
            SDXL's VAE.
        path, metadata, dtype: As in `export_sdxl`, which also raises the same.
    """
    _check_parts(parts, SUPIR_PARTS, "a SUPIR file")
    words = {"layout": "supir", **_control_words(parts, metadata), **metadata}
    tensors = _pieces(parts, official_pieces, to_official, dtype, drop=SHARED)
    write_safetensors(path, tensors, words)


def export_native(
    path: str | Path,
    parts: Mapping[str, Part],
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write any parts under our own names, `part.name`; no tensor is split. See `export_sdxl`."""
    _check_parts(parts, PARTS, "a file")
    tensors = _pieces(parts, lambda name: (name,), lambda name: name, dtype)
    words = {"layout": "native", **_control_words(parts, metadata), **metadata}
    write_safetensors(path, tensors, words)


def export_diffusers(
    path: str | Path,
    parts: Mapping[str, Part],
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype | None = None,
    head_channels: int = 64,
    tokens: tuple[Mapping[str, int], Sequence[str]] | None = None,
) -> None:
    """Write a diffusers folder: unet/, vae/, text_encoder/, text_encoder_2/, with their configs.

    diffusers has no class for adaptor, connector and robust encoder; they go to controlnet/,
    connector/ and robust_encoder/, with names in the same style.

    Args:
        path: Target folder; files of the same name are replaced.
        parts, metadata, dtype: Any parts, and as in `export_sdxl` for each file.
        head_channels: Width of one attention head, for the configs; shapes do not show it.
        tokens: CLIP's vocabulary and merges; with them tokenizer/ and tokenizer_2/ are written too.
    """
    _check_parts(parts, PARTS, "a diffusers folder")
    root = Path(path)
    names = [f"{part}.{name}" for part, holder in parts.items() for name in _specs(holder)]
    shape = UNetShape.of(names)
    stored = _pieces(parts, diffusers_pieces, lambda name: to_diffusers(name, shape), dtype)
    by_folder: dict[str, dict[str, tuple[TensorSpec, Callable[[], Tensor]]]] = {}
    for key, entry in stored.items():
        folder, _, name = key.partition("/")
        by_folder.setdefault(folder, {})[name] = entry
    words = {"layout": "diffusers", **_control_words(parts, metadata), **metadata}
    for folder, tensors in by_folder.items():
        file = _FILE_NAMES.get(folder, "diffusion_pytorch_model.safetensors")
        write_safetensors(root / folder / file, tensors, words)
    shapes = {key: entry[0].shape for key, entry in stored.items()}
    configs = component_configs(shapes, shape, head_channels=head_channels)
    texts = {name: json.dumps(config, indent=2) + "\n" for name, config in configs.items()}
    for name, text in (texts | (tokenizer_files(*tokens) if tokens else {})).items():
        write_text(root / name, text)


def _pieces(
    parts: Mapping[str, Part],
    pieces: Callable[[str], Iterable[str]],
    rename: Callable[[str], str],
    dtype: torch.dtype | None,
    *,
    drop: str = "\0",
) -> dict[str, tuple[TensorSpec, Callable[[], Tensor]]]:
    """Return stored name -> spec and reader for all pieces, except of names that start with `drop`.

    Names are marked ones, `part.name`.
    """
    stored = {}
    told: set[str] = set()
    for part, holder in parts.items():
        specs = _specs(holder)
        tensors = holder.state_dict() if isinstance(holder, nn.Module) else holder
        for name, spec in specs.items():
            full = f"{part}.{name}"
            if full.startswith(drop):
                continue
            kept = dtype if dtype is not None and spec.dtype.is_floating_point else spec.dtype
            for piece in pieces(full):
                marker = split_marker(piece)[1]
                shape = tuple(to_piece(torch.empty(spec.shape, device="meta"), marker).shape)
                read = partial(_read_piece, tensors, name, marker, full, told)
                stored[rename(piece)] = (TensorSpec(shape, kept), read)
    return stored


def _read_piece(
    tensors: Mapping[str, Tensor], name: str, marker: str, full: str, told: set[str]
) -> Tensor:
    """Read a piece; warns once of a tensor with values that no network can use."""
    tensor = tensors[name]
    if full not in told and tensor.is_floating_point() and not is_finite(tensor):
        log.warning("%s holds NaN or infinity", full)
        told.add(full)
    return to_piece(tensor, marker)


def _specs(holder: Part) -> dict[str, TensorSpec]:
    if isinstance(holder, PartTensors):
        return {name: holder.spec(name) for name in holder}
    tensors = holder.state_dict() if isinstance(holder, nn.Module) else holder
    return {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}


def _check_parts(parts: Mapping[str, Part], allowed: tuple[str, ...], what: str) -> None:
    wrong = [part for part in parts if part not in allowed]
    if wrong or not parts:
        raise ValueError(
            f"{what} holds the parts {', '.join(allowed)}; got {', '.join(wrong) or 'none'}"
        )
    on_meta = [
        f"{part}.{name}"
        for part, holder in parts.items()
        if isinstance(holder, nn.Module)
        for name, tensor in holder.state_dict().items()
        if tensor.is_meta
    ]
    if on_meta:
        raise ValueError(f"{len(on_meta)} tensors were never loaded, first: {on_meta[0]}")


def _control_words(parts: Mapping[str, Part], metadata: Mapping[str, str]) -> dict[str, str]:
    words = {}
    if "control" in parts:
        depth = transformer_depth(_specs(parts["control"]))
        deep = tuple(level for level in depth if level)
        words["control"] = CONTROL_DEPTHS.get(deep, str(list(depth)))
    if "connector" in parts:
        words["connector"] = connector_kind(_specs(parts["connector"]), metadata)
    return words
