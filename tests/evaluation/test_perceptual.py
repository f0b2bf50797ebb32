"""LPIPS as a loss, on a file of random weights in torchvision's format."""

from pathlib import Path

import pytest
import torch

from open_supir.evaluation.metrics import METRICS
from open_supir.evaluation.perceptual import LpipsDistance

VGG = "vgg16-397923af.pth"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def save_vgg(path: Path) -> None:
    """Save random weights; the classifier, which LPIPS does not use, shares one zero."""
    from torchvision.models import vgg16

    torch.manual_seed(0)
    with torch.device("meta"):
        state = vgg16(weights=None).state_dict()
    for key, value in state.items():
        unused = key.startswith("classifier")
        state[key] = torch.zeros(()).expand(value.shape) if unused else torch.randn(value.shape) / 9
    torch.save(state, path)


def test_it_is_the_metric_with_a_gradient_to_the_picture(hub: Path) -> None:
    save_vgg(hub / VGG)
    distance = LpipsDistance()
    reference = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    image = (reference + 0.1 * torch.sin(torch.arange(64.0))).clamp(0, 1).requires_grad_()
    found = distance(2 * image - 1, 2 * reference - 1)
    metric = METRICS["lpips_vgg"].build(torch.device("cpu"))
    pictures = image.detach()
    expected = [metric(pictures[i : i + 1], reference[i : i + 1]) for i in range(2)]
    assert found.tolist() == pytest.approx(expected, rel=1e-4) and min(expected) > 0.01
    found.sum().backward()
    assert image.grad is not None and image.grad.abs().max() > 0
    assert not any(p.requires_grad for p in distance.parameters())


def test_missing_weights_are_named(hub: Path) -> None:
    with pytest.raises(FileNotFoundError, match=VGG):
        LpipsDistance()
