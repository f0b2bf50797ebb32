import pytest
import torch
from torch import Tensor

from open_supir.diffusion.samplers import Step
from open_supir.diffusion.tiling import Window, spread_windows, tile_weights, tiled

STEP = Step(0, 1.0, 1.0, 0.0)
SIZES = [(5, 7), (16, 16), (17, 16), (24, 40), (128, 200), (8, 160), (61, 67)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_windows_cover_the_canvas_with_the_overlap_asked_for(
    size: tuple[int, int], overlap: float
) -> None:
    windows = spread_windows(*size, tile=16, overlap=overlap)
    seen = torch.zeros(size)
    for window in windows:
        assert window.top >= 0 and window.left >= 0
        assert window.crop(seen).shape == (min(16, size[0]), min(16, size[1]))
        window.crop(seen).add_(1)
    assert seen.min() >= 1
    lefts = sorted({w.left for w in windows})
    gaps = [b - a for a, b in zip(lefts, lefts[1:], strict=False)]
    assert all(gap <= max(1, 16 * (1 - overlap)) for gap in gaps)
    assert not gaps or max(gaps) - min(gaps) <= 1, "starts are spread evenly"


def test_canvas_smaller_than_a_tile_gets_one_window() -> None:
    assert spread_windows(5, 7, tile=16) == [Window(0, 5, 0, 7)]


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (15, 128), (3, 64)])
def test_weights_are_symmetric_and_cannot_underflow(size: tuple[int, int]) -> None:
    weights = tile_weights(*size)
    assert torch.equal(weights, weights.flip(0)) and torch.equal(weights, weights.flip(1))
    assert weights.half().min() > 0 and weights.max() <= 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_weights_are_a_partition_of_unity(size: tuple[int, int], batch_size: int) -> None:
    """A pointwise function is reproduced whatever the windows."""
    x = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    windows = spread_windows(*size, tile=16)
    crop = windows[0].crop(x)

    def denoise(x: Tensor, step: Step, windows=None) -> Tensor:
        return x.sin()

    run = tiled(denoise, windows, tile_weights(*crop.shape[-2:]), batch_size=batch_size)
    torch.testing.assert_close(run(x, STEP), x.sin(), atol=1e-6, rtol=1e-6)


def test_order_and_batching_of_windows_change_nothing() -> None:
    x = torch.randn(1, 4, 40, 56, generator=torch.Generator().manual_seed(0))
    windows = spread_windows(40, 56, tile=16)
    weights = tile_weights(16, 16)

    def denoise(x: Tensor, step: Step, windows=None) -> Tensor:
        return x - x.mean(dim=(2, 3), keepdim=True)  # depends on the whole tile

    expected = tiled(denoise, windows, weights)(x, STEP)
    for other in (windows[::-1], windows[3:] + windows[:3]):
        for batch_size in (1, 4):
            out = tiled(denoise, other, weights, batch_size=batch_size)(x, STEP)
            torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)


def test_neighbours_fade_without_an_edge() -> None:
    """Tiles that disagree by 1 give a ramp: no step larger than the ramp's own slope."""
    windows = spread_windows(16, 28, tile=16)
    assert [w.left for w in windows] == [0, 12]

    def denoise(x: Tensor, step: Step, windows=None) -> Tensor:
        assert windows is not None
        return torch.full_like(x, float(windows[0].left > 0))

    out = tiled(denoise, windows, tile_weights(16, 16))(torch.zeros(1, 1, 16, 28), STEP)[0, 0, 8]
    assert out[:12].abs().max() == 0 and (out[16:] == 1).all()
    steps = out.diff()
    assert (steps >= 0).all() and steps.max() < 0.55  # 4 overlapping columns


def test_estimates_are_averaged_in_float32_for_a_half_precision_canvas() -> None:
    x = torch.ones(1, 4, 24, 24, dtype=torch.float16)
    same = tiled(lambda x, step, windows: x, spread_windows(24, 24, tile=16), tile_weights(16, 16))
    out = same(x, STEP)
    assert out.dtype == torch.float16 and torch.equal(out, x)


def test_canvas_is_not_written_to() -> None:
    x = torch.ones(1, 4, 24, 24)
    windows = spread_windows(24, 24, tile=16)
    tiled(lambda x, step, windows: x * 2, windows, tile_weights(16, 16))(x, STEP)
    assert (x == 1).all()


@pytest.mark.parametrize("options", [dict(tile=0), dict(tile=16, overlap=1.0)])
def test_impossible_tiles_are_refused(options: dict) -> None:
    with pytest.raises(ValueError):
        spread_windows(10, 10, **options)
