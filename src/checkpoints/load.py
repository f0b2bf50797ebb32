"""Load weight files into modules: part by part, tensor by tensor, with every name accounted for.

All names and shapes are compared before the first tensor is read, so a wrong file fails at once.
Modules may be built on the meta device: loading them needs their final memory and one tensor more.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from src.checkpoints.files import open_checkpoint
from src.checkpoints.identify import (
    CONTROL_DEPTHS,
    DESCRIPTIONS,
    connector_kind,
    kind_of,
    refuse_unusable,
    transformer_depth,
)
from src.checkpoints.keymaps import PARTS
from src.checkpoints.parts import Contents, PartTensors, read_contents

log = logging.getLogger(__name__)

# The robust encoder shares the VAE's quant_conv; files of the trained parts alone do not hold it.
SHARED_QUANT_CONV = "quant_conv."


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What happened to every name, by part.

    Args:
        loaded: Names that now hold the file's tensors.
        missing: Names that the file lacks and that were expected to be missing.
        unexpected: Keys in the file that were ignored by request; under "" those of no part.
        on_meta: Names that hold no memory after loading; build or load them before use.
    """

    path: Path
    loaded: dict[str, tuple[str, ...]]
    missing: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unexpected: dict[str, tuple[str, ...]] = field(default_factory=dict)
    on_meta: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [f"{self.path.name}: loaded {_counts(self.loaded)}"]
        for title in ("missing", "unexpected", "on_meta"):
            if names := _counts(getattr(self, title)):
                words.append(f"{title.replace('_', ' ')} {names}")
        return "; ".join(words)


