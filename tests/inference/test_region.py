"""Strength by region: black stays, white is restored, and nothing jumps at the border."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from open_supir.inference import Restorer
from open_supir.inference.region import FEATHER, feathered, mask_of, read_mask

IMAGE = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))


def _half() -> torch.Tensor:
    mask = torch.zeros(1, 1, 64, 96)
    mask[..., 48:] = 1
    return mask


def test_black_stays_to_the_bit_and_white_is_restored_fully(restorer: Restorer) -> None:
    restored = restorer(IMAGE, mask=_half()).restored
    assert torch.equal(restored[..., :48], IMAGE[..., :48])
    assert (restored - IMAGE)[..., 64:].abs().mean() > 0.01
    everywhere = restorer(IMAGE, mask=torch.ones(1, 1, 64, 96)).restored
    torch.testing.assert_close(everywhere, restorer(IMAGE).restored)


def test_sampling_itself_keeps_what_the_mask_protects(restorer: Restorer) -> None:
    """With nothing to restore, what is decoded is the input's own latent."""
    latents = []
    decode = restorer.vae.decode
    restorer.vae.decode = lambda z: latents.append(z) or decode(z)  # type: ignore[method-assign]
    restorer(IMAGE, mask=torch.zeros(1, 1, 64, 96))
    with torch.no_grad():
        own = restorer.vae.encode(IMAGE[None] * 2 - 1)
    torch.testing.assert_close(latents[-1], own, atol=1e-4, rtol=1e-4)


def test_feathering_stays_below_the_mask_and_keeps_black_and_even_grey() -> None:
    image = torch.zeros(1, 3, 64, 96)
    soft = feathered(_half(), image)
    assert soft[..., :48].max() == 0 and soft[..., 48 + FEATHER :].min() == 1
    assert soft.diff(dim=-1).abs().max() < 0.1
    grey = torch.full((1, 1, 64, 96), 0.4)
    torch.testing.assert_close(feathered(grey, image), grey)
    with pytest.raises(ValueError, match="expected a mask"):
        feathered(grey, image[..., :90])


@pytest.mark.parametrize("width", [1, 2, 7, 16, 24])
def test_the_middle_of_a_narrow_part_is_restored_fully(width: int) -> None:
    """Scratches and letters are narrower than the border over which restoration sets in."""
    mask = torch.zeros(1, 1, 64, 96)
    mask[..., 40 : 40 + width] = 1
    soft = feathered(mask, torch.zeros(1, 3, 64, 96))
    assert soft[..., 40 + width // 2].min() == pytest.approx(1, abs=1e-6)
    assert torch.all(soft <= mask)


def test_a_line_of_one_pixel_is_restored_as_without_a_mask(restorer: Restorer) -> None:
    mask = torch.zeros(1, 1, 64, 96)
    mask[..., 41] = 1
    change = (restorer(IMAGE, mask=mask).restored - IMAGE).abs()
    assert change[..., 41].mean() > 0.5 * (restorer(IMAGE).restored - IMAGE)[..., 41].abs().mean()
    assert change.sum(dim=(0, 1)).count_nonzero() == 1


def test_masks_are_found_beside_their_photograph(tmp_path: Path) -> None:
    photo = tmp_path / "a.jpg"
    assert mask_of(photo, None) is None
    Image.new("L", (4, 2), 255).save(tmp_path / "a.mask.png")
    assert mask_of(photo, None) == tmp_path / "a.mask.png"
    mask = read_mask(tmp_path / "a.mask.png", (10, 20))
    assert mask.shape == (1, 1, 10, 20) and mask.min() == pytest.approx(1)
    with pytest.raises(FileNotFoundError, match="options.mask"):
        mask_of(photo, str(tmp_path / "none.png"))
