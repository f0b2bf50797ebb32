"""The real stage-2 module under DDP and FSDP2: two ranks over gloo against one process."""

from pathlib import Path
from typing import Any

import pytest
import torch

from open_supir.networks import AutoencoderKL, Conditioner, UNet
from open_supir.networks.conditioner import TextTowerConfig
from tests.conftest import TRUNK, randomise
from tests.training import workers
from tests.training.modules import supir_module
from tests.training.workers import Data, loss_of, run


class Positions(torch.utils.data.Dataset):
    """The position itself."""

    def __getitem__(self, position: int) -> int:
        return position


def crops(positions: list[int]) -> dict[str, Any]:
    """Return a batch whose samples depend on their positions only."""
    images = [
        torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(p % 2**31))
        for p in positions
    ]
    count = len(positions)
    return {
        "hq": torch.stack(images).byte(),
        "caption": [f"a cat {p}" for p in positions],
        "sizes": torch.tensor([[32.0, 32, 0, 0, 32, 32]] * count),
        "is_negative": torch.zeros(count, dtype=torch.bool),
        "source": ["photos"] * count,
        "key": [f"k{p}" for p in positions],
        "seed": torch.tensor(positions),
    }


def supir() -> Any:
    """Return the module that every rank builds alike."""
    torch.manual_seed(0)
    unet = randomise(UNet(out_channels=4, **TRUNK))
    vae = AutoencoderKL(
        ch=8, ch_mult=[1, 1, 2], num_res_blocks=1, z_channels=4, scale_factor=0.5, groups=4
    )
    tower = TextTowerConfig(width=16, layers=2, heads=1)
    module = supir_module(unet, vae, Conditioner(clip_l=tower, clip_g=tower, size_channels=4))
    return module.to(memory_format=torch.channels_last)


def supir_task(folder: Path, ranks: int, *, pictures: bool = False, **options: Any) -> int:
    """Train the real module; then make validation pictures, on all ranks together."""
    module = supir()
    trainer, code = workers.fit(
        folder, ranks=ranks, module=module, data=Data(Positions(), crops), **options
    )
    if pictures:
        columns = module.pictures(crops([1, 2]))
        torch.save(columns["restored"], folder / f"restored_{trainer.global_rank}.pt")
    return code


@pytest.mark.slow  # minutes; test_shipped_trainers.py holds the same in its short form
@pytest.mark.parametrize("strategy", [None, "sharded"])
def test_stage_2_on_two_ranks_has_the_losses_of_one_process(
    tmp_path: Path, strategy: str | None
) -> None:
    """Relative 1e-4: Adam's first steps are of the size of the learning rate for any gradient, so
    that rounding in gradients near zero moves weights.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(supir_task, 1, one, 1, steps=2, pictures=True) == [0]
    assert run(supir_task, 2, two, 2, steps=2, pictures=True, strategy=strategy) == [0, 0]
    assert loss_of(two) == pytest.approx(loss_of(one), rel=1e-4)
    pictures = [torch.load(f, weights_only=True) for f in sorted(tmp_path.glob("*/restored_*.pt"))]
    assert len(pictures) == 3
    for picture in pictures[1:]:
        assert torch.allclose(picture, pictures[0], atol=1e-3)
