"""A checkpoint as parts: our names, with tensors assembled from their stored pieces on access."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from open_supir.checkpoints.diffusers_names import UNetShape, from_diffusers
from open_supir.checkpoints.files import Checkpoint, Folder, TensorSpec
from open_supir.checkpoints.keymaps import (
    PARTS,
    canonical,
    from_native,
    from_official,
    from_pieces,
    is_dropped,
    piece_shapes_join,
    required_markers,
    split_marker,
)


class PartTensors(Mapping[str, Tensor]):
    """Our names inside one part -> tensors, read on access; `spec` reads no tensor."""

    def __init__(self, checkpoint: Checkpoint, sources: dict[str, dict[str, str]]) -> None:
        self._checkpoint = checkpoint
        self._sources = sources  # name -> marker -> stored key

    def __getitem__(self, name: str) -> Tensor:
        return self.changed(name, self.stored(name))

    def stored(self, name: str) -> Tensor:
        """Return a tensor as it is in the file."""
        return from_pieces(
            {marker: self._checkpoint[key] for marker, key in self._sources[name].items()}
        )

    def changed(self, name: str, stored: Tensor) -> Tensor:
        """Return the tensor to use for a stored one; here, itself."""
        return stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources  # the base class would read the tensor to find out

    def spec(self, name: str) -> TensorSpec:
        """Return shape and dtype of a tensor without reading it."""
        pieces = self._sources[name]
        specs = {marker: self._checkpoint.spec(key) for marker, key in pieces.items()}
        shape = piece_shapes_join({marker: spec.shape for marker, spec in specs.items()})
        return TensorSpec(shape, next(iter(specs.values())).dtype)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a checkpoint holds: tensors by part, and keys that are neither those nor leftovers."""

    parts: dict[str, PartTensors]
    unknown: tuple[str, ...]


def read_contents(checkpoint: Checkpoint) -> Contents:
    """Sort a checkpoint's keys into parts. Reads no tensors.

    Raises:
        ValueError: A fused tensor has only some of its pieces, or two keys claim the same tensor.
    """
    sources: dict[str, dict[str, dict[str, str]]] = {}
    unknown = []
    names = our_names(checkpoint)
    for key, name in names.items():
        if name is None:
            if not is_dropped(canonical(key)):
                unknown.append(key)
            continue
        base, marker = split_marker(name)
        part, _, inner = base.partition(".")
        pieces = sources.setdefault(part, {}).setdefault(inner, {})
        if marker in pieces:
            raise ValueError(
                f"{checkpoint.path}: both {pieces[marker]!r} and {key!r} are {part}'s {inner}"
            )
        pieces[marker] = key
    for part, tensors in sources.items():
        for inner, pieces in tensors.items():
            wanted = required_markers(next(iter(pieces)))
            if set(wanted) != set(pieces):
                lost = ", ".join(sorted(set(wanted) - set(pieces)))
                raise ValueError(f"{checkpoint.path}: {part}'s {inner} lacks its pieces {lost}")
    parts = {part: PartTensors(checkpoint, sources[part]) for part in PARTS if part in sources}
    return Contents(parts=parts, unknown=tuple(unknown))


def our_names(checkpoint: Checkpoint) -> dict[str, str | None]:
    """Return our marked name for each stored key, None for keys of no part."""
    if isinstance(checkpoint, Folder):
        shape = UNetShape.of_diffusers(checkpoint)
        return {key: from_diffusers(key, shape) for key in checkpoint}
    return {key: from_native(key) or from_official(canonical(key)) for key in checkpoint}
