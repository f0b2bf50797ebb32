"""Grain: what is drawn has the strength, colours and spectrum of what was measured."""

import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from open_supir.base.images import read_photo
from open_supir.base.images.write import write_image
from open_supir.inference.grain import draw_grain, measure_grain, with_grain
from tests.other_tools import MAGICK, needs_magick

SHADE = torch.linspace(0.2, 0.8, 384).expand(3, 256, 384)  # lighter to the right
BLUR = torch.tensor([0.25, 0.5, 0.25])


def noise(seed: int) -> Tensor:
    """Grey noise that is correlated between neighbours and twice as strong where it is light."""
    white = torch.randn(1, 1, 258, 386, generator=torch.Generator().manual_seed(seed))
    grey = F.conv2d(white, (BLUR[:, None] * BLUR)[None, None])[0] / 0.375  # of deviation 1
    return grey * (0.01 + 0.01 * (SHADE - 0.2) / 0.6)


def correlation(field: Tensor) -> Tensor:
    """Return how neighbours at distances of 1 and 2 pixels belong together."""
    middle = field - field.mean()
    return torch.stack([(middle[..., n:] * middle[..., :-n]).mean() for n in (1, 2)]) / field.var()


def test_drawn_grain_is_like_the_measured_one() -> None:
    """Strength within 15 %: the flattest tenth of the patches is chosen, which is a little below.

    [1 2 1] / 4 correlates neighbours by 2/3 and 1/6.
    """
    grain = measure_grain(SHADE + noise(0))
    assert grain is not None
    drawn = draw_grain(grain, SHADE, seed=1)
    for columns in (slice(0, 96), slice(288, 384)):
        wanted = noise(0)[..., columns].std()
        assert abs(drawn[..., columns].std() / wanted - 1) < 0.15
    assert (drawn - drawn[:1]).abs().max() < 1e-4  # grey
    assert (correlation(drawn) - torch.tensor([2 / 3, 1 / 6])).abs().max() < 0.08


def test_texture_is_not_taken_for_grain() -> None:
    """Stripes in half of the picture, forty times as strong as the noise."""
    stripes = 0.2 * torch.sin(torch.arange(384.0))
    stripes[:192] = 0
    grain = measure_grain((SHADE + noise(0) + stripes).clamp(0, 1))
    assert grain is not None and grain.strength.max() < 0.05


def test_a_result_gets_the_grain_at_its_own_size_and_the_same_each_time() -> None:
    image, smooth = (SHADE + noise(0))[None], F.interpolate(SHADE[None], scale_factor=2.0)
    grainy = with_grain(smooth, image, seed=3)
    assert torch.equal(grainy, with_grain(smooth, image, seed=3))
    assert abs((grainy - smooth).std() / noise(0).std() - 1) < 0.15


def test_pictures_without_noise_or_room_stay_as_they_are() -> None:
    assert (with_grain(SHADE[None], SHADE[None], seed=0) - SHADE).abs().max() < 1e-4
    tiny = SHADE[None, :, :16, :16]
    assert torch.equal(with_grain(tiny, tiny, seed=0), tiny)


@needs_magick
@pytest.mark.parametrize("attenuate", [0.15, 0.4])
def test_magick_finds_its_own_noise_in_the_result(tmp_path: Path, attenuate: float) -> None:
    """Strength as the mean absolute difference from the smooth picture, by ImageMagick."""
    smooth, noisy, result = (tmp_path / name for name in ("smooth.png", "noisy.png", "result.png"))
    magick("-size", "384x256", "gradient:gray80-gray30", "-depth", 8, f"PNG24:{smooth}")
    magick(smooth, "-seed", 7, "-attenuate", attenuate, "+noise", "Gaussian", noisy)
    plain, grainy = (read_photo(path).rgb[None] for path in (smooth, noisy))
    write_image(result, with_grain(plain, grainy, seed=1)[0])
    strength = [
        float(magick(smooth, path, "-compose", "difference", "-composite",
                     "-format", "%[fx:mean]", "info:"))
        for path in (noisy, result)
    ]  # fmt: skip
    assert strength[0] > 0.005
    assert strength[1] == pytest.approx(strength[0], rel=0.15)


def magick(*arguments: object) -> str:
    command = [MAGICK, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout
