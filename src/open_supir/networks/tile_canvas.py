"""A picture's features in bands of rows, on the device or waiting on the host.

Shapes: B batch, C channels, H W size of the canvas.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from open_supir.networks.tile_spans import Span


class Canvas:
    """Features (B, C, H, W) whose bands of rows are added and dropped one by one.

    On the host of a GPU they lie in pinned memory. Copies are queued on the GPU in their order, so
    that nothing waits for them, and the host must not read what they bring.

    Args:
        size: B, H, W.
        device: Where they are used.
    """

    def __init__(self, size: Sequence[int], device: torch.device, *, on_host: bool = False) -> None:
        self.batch, self.height, self.width = size
        self.device, self.on_host = device, on_host
        self.bands: dict[int, Tensor] = {}  # by their first row; on the host (rows, B, C, W)

    @property
    def pixels(self) -> int:
        """Number of pixels of all pictures of the batch."""
        return self.batch * self.height * self.width

    @classmethod
    def of(cls, whole: Tensor) -> "Canvas":
        """Return a canvas of a single band."""
        canvas = cls((len(whole), *whole.shape[-2:]), whole.device)
        canvas.bands[0] = whole
        return canvas

    def add(self, row: int, band: Tensor) -> None:
        """Add a band (B, C, rows, W) that begins at a row."""
        if self.on_host:  # only what is contiguous is copied without the host's help
            band, is_gpu = band.permute(2, 0, 1, 3).contiguous(), self.device.type == "cuda"
            place = torch.empty(band.shape, dtype=band.dtype, pin_memory=is_gpu)
            band = place.copy_(band, non_blocking=True)
        self.bands[row] = band

    def rows(self, start: int, stop: int) -> list[Tensor]:
        """Return the pieces (B, C, rows, W) of these rows, on the device."""
        pieces = []
        for first, band in sorted(self.bands.items()):
            height = band.shape[0 if self.on_host else -2]
            inner = slice(max(0, start - first), max(0, min(height, stop - first)))
            if inner.start >= inner.stop:
                continue
            if self.on_host:
                piece = band[inner].to(self.device, non_blocking=True)
                pieces.append(piece.permute(1, 2, 0, 3))
            else:
                pieces.append(band[..., inner, :])
        return pieces

    def whole(self) -> Tensor:
        """Return all of it as one tensor on the device."""
        return joined(self.rows(0, self.height), slice(None))

    def keep(self, rows: Sequence[Span]) -> None:
        """Drop the bands that none of these spans of rows reads."""
        ends = [*sorted(self.bands)[1:], self.height]
        for first, end in zip(sorted(self.bands), ends, strict=True):
            if not any(row.start < end and first < row.stop for row in rows):
                del self.bands[first]


def joined(pieces: Sequence[Tensor], columns: slice) -> Tensor:
    """Return these columns of pieces that follow one another; a view if there is only one."""
    cut = [piece[..., columns] for piece in pieces]
    return cut[0] if len(cut) == 1 else torch.cat(cut, dim=-2)
