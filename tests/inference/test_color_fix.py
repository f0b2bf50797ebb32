import pytest
import torch

from open_supir.inference.color_fix import COLOR_FIXES, adain_color_fix, wavelet_color_fix


def _pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 70, 90, generator=generator), torch.rand(
        2, 3, 70, 90, generator=generator
    )


@pytest.mark.parametrize("name", ["wavelet", "adain", "none"])
def test_an_image_is_its_own_reference(name: str) -> None:
    image, _ = _pair()
    torch.testing.assert_close(COLOR_FIXES[name](image, image), image, atol=1e-6, rtol=0)


def test_wavelet_takes_flat_colour_from_the_reference_and_detail_from_the_image() -> None:
    image, _ = _pair()
    shifted = wavelet_color_fix(image + 0.3, image)
    torch.testing.assert_close(shifted, image, atol=1e-6, rtol=0)


def test_wavelet_keeps_a_checkerboard() -> None:
    """The highest frequency has no part in any low band, away from the edges."""
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    board = ((x + y) % 2).float().expand(1, 3, 96, 96)
    out = wavelet_color_fix(board, torch.full_like(board, 0.5))
    middle = (..., slice(40, 56), slice(40, 56))
    torch.testing.assert_close(out[middle], board[middle], atol=1e-6, rtol=0)


def test_adain_gives_the_mean_and_deviation_of_the_reference() -> None:
    image, reference = _pair()
    out = adain_color_fix(image * 0.2 + 0.5, reference)
    dims = (2, 3)
    torch.testing.assert_close(out.mean(dims), reference.mean(dims), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(dims), reference.std(dims), atol=2e-3, rtol=0)  # eps 1e-5


@pytest.mark.parametrize("size", [(1, 1), (2, 300)])
def test_wavelet_works_on_images_smaller_than_its_kernel(size: tuple[int, int]) -> None:
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(wavelet_color_fix(image, image), image, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["wavelet", "adain"])
@pytest.mark.parametrize("strip_pixels", [1, 90 * 7, 90 * 64])
def test_strips_change_nothing(name: str, strip_pixels: int) -> None:
    """Rows of one, fewer than the blur reaches, and more; tolerance: float32 sums."""
    image, reference = _pair()
    whole = COLOR_FIXES[name](image, reference)
    strips = COLOR_FIXES[name](image, reference, strip_pixels=strip_pixels)
    torch.testing.assert_close(strips, whole, atol=1e-6, rtol=0)
