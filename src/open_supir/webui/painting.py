"""Regions that are painted on the page: what the brush covered becomes a mask."""

from pathlib import Path
from typing import Any

from open_supir.base.images import Photo, resize
from open_supir.base.images.tensors import size_within
from open_supir.base.images.write import write_image

RESTORE, PROTECT = "restore it", "protect it"  # the painted part; and not the rest
BRUSH = ("#e11d48", 0.5)  # colour and opacity: the picture stays visible below
COVERED = 64  # alpha from which a pixel counts as painted; the brush itself gives 128
CANVAS_SIDE = 1024  # pixels of the longer side of what is painted on

Painting = dict[str, Any]  # an editor's value: background, layers, composite


def canvas(photo: Photo, folder: Path) -> Painting:
    """Return an editor's value: a small copy of a photograph, with nothing painted on it."""
    path = folder / "canvas.jpg"
    size = size_within((photo.rgb.shape[-2], photo.rgb.shape[-1]), CANVAS_SIDE)
    write_image(path, resize(photo.visible, size).clamp(0, 1), quality=85)
    return {"background": str(path), "layers": [], "composite": str(path)}


def write_mask(path: Path, painting: Painting | None, meaning: str) -> Path | None:
    """Write what was painted as a mask that `options.mask` takes, and return its path.

    Args:
        painting: An editor's value, with layers as PIL images.
        meaning: RESTORE or PROTECT.

    Returns:
        The path; None if nothing is painted, and nothing was written.
    """
    layers = painting["layers"] if painting else []
    covered = [
        layer.convert("RGBA").getchannel("A").point(lambda alpha: 255 * (alpha >= COVERED))
        for layer in layers
    ]
    covered = [layer for layer in covered if layer.getbbox()]
    if not covered:
        return None
    mask = covered[0]
    for layer in covered[1:]:
        mask.paste(255, mask=layer.resize(mask.size))
    if meaning == PROTECT:
        mask = mask.point(lambda value: 255 - value)
    mask.save(path)
    return path
