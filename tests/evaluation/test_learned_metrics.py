"""Learned metrics through their real loading code, with files of random values.

Files stand under the official names, in the official format; the libraries load them as they would
load the released ones. Values mean nothing; that our value equals the library's own does.
"""

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile

import numpy as np
import pytest
import scipy.io
import torch
from skimage import data
from torch import Tensor

from open_supir.base.images.write import write_image
from open_supir.evaluation.benchmark import run_benchmark
from open_supir.evaluation.metrics import METRICS, check_weights, create_pyiqa

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def hub() -> Iterator[Path]:
    """A hub folder of random weights: trunks, LPIPS heads, the files of pyiqa."""
    import pyiqa.utils.download_util as download
    import torchvision

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        hub = Path(name)
        patch.setattr(torch.hub, "get_dir", lambda: str(hub))
        patch.setattr(download, "DEFAULT_CACHE_DIR", str(hub / "pyiqa"))
        patch.setattr(socket, "create_connection", _refuse)
        (hub / "checkpoints").mkdir()
        (hub / "pyiqa").mkdir()
        torch.manual_seed(0)
        for file, make in (
            ("alexnet-owt-7be5be79.pth", torchvision.models.alexnet),
            ("vgg16-397923af.pth", torchvision.models.vgg16),
        ):
            torch.save(_slim(make(weights=None).state_dict()), hub / "checkpoints" / file)
        _write_pyiqa_files(hub / "pyiqa")
        yield hub


def _refuse(*args: object, **kwargs: object) -> None:
    raise AssertionError("a metric went to the network")


