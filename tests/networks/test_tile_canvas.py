"""Canvases: features in bands of rows."""

import pytest
import torch

from open_supir.networks.tile_canvas import Canvas, joined
from open_supir.networks.tile_spans import spans


@pytest.mark.parametrize("on_host", [False, True])
def test_rows_are_those_of_the_whole_wherever_bands_lie(on_host: bool) -> None:
    whole = torch.arange(2 * 3 * 10 * 4.0).reshape(2, 3, 10, 4)
    canvas = Canvas((2, 10, 4), whole.device, on_host=on_host)
    for row, band in ((6, whole[..., 6:, :]), (0, whole[..., :4, :]), (4, whole[..., 4:6, :])):
        canvas.add(row, band)
    assert torch.equal(canvas.whole(), whole) and canvas.pixels == 2 * 10 * 4
    for start in range(10):
        for stop in range(start + 1, 11):
            crop = joined(canvas.rows(start, stop), slice(1, 3))
            assert torch.equal(crop, whole[..., start:stop, 1:3])


def test_bands_stay_as_long_as_they_are_read() -> None:
    canvas = Canvas((1, 12, 2), torch.device("cpu"))
    for row in (0, 4, 8):
        canvas.add(row, torch.zeros(1, 1, 4, 2))
    rows = spans(12, 4, halo=1, ramp=0, multiple=1)  # they read 0..5, 3..9, 7..12
    left = []
    for number in range(3):
        canvas.keep(rows[number + 1 :])
        left.append(sorted(canvas.bands))
    assert left == [[0, 4, 8], [4, 8], []]
