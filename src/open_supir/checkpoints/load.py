"""Load weight files into modules: part by part, tensor by tensor, with every name accounted for.

All names and shapes are compared before the first tensor is read, so a wrong file fails at once.
Modules may be built on the meta device: loading needs their final memory plus one tensor.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from open_supir.base.dtypes import is_finite
from open_supir.base.fingerprints import fingerprint, sampled
from open_supir.checkpoints.files import Checkpoint, open_checkpoint
from open_supir.checkpoints.identify import DESCRIPTIONS, kind_of, refuse_unusable
from open_supir.checkpoints.keymaps import PARTS
from open_supir.checkpoints.loras import LoraFile, with_loras
from open_supir.checkpoints.matching import PartMatch, fits, match_part
from open_supir.checkpoints.parts import Contents, read_contents

log = logging.getLogger(__name__)

# An empty key that marks fine-tunes of SDXL which predict v.
V_PREDICTION = "v_pred"
# Parts as log lines name them.
WORDS = {
    "unet": "UNet",
    "control": "control adaptor",
    "vae": "autoencoder",
    "robust_encoder": "robust encoder",
    "clip_l": "text tower CLIP-L",
    "clip_g": "text tower CLIP-G",
}


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What happened to every name, by part.

    Args:
        loaded: Names that now hold the file's tensors.
        missing: Names that the file lacks, as expected.
        unexpected: Keys in the file that were ignored by request; under "" those of no part.
        fingerprints: Of each part that was read from the file's own part of that name, without
            LoRAs.
        on_meta: Names still without memory after loading; build or load them before use.
    """

    path: Path
    loaded: dict[str, tuple[str, ...]]
    missing: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unexpected: dict[str, tuple[str, ...]] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    on_meta: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Load:
    """One file to load parts from.

    Patterns (`*` matches anything) are of `part.name`, or of stored keys of no part.
    """

    path: str | Path  # see `open_checkpoint`
    parts: Mapping[str, nn.Module]  # modules by the names in PARTS
    # Parts that start as a copy of another part of the file, by the names that both have:
    # {"control": "unet"}, {"robust_encoder": "vae"}. The other part's other tensors are ignored.
    taken_from: Mapping[str, str] = field(default_factory=dict)
    expected_missing: Iterable[str] = ()  # patterns of what the file may lack
    ignored: Iterable[str] = ()  # patterns of what it, or a LoRA, may have in addition
    loras: Sequence[LoraFile] = ()  # merged into the tensors in this order; see `with_loras`
    dtype: torch.dtype | None = None  # floating point type to convert to; None keeps the file's
    device: torch.device | str | None = None  # None keeps each module's (the CPU for meta modules)
    key: str = ""  # the setting that names this file, such as weights.sdxl, for error messages


def load_parts(path: str | Path, parts: Mapping[str, nn.Module], **options: Any) -> LoadReport:
    """Load parts of a checkpoint into modules; `options` are the other fields of `Load`.

    Tensors replace the modules' own (nothing is copied when dtype and device agree);
    `requires_grad` is unchanged. A robust encoder takes its `quant_conv` from the file's VAE, or
    keeps its own if the file has none. Every value is checked to be finite.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is of the wrong kind, truncated, lacks a whole part, shapes differ, or
            values are not finite in `dtype`.
        KeyError: A part's names differ from the module's beyond the patterns given.
    """
    return load_all([Load(path=path, parts=parts, **options)])[0]


def load_all(loads: Iterable[Load]) -> list[LoadReport]:
    """Load several files; tensors of a later file replace those of an earlier one.

    All files are checked before any tensor is read, so that a wrong one fails at once.

    Raises:
        FileNotFoundError, ValueError, KeyError: See `load_parts`.
    """
    prepared = [(load, _prepare(load)) for load in loads]
    reports = [_run(load, *parts) for load, parts in prepared]
    origins = {part: report.path for report in reports for part in report.loaded}  # the last ones
    for path in dict.fromkeys(origins.values()):
        parts = [WORDS.get(part, part) for part, origin in origins.items() if origin == path]
        log.info("%s: from %s", ", ".join(parts), path)
    return reports


def ignored_for(prediction: str) -> tuple[str, ...]:
    """Return the keys of no part that a base file may have if the denoiser predicts this."""
    return (V_PREDICTION,) if prediction == "v" else ()


