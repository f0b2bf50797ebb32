"""What the tiled autoencoder costs, counted on the pretended GPU."""

from typing import Any

import pytest
import torch

from open_supir.networks.build import build_on_meta
from open_supir.networks.sdxl import sdxl_architecture
from open_supir.networks.tiled_vae import VaeTiles, decode_tiled, encode_tiled
from open_supir.rehearsal.meter import Meter, Phase
from open_supir.rehearsal.training import give_memory

SHALLOW = dict(ch_mult=[1, 2, 4], num_res_blocks=1)


def _counted(tiles: VaeTiles, size: tuple[int, int], shape: dict[str, Any]) -> dict[str, Phase]:
    """Return the phases of an image of this size."""
    meter = Meter("other")
    with meter.measuring(backward=False), torch.no_grad():
        vae = build_on_meta(sdxl_architecture()["vae"] | shape).requires_grad_(False)
        give_memory(vae, frozen=torch.bfloat16, channels_last=False)
        factor = vae.downsampling
        z = torch.empty(1, 4, size[0] // factor, size[1] // factor, device="cuda")
        image = torch.empty(1, 3, *size, device="cuda")
        with meter.inside("decode"):
            vae.decode(z)
        with meter.inside("decode tiled"):
            decode_tiled(vae, z, tiles, out_device="cuda")
        with meter.inside("encode"):
            vae.posterior(image)
        with meter.inside("encode tiled"):
            encode_tiled(vae, image, tiles)
    return meter.phases


@pytest.mark.parametrize(
    "tile, size, shape",
    [
        (256, (512, 256), SHALLOW),
        pytest.param(1024, (2048, 2048), {}, marks=pytest.mark.slow),
        pytest.param(1024, (4096, 4096), {}, marks=pytest.mark.slow),
    ],
)
def test_exact_tiles_cost_below_two_and_a_half_times_and_wait_for_nothing(
    tile: int, size: tuple[int, int], shape: dict[str, Any]
) -> None:
    """Gathering the statistics of each norm from the start would take 8 to 12 times."""
    phases = _counted(VaeTiles(tile=tile), size, shape)
    for name in ("decode", "encode"):
        whole, tiled = phases[name], phases[f"{name} tiled"]
        assert 1 < tiled.flops / whole.flops < 2.5
        assert tiled.waits.total() == 0 and tiled.copies.total() == 0
        assert tiled.peak < whole.peak
