import pytest
import torch

from open_supir.inference.quantization import linear_share, quantize_weights
from open_supir.networks import Conditioning, UNet
from tests.conftest import TRUNK

pytest.importorskip("torchao", reason="quantize needs the extra `quantize`")


@torch.no_grad()
def test_int8_weights_change_little_and_are_8_bits(unet: UNet) -> None:
    """One of 127 levels a row: under one per cent of the output, over a few layers."""
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([300])
    cond = Conditioning(torch.randn(1, 77, 32), torch.randn(1, 40))
    before = unet(x, t, cond)
    quantize_weights(unet, "int8")
    after = unet(x, t, cond)
    change = ((after - before).norm() / before.norm()).item()
    assert 0 < change < 0.01
    weight = unet.time_embed[0].weight
    assert "int8" in str(getattr(weight, "qdata", getattr(weight, "tensor_impl", weight)))


def test_full_size_share_of_linear_weights() -> None:
    from hydra import compose, initialize_config_dir

    from open_supir.base.registry import build
    from tests.test_configs import CONF, plain

    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", overrides=["experiment=zerosft", "scale=sdxl"])
    with torch.device("meta"):
        assert linear_share(build(plain(cfg, "unet"))) == pytest.approx(0.87, abs=0.005)


def test_what_cannot_be_is_refused() -> None:
    unet = UNet(out_channels=4, **TRUNK)
    with pytest.raises(ValueError, match="known: int8, fp8"):
        quantize_weights(unet, "int4")
    with pytest.raises(ValueError, match="compute capability 8.9"):
        quantize_weights(unet, "fp8")