def _slim(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Let the classifier, which no metric uses, share one zero: 0.5 GB less on disk."""
    return {
        key: torch.zeros(()).expand(value.shape) if key.startswith("classifier") else value
        for key, value in state.items()
    }


def _write_pyiqa_files(folder: Path) -> None:
    import timm
    from pyiqa.archs import inception, maniqa_arch, musiq_arch, topiq_arch

    state = musiq_arch.MUSIQ(pretrained=False, num_class=1).state_dict()
    torch.save(state, folder / "musiq_koniq_ckpt-e95806b9.pth")
    topiq = topiq_arch.CFANet(
        semantic_model_name="resnet50", model_name="cfanet_nr_koniq_res50", use_ref=False,
        backbone_pretrain=False, pretrained=False,
    )  # fmt: skip
    torch.save({"params": topiq.state_dict()}, folder / "cfanet_nr_koniq_res50-9a73138b.pth")
    create = timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", lambda name, **_: create(name))
        state = maniqa_arch.MANIQA(pretrained=False).state_dict()
    torch.save(state, folder / "ckpt_koniq10k.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_pretrained_network", lambda *args: None)
        net = inception.fid_inception_v3()
    for module in net.modules():  # at its own scale nearly all images have the same features
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    state = net.state_dict()
    torch.save(state, folder / "pt_inception-2015-12-05-6726825d.pth")
    from torchmetrics.functional.image import lpips

    heads = Path(lpips.__file__).parent / "lpips_models"  # the released ones
    copyfile(heads / "alex.pth", folder / "LPIPS_v0.1_alex-df73285e.pth")
    copyfile(heads / "vgg.pth", folder / "LPIPS_v0.1_vgg-a78928a0.pth")
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(36, 36))
    scipy.io.savemat(
        folder / "niqe_modelparameters.mat",
        {"mu_prisparam": rng.normal(size=(1, 36)), "cov_prisparam": factor @ factor.T},
    )


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    """A photograph of 256x256 and a noisy copy, 8-bit values in [0, 1]."""
    crop = np.ascontiguousarray(data.astronaut()[:256, 100:356])
    clean = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255
    noise = 0.08 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    return ((clean + noise).clamp(0, 1) * 255).round() / 255, clean


def _direct(metric_id: str, *images: Tensor, **options: object) -> float:
    """Ask pyiqa itself."""
    import pyiqa

    with contextlib.redirect_stdout(None), torch.no_grad():
        return float(pyiqa.create_metric(metric_id, device=CPU, **options)(*images).flatten()[0])


@pytest.mark.parametrize(
    ("name", "metric_id", "options", "tolerance"),
    [
        ("psnr", "psnr", {}, 1e-4),
        ("psnr_y", "psnr", {"test_y_channel": True, "color_space": "ycbcr"}, 1e-4),
        ("ssim", "ssimc", {}, 1e-5),
        ("ssim_y", "ssim", {"color_space": "ycbcr"}, 1e-5),
        ("lpips_vgg", "lpips-vgg", {}, 1e-5),
        ("lpips", "lpips", {}, 1e-5),  # ours runs in torchmetrics, with one file less
    ],
)
def test_full_reference_metrics_equal_pyiqa(
    hub: Path, pair: tuple[Tensor, Tensor], name: str, metric_id: str, options: dict,
    tolerance: float,
) -> None:  # fmt: skip
    value = METRICS[name].build(CPU)(*pair)
    assert value == pytest.approx(_direct(metric_id, *pair, **options), abs=tolerance)


def test_formulas_equal_torchmetrics(pair: tuple[Tensor, Tensor]) -> None:
    """Its SSIM pads by reflection, so it is compared where no window leaves the image."""
    from torchmetrics.functional import image as functional

    expected = functional.peak_signal_noise_ratio(*pair, data_range=1.0).item()
    assert METRICS["psnr"].build(CPU)(*pair) == pytest.approx(expected, abs=1e-4)
    _, full = functional.structural_similarity_index_measure(
        *pair, data_range=1.0, return_full_image=True
    )
    inside = full[..., 5:-5, 5:-5].mean().item()
    assert METRICS["ssim"].build(CPU)(*pair) == pytest.approx(inside, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "metric_id", "options"),
    [
        ("niqe", "niqe", {}),
        ("musiq", "musiq", {}),
        ("topiq", "topiq_nr", {"backbone_pretrain": False}),  # the metric's file holds it
    ],
)
def test_no_reference_metrics_equal_pyiqa(
    hub: Path, pair: tuple[Tensor, Tensor], name: str, metric_id: str, options: dict
) -> None:
    value = METRICS[name].build(CPU)(pair[0], None)
    assert value == pytest.approx(_direct(metric_id, pair[0], **options), rel=1e-5)


def test_maniqa_loads_its_own_file_whole_and_asks_for_no_trunk(hub: Path) -> None:
    """The trunk's weights come from the metric's file too; scoring takes minutes on a CPU."""
    net = create_pyiqa("maniqa", CPU).net
    released = torch.load(hub / "pyiqa" / "ckpt_koniq10k.pt", weights_only=True)
    state = net.state_dict()
    assert set(state) == set(released)
    assert all(torch.equal(state[key], released[key]) for key in released)


def test_dists_equals_the_functional_form(hub: Path, pair: tuple[Tensor, Tensor]) -> None:
    from torchmetrics.functional.image import deep_image_structure_and_texture_similarity as dists

    expected = dists(*pair).item()
    score = METRICS["dists"].build(CPU)
    assert [score(*pair), score(*pair)] == pytest.approx([expected, expected], abs=1e-5)


def test_fid_of_equal_sets_is_zero_and_of_others_that_of_pyiqa(hub: Path, tmp_path: Path) -> None:
    import pyiqa

    for folder, seed, scale in (("a", 0, 1.0), ("b", 0, 1.0), ("c", 1, 0.5)):
        generator = torch.Generator().manual_seed(seed)
        for index in range(4):
            image = scale * torch.rand(3, 32, 32, generator=generator)
            write_image(tmp_path / folder / f"{index}.png", image)
    score = METRICS["fid"].build(CPU)
    assert score(tmp_path / "a", tmp_path / "b") == pytest.approx(0, abs=1e-3)
    with contextlib.redirect_stdout(None):
        direct = pyiqa.create_metric("fid", device=CPU)
        expected = float(direct(str(tmp_path / "a"), str(tmp_path / "c"), num_workers=0))
    assert score(tmp_path / "a", tmp_path / "c") == pytest.approx(expected, rel=1e-4)
    assert expected > 0.01


def test_benchmark_runs_learned_metrics_without_a_network(
    hub: Path, pair: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    names = ["lpips", "dists", "niqe", "musiq", "clipiqa"]
    assert set(check_weights(names)) == {"clipiqa"}
    records = run_benchmark(
        [("a", *pair)], {"lq": lambda s: s.lq}, names, out_dir=tmp_path, run="r"
    )
    status = {r["metric"]: r["status"] for r in records}
    assert status == {
        "lpips": "ok", "dists": "ok", "niqe": "ok", "musiq": "ok", "clipiqa": "missing_weights",
    }  # fmt: skip
