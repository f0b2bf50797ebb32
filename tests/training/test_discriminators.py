"""The discriminator on a CLIP ConvNeXt: a small model of open_clip's, and a file in its format."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from omegaconf import OmegaConf
from torch import nn

from open_supir.base.places import CONF
from open_supir.networks.convnext import MEAN, STD
from open_supir.training.discriminators import ConvNeXtDiscriminator, Seen

NAME = "convnext_for_tests"
CHANNELS = (24, 32, 48, 16)
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear",
                   "image_size": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1},
}  # fmt: skip


@pytest.fixture
def clip(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A small CLIP with random weights, and their file."""
    (tmp_path / f"{NAME}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    model = open_clip.create_model(NAME).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    return model, tmp_path / "weights.pt"


def seen(image: torch.Tensor) -> Seen:
    nothing: Any = None
    return Seen(image=image, z=nothing, cond=nothing, seeds=nothing, unet=nothing)


def test_features_are_those_of_the_file(clip: tuple[Any, Path]) -> None:
    model, file = clip
    disc = ConvNeXtDiscriminator(weights=str(file), name=NAME, channels=CHANNELS, width=8)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    *stages, pooled = disc.features(seen(2 * image - 1))
    given = (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    maps = model.visual.trunk.forward_intermediates(given, intermediates_only=True)
    torch.testing.assert_close(pooled, model.encode_image(given))
    torch.testing.assert_close(stages, list(maps[: len(stages)]))


def test_only_the_heads_learn_and_the_picture_has_a_gradient(clip: tuple[Any, Path]) -> None:
    disc = ConvNeXtDiscriminator(weights=str(clip[1]), name=NAME, channels=CHANNELS, width=8)
    image = torch.rand(2, 3, 64, 64).requires_grad_()
    logits = disc(seen(image))
    assert [tuple(level.shape) for level in logits] == [
        (2, 1, 4, 4),
        (2, 1, 2, 2),
        (2, 1, 1, 1),
        (2, 1),
    ]
    torch.stack([level.sum() for level in logits]).sum().backward()
    assert image.grad is not None and image.grad.abs().max() > 0
    assert all(p.grad is not None for p in disc.heads.parameters())
    assert all(p.grad is None for p in disc.backbone.parameters())


def test_a_missing_file_is_named() -> None:
    with pytest.raises(
        FileNotFoundError, match="discriminator.weights=none.bin: .*discriminator=prior"
    ):
        ConvNeXtDiscriminator(weights="none.bin", name=NAME, channels=CHANNELS, width=8)


def test_the_configured_widths_are_those_of_the_full_model() -> None:
    config: Any = OmegaConf.load(CONF / "discriminator/convnext.yaml")
    known: Any = open_clip.get_model_config(config.name)
    with torch.device("meta"):
        trunk: Any = timm.create_model(known["vision_cfg"]["timm_model_name"])
    widths = [stage["num_chs"] for stage in trunk.feature_info]
    assert list(config.channels) == [*widths[:3], known["embed_dim"]]
