"""Compare a file with a module by names and shapes, before any tensor is read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor, nn

from open_supir.checkpoints.identify import (
    CONTROL_DEPTHS,
    UNKNOWN_CONNECTOR,
    connector_kind,
    transformer_depth,
)
from open_supir.checkpoints.parts import Contents, PartTensors

# The robust encoder shares the VAE's quant_conv, which files of the trained parts alone lack.
SHARED_QUANT_CONV = "quant_conv."
STEM = "input_blocks.0.0.weight"  # its length is the width of the UNet's first level


@dataclass(frozen=True, kw_only=True)
class PartMatch:
    """Where each tensor of one part is read from, and what does not fit."""

    path: Path  # the file
    part: str  # name of the part
    # our name of a tensor -> the part to read it from, and its name there
    sources: dict[str, tuple[PartTensors, str]]
    missing: tuple[str, ...]  # names that the file lacks, as expected
    lacking: tuple[str, ...]  # names that it lacks unexpectedly
    ignored: tuple[str, ...]  # extra names that are allowed
    excess: tuple[str, ...]  # extra names that are not
    shapes: tuple[str, ...]  # differences of shape, in words
    hint: str  # what the file was made with, if that explains the mismatch

    def check(self) -> None:
        """Raise if the part cannot be loaded as asked.

        Raises:
            KeyError: Names are missing or in excess.
            ValueError: Shapes differ.
        """
        problems = [
            f"{len(names)} keys {what} part '{self.part}', first: {names[0]}"
            for what, names in (("missing from", self.lacking), ("unexpected in", self.excess))
            if names
        ]
        if problems:
            hint = self.hint
            if self.excess and not self.lacking and not hint:
                hint = f"; to load without: ignored_keys=[{self.part}.{self.excess[0]}]"
            raise KeyError(f"{self.path}: {'; '.join(problems)}{hint}")
        if self.shapes:
            raise ValueError(
                f"{self.path}: {len(self.shapes)} tensors of part '{self.part}' differ in shape "
                f"from the module, first: {self.shapes[0]}{self.hint}"
            )


def match_part(
    path: Path,
    part: str,
    origin: str,
    module: nn.Module,
    contents: Contents,
    expected_missing: tuple[str, ...],
    ignored: tuple[str, ...],
) -> PartMatch:
    """Compare a module with the part `origin` of a file; see `load_parts` for the patterns."""
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
        elif shared or fits(f"{part}.{name}", expected_missing):
            missing.append(name)
        else:
            lacking.append(name)
    excess = [name for name in held if name not in own] if origin == part else []
    skipped = [name for name in excess if fits(f"{part}.{name}", ignored)]
    return PartMatch(
        path=path,
        part=part,
        sources=sources,
        missing=tuple(missing),
        lacking=tuple(lacking),
        ignored=tuple(skipped),
        excess=tuple(name for name in excess if name not in set(skipped)),
        shapes=tuple(shapes),
        hint=_hint(part, own, held, shapes) if origin == part else "",
    )


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Say whether a name fits one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _hint(part: str, own: Iterable[str], held: Iterable[str], shapes: list[str]) -> str:
    """Say which option the file was made with, if names and shapes show it."""
    if not held:
        return ""
    if part == "connector":
        found, wanted = connector_kind(held), connector_kind(own)
        if found == wanted:
            return ""
        if found == UNKNOWN_CONNECTOR:
            return ". The file's connector is none of conf/connector; use the one it was made with"
        return f". The file's connector is {found}, not {wanted}; run with connector={found}"
    if part not in ("control", "unet"):
        return ""
    if stem := next((shape for shape in shapes if shape.startswith(STEM)), ""):
        return f". The sizes differ: {stem}; see scale=tiny and scale=sdxl"
    depth, expected = transformer_depth(held), transformer_depth(own)
    if depth == expected:
        return ""
    name = CONTROL_DEPTHS.get(tuple(blocks for blocks in depth if blocks), "")
    advice = f"; run with control={name}" if name and part == "control" else ""
    return (
        f". The file's transformers are {list(depth)} blocks deep on its levels, "
        f"the module's {list(expected)}{advice}"
    )
