"""UNet: widths, gradients, and the count of SDXL's parameters."""

from pathlib import Path

import torch
from omegaconf import OmegaConf

from open_supir.networks import Conditioning, UNet
from open_supir.networks.unet import Layout, PlainJoin

CONF = Path(__file__).parents[2] / "conf"


def test_layout_equals_sdxl_widths() -> None:
    """The hand-typed lists of the released code come out of three numbers."""
    layout = Layout.of(model_channels=320, channel_mult=[1, 2, 4], num_res_blocks=2)
    assert layout.skip_channels == (320,) * 4 + (640,) * 3 + (1280,) * 2
    joined = [(b.channels, b.skip_channels, b.out_channels) for b in layout.decoder]
    assert joined == [
        (1280, 1280, 1280),
        (1280, 1280, 1280),
        (1280, 640, 1280),
        (1280, 640, 640),
        (640, 640, 640),
        (640, 320, 640),
        (640, 320, 320),
        (320, 320, 320),
        (320, 320, 320),
    ]
    assert [i for i, block in enumerate(layout.decoder) if block.upsamples] == [2, 5]


def test_sdxl_unet_has_the_released_number_of_parameters() -> None:
    sizes = {
        k: v for k, v in OmegaConf.to_container(OmegaConf.load(CONF / "unet/sdxl.yaml")).items()
        if k != "_target_"
    }  # fmt: skip
    with torch.device("meta"):
        unet = UNet(**sizes)
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    assert len(unet.state_dict()) == 1680


def test_decode_of_encode_equals_forward(unet: UNet) -> None:
    x, t = torch.randn(2, 4, 8, 12), torch.tensor([10, 900])
    cond = Conditioning(torch.randn(2, 77, 32), torch.randn(2, 40))
    emb = unet.embed(t, cond.vector)
    h, skips = unet.encode(x, emb, cond.context)
    out = unet.decode(h, skips, emb, cond.context, PlainJoin())
    assert torch.equal(out, unet(x, t, cond))


def test_output_depends_on_noise_level_text_and_vector(unet: UNet) -> None:
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([100])
    context, vector = torch.randn(1, 77, 32), torch.randn(1, 40)
    out = unet(x, t, Conditioning(context, vector))
    assert not torch.allclose(out, unet(x, t + 300, Conditioning(context, vector)))
    assert not torch.allclose(out, unet(x, t, Conditioning(-context, vector)))
    assert not torch.allclose(out, unet(x, t, Conditioning(context, -vector)))