def load_parts(
    path: str | Path,
    parts: Mapping[str, nn.Module],
    *,
    taken_from: Mapping[str, str] | None = None,
    expected_missing: Iterable[str] = (),
    ignored: Iterable[str] = (),
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    key: str = "",
) -> LoadReport:
    """Load parts of a checkpoint into modules.

    Tensors replace the modules' own (nothing is copied when dtype and device agree);
    `requires_grad` stays as it was. A robust encoder takes its `quant_conv` from the file's VAE,
    and keeps its own where the file has none.

    Args:
        path: An official single file, a SUPIR file, a diffusers folder or a file of our own; see
            `open_checkpoint`.
        parts: Modules by part name: unet, connector, control, vae, robust_encoder, clip_l, clip_g.
        taken_from: Parts that start as a copy of another part of the file, by the names that both
            have: {"control": "unet"}, {"robust_encoder": "vae"}. What the other holds beyond is
            left alone.
        expected_missing: Patterns (`*` matches anything) of `part.name` that the file may lack.
        ignored: Patterns of `part.name`, or of stored keys of no part, that the file may hold in
            excess.
        dtype: Floating point type to convert to; None keeps the file's.
        device: Where the tensors go; None keeps each module's device (the CPU for meta-built ones).
        key: The setting that names this file, such as `weights.sdxl`; error messages mention it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is of the wrong kind, truncated, lacks a whole part, or shapes differ.
        KeyError: A part's names differ from the module's beyond the patterns given.
    """
    origins = {part: (taken_from or {}).get(part, part) for part in parts}
    wrong = sorted({*parts, *origins.values()} - set(PARTS))
    if wrong:
        raise ValueError(f"unknown parts {', '.join(wrong)}; known: {', '.join(PARTS)}")
    checkpoint = open_checkpoint(path, key=key)
    refuse_unusable(checkpoint, origins.values(), key=key)
    contents = read_contents(checkpoint)
    expected_missing, ignored = tuple(expected_missing), tuple(ignored)

    plans = {
        part: _plan(
            checkpoint.path, part, origins[part], module, contents, expected_missing, ignored
        )
        for part, module in parts.items()
    }
    wanted = dict.fromkeys(origins[part] for part, plan in plans.items() if plan.lacking)
    absent = [part for part in wanted if part not in contents.parts]
    if absent:
        slot = f"; expected for {key}: {', '.join(dict.fromkeys(origins.values()))}" if key else ""
        raise ValueError(
            f"{checkpoint.path}: nothing for {', '.join(absent)}; this is "
            f"{DESCRIPTIONS[kind_of(checkpoint)]} with the parts "
            f"{', '.join(contents.parts) or 'none'}{slot}"
        )
    unknown = tuple(name for name in contents.unknown if not _matches(name, ignored))
    if unknown:
        raise KeyError(
            f"{checkpoint.path}: {len(unknown)} keys of no known part, first: {unknown[0]}. "
            "They may change what the weights mean (v-prediction, for instance); name them in "
            "`ignored` to load without them"
        )
    for plan in plans.values():
        plan.check()

    for part, module in parts.items():
        for name, (tensors, source) in plans[part].sources.items():
            _assign(module, name, tensors[source], dtype=dtype, device=device)
    report = LoadReport(
        path=checkpoint.path,
        loaded={part: tuple(plan.sources) for part, plan in plans.items()},
        missing={part: plan.missing for part, plan in plans.items() if plan.missing},
        unexpected={part: plan.ignored for part, plan in plans.items() if plan.ignored}
        | ({"": contents.unknown} if contents.unknown else {}),
        on_meta={part: names for part, module in parts.items() if (names := _on_meta(module))},
    )
    log.info("%s", report)
    return report


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Which tensor goes where in one part, and what is wrong."""

    path: Path
    part: str
    sources: dict[str, tuple[PartTensors, str]]  # our name -> where it comes from
    missing: tuple[str, ...]
    lacking: tuple[str, ...]
    ignored: tuple[str, ...]
    excess: tuple[str, ...]
    shapes: tuple[str, ...]
    hint: str

    def check(self) -> None:
        problems = [
            f"{len(names)} keys {what} part '{self.part}', first: {names[0]}"
            for what, names in (("missing from", self.lacking), ("unexpected in", self.excess))
            if names
        ]
        if problems:
            raise KeyError(f"{self.path}: {'; '.join(problems)}{self.hint}")
        if self.shapes:
            raise ValueError(
                f"{self.path}: {len(self.shapes)} tensors of part '{self.part}' have another shape "
                f"than the module, first: {self.shapes[0]}{self.hint}"
            )


def _plan(
    path: Path,
    part: str,
    origin: str,
    module: nn.Module,
    contents: Contents,
    expected_missing: tuple[str, ...],
    ignored: tuple[str, ...],
) -> _Plan:
    own = module.state_dict(keep_vars=True)
    held: Mapping[str, Tensor] = contents.parts.get(origin, {})
    sources, missing, lacking, shapes = {}, [], [], []
    for name, target in own.items():
        shared = part == "robust_encoder" and name.startswith(SHARED_QUANT_CONV)
        holder = contents.parts.get("vae" if shared and name not in held else origin)
        if holder is not None and name in holder:
            sources[name] = (holder, name)
            found, wanted = holder.spec(name).shape, tuple(target.shape)
            if found != wanted:
                shapes.append(f"{name} is {list(found)} in the file, {list(wanted)} in the module")
        elif shared or _matches(f"{part}.{name}", expected_missing):
            missing.append(name)
        else:
            lacking.append(name)
    excess = [name for name in held if name not in own] if origin == part else []
    skipped = [name for name in excess if _matches(f"{part}.{name}", ignored)]
    return _Plan(
        path=path,
        part=part,
        sources=sources,
        missing=tuple(missing),
        lacking=tuple(lacking),
        ignored=tuple(skipped),
        excess=tuple(name for name in excess if name not in set(skipped)),
        shapes=tuple(shapes),
        hint=_hint(origin, own, held),
    )


def _hint(part: str, own: Iterable[str], held: Iterable[str]) -> str:
    """Say which option the file was made with, where names tell."""
    if not held:
        return ""
    if part == "connector":
        found, wanted = connector_kind(held), connector_kind(own)
        if found == wanted:
            return ""
        return f". The file's connector is {found}, not {wanted}; run with connector={found}"
    if part not in ("control", "unet"):
        return ""
    depth, expected = transformer_depth(held), transformer_depth(own)
    if depth == expected:
        return ""
    name = CONTROL_DEPTHS.get(tuple(blocks for blocks in depth if blocks), "")
    advice = f"; run with control={name}" if name and part == "control" else ""
    return (
        f". The file's transformers are {list(depth)} blocks deep on its levels, "
        f"the module's {list(expected)}{advice}"
    )


def _assign(
    module: nn.Module,
    name: str,
    tensor: Tensor,
    *,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    old = getattr(owner, leaf)
    if device is None:
        device = "cpu" if old.is_meta else old.device
    tensor = tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
    if isinstance(old, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
    setattr(owner, leaf, tensor)


def _on_meta(module: nn.Module) -> tuple[str, ...]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return tuple(name for name, tensor in tensors if tensor.is_meta)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _counts(names: Mapping[str, tuple[str, ...]]) -> str:
    return ", ".join(f"{part or 'no part'} {len(held)}" for part, held in names.items())