def prediction_of(path: str | Path, *, key: str = "") -> str:
    """Return what a base file's UNet predicts: eps, v or edm; eps where the file does not tell.

    It says so in its metadata, in a training checkpoint's recipe, or by an empty key.

    Raises:
        FileNotFoundError, ValueError: See `open_checkpoint`.
    """
    checkpoint = open_checkpoint(path, key=key)
    metadata = checkpoint.metadata
    recipe = json.loads(metadata.get("recipe", "null")) or {}
    trained = recipe.get("architecture", {}).get("denoiser", {}).get("prediction")
    said = trained or metadata.get("prediction") or metadata.get("modelspec.prediction_type")
    if said is None:
        return "v" if V_PREDICTION in checkpoint else "eps"
    return {"epsilon": "eps", "v_prediction": "v"}.get(said, said)


def _prepare(load: Load) -> tuple[Checkpoint, Contents, dict[str, PartMatch]]:
    origins = {part: load.taken_from.get(part, part) for part in load.parts}
    wrong = sorted({*load.parts, *origins.values()} - set(PARTS))
    if wrong:
        raise ValueError(f"unknown parts {', '.join(wrong)}; known: {', '.join(PARTS)}")
    checkpoint = open_checkpoint(load.path, key=load.key)
    refuse_unusable(checkpoint, origins.values(), key=load.key)
    contents = with_loras(read_contents(checkpoint), load.loras, ignored=load.ignored)
    path, patterns = checkpoint.path, (tuple(load.expected_missing), tuple(load.ignored))
    found = {
        part: match_part(path, part, origins[part], module, contents, *patterns)
        for part, module in load.parts.items()
    }
    wanted = dict.fromkeys(origins[part] for part, match in found.items() if match.lacking)
    absent = [part for part in wanted if part not in contents.parts]
    if absent:
        expected = ", ".join(dict.fromkeys(origins.values()))
        slot = f"; expected for {load.key}: {expected}" if load.key else ""
        raise ValueError(
            f"{path}: nothing for {', '.join(absent)}; this is "
            f"{DESCRIPTIONS[kind_of(checkpoint)]} with the parts "
            f"{', '.join(contents.parts) or 'none'}{slot}"
        )
    unknown = tuple(name for name in contents.unknown if not fits(name, patterns[1]))
    if unknown:
        if V_PREDICTION in unknown:
            raise KeyError(
                f"{path}: the network predicts v, but eps is expected; train with denoiser=v or "
                "use another base"
            )
        raise KeyError(
            f"{path}: {len(unknown)} keys of no known part, first: {unknown[0]}. They may change "
            f"what the weights mean; to load without them: ignored_keys=[{unknown[0]}]"
        )
    for match in found.values():
        match.check()
    return checkpoint, contents, found


def _run(
    load: Load, checkpoint: Checkpoint, contents: Contents, found: Mapping[str, PartMatch]
) -> LoadReport:
    samples: dict[str, list[tuple[str, Tensor]]] = {}
    for part, module in load.parts.items():
        for name, (tensors, source) in found[part].sources.items():
            stored = tensors.stored(source)
            if tensors is contents.parts.get(part):
                samples.setdefault(part, []).append((name, sampled(stored)))
            tensor = tensors.changed(source, stored)
            dtype = load.dtype or stored.dtype
            kept = _assign(module, name, tensor, dtype=dtype, device=load.device)
            if not is_finite(kept):
                raise ValueError(_not_finite(checkpoint.path, f"{part}.{name}", tensor, kept))
    checkpoint.release()
    return LoadReport(
        path=Path(load.path),
        loaded={part: tuple(match.sources) for part, match in found.items()},
        missing={part: match.missing for part, match in found.items() if match.missing},
        unexpected={part: match.ignored for part, match in found.items() if match.ignored}
        | ({"": contents.unknown} if contents.unknown else {}),
        fingerprints={part: fingerprint(tensors) for part, tensors in samples.items()},
        on_meta={part: names for part, module in load.parts.items() if (names := _on_meta(module))},
    )


def _assign(
    module: nn.Module,
    name: str,
    tensor: Tensor,
    *,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Tensor:
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    old = getattr(owner, leaf)
    if device is None:
        device = "cpu" if old.is_meta else old.device
    tensor = tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
    if isinstance(old, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
    setattr(owner, leaf, tensor)
    return tensor.detach()


def _not_finite(path: Path, name: str, stored: Tensor, kept: Tensor) -> str:
    if is_finite(stored):
        wanted = str(kept.dtype).removeprefix("torch.")
        return f"{path}: {name} does not fit into {wanted}; use dtype=bfloat16 or float32"
    return f"{path}: {name} holds NaN or infinity; the file is damaged, get it again"


def _on_meta(module: nn.Module) -> tuple[str, ...]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return tuple(name for name, tensor in tensors if tensor.is_meta)
