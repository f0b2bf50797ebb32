"""The metrics by name: which direction is better, what they need, and how to build them.

Metrics are computed on 8-bit images. One metric can differ more between libraries and variants
than between methods, so each entry states its library and exact id. pyiqa (PolyForm Noncommercial)
and torchmetrics (Apache-2.0) are imported only when a metric that needs them is built.

A `Score` maps the restored image (1, 3, H, W) in [0, 1] and the reference, same shape or None, to
a value. A `SetScore`, for metrics of whole sets, takes two folders of PNG files.
"""

import contextlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from open_supir.evaluation import formulas
from open_supir.evaluation.weights import (
    Missing,
    WeightFile,
    find_missing,
    offline,
    pyiqa_file,
    torchvision_file,
)

Score = Callable[[Tensor, Tensor | None], float]
SetScore = Callable[[Path, Path], float]
Direction = Literal["higher", "lower", "none"]

CLIP_RN50_SHA256 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric and how tables show it."""

    name: str  # name in configs and records
    title: str  # column title
    direction: Direction  # which direction is better; "none" for statistics that are not scores
    range: str  # range of values, in words
    library: str  # library that computes it, with its installed version and licence
    metric_id: str  # exact id or settings in that library
    color: str  # what is measured: RGB, or which Y
    needs_reference: bool  # whether it compares with the HQ image
    decimals: int  # decimals shown in tables
    # makes the score function on a device; loads each model once
    build: Callable[[torch.device], Any]
    weights: tuple[WeightFile, ...] = ()  # weight files it needs
    min_side: int = 1  # smallest image side that can be measured
    per_set: bool = False  # one value for a whole set of images; `build` then makes a SetScore

    @property
    def arrow(self) -> str:
        """Return the arrow of the better direction for table headers, or an empty string."""
        return {"higher": "↑", "lower": "↓", "none": ""}[self.direction]


def _formula(function: Callable[..., Tensor], *, luma: bool = False, rounded: bool = False):
    """Wrap a function of formulas.py; `rounded` rounds to 8 bits first, as pyiqa's SSIM does."""

    def prepare(image: Tensor) -> Tensor:
        image = formulas.studio_luma(image) if luma else image
        return (image * 255).round() / 255 if rounded else image

    def score(restored: Tensor, reference: Tensor | None) -> float:
        images = [restored] if reference is None else [restored, reference]
        return function(*map(prepare, images)).item()

    return lambda device: score


def _sharpness(device: torch.device) -> Score:
    return lambda restored, reference: formulas.laplacian_variance(restored).item()


def _torchmetrics(class_name: str, **options: Any):
    def build(device: torch.device) -> Score:
        import torchmetrics.image

        model = getattr(torchmetrics.image, class_name)(**options).to(device).eval()

        @torch.no_grad()
        def score(restored: Tensor, reference: Tensor | None) -> float:
            value = model(restored.to(device), reference.to(device)).item()  # type: ignore[union-attr]
            model.reset()
            return value

        return score

    return build


def _pyiqa(metric_id: str, **options: Any):
    def build(device: torch.device) -> Score:
        model = create_pyiqa(metric_id, device, **options)

        @torch.no_grad()
        def score(restored: Tensor, reference: Tensor | None) -> float:
            images = [restored] if reference is None else [restored, reference]
            return float(model(*[image.to(device) for image in images]).flatten()[0])

        return score

    return build


def _pyiqa_set(metric_id: str, **options: Any):
    def build(device: torch.device) -> SetScore:
        model = create_pyiqa(metric_id, device)

        def score(restored: Path, reference: Path) -> float:
            with contextlib.redirect_stdout(io.StringIO()):
                return float(model(str(restored), str(reference), **options))

        return score

    return build


def create_pyiqa(metric_id: str, device: torch.device, **options: Any):
    """Build a pyiqa metric by its id, without network access."""
    with offline(), contextlib.redirect_stdout(io.StringIO()):  # pyiqa prints what it loads
        import pyiqa

        with _timm_without_download(), _llama_as_it_is(metric_id):
            return pyiqa.create_metric(metric_id, device=device, **options)


@contextlib.contextmanager
def _llama_as_it_is(metric_id: str) -> Iterator[None]:
    """Keep pyiqa from importing what replaces transformers' Llama for the whole process.

    To find some names, such as that of MS-SSIM, it imports all its metrics; after that no LLaVA
    captioner could be built. A metric that needs the replacement still makes it.
    """
    names = [n for n in _REPLACE_LLAMA if n not in metric_id and _arch(n) not in sys.modules]
    for name in names:
        sys.modules[_arch(name)] = None  # type: ignore[assignment]  # importing it fails
    try:
        yield
    finally:
        for name in names:
            del sys.modules[_arch(name)]


def _arch(name: str) -> str:
    return f"pyiqa.archs.{name}_arch"


@contextlib.contextmanager
def _timm_without_download() -> Iterator[None]:
    """Build timm trunks without weights: the metric's own file, loaded strictly, has them all."""
    import timm

    create = timm.create_model

    def create_empty(*args: Any, **kwargs: Any):
        return create(*args, **{**kwargs, "pretrained": False})

    timm.create_model = create_empty
    try:
        yield
    finally:
        timm.create_model = create


def _installed(package: str, licence: str) -> str:
    try:
        return f"{package} {version(package)} ({licence})"
    except PackageNotFoundError:
        return f"{package}, not installed ({licence})"


_PYIQA = _installed("pyiqa", "PolyForm Noncommercial")
_TORCHMETRICS = _installed("torchmetrics", "Apache-2.0")
_OWN = "own formula"
_REPLACE_LLAMA = ("qalign", "compare2score")  # pyiqa's, see `_llama_as_it_is`
_ALEXNET = torchvision_file("alexnet-owt-7be5be79.pth")
_VGG16 = torchvision_file("vgg16-397923af.pth")
_CLIP_RN50 = WeightFile(
    path="clip/RN50.pt",
    url=f"https://openaipublic.azureedge.net/clip/models/{CLIP_RN50_SHA256}/RN50.pt",
    licence="MIT",
    sha256=CLIP_RN50_SHA256,
)
_INCEPTION = pyiqa_file("pt_inception-2015-12-05-6726825d.pth", "Apache-2.0, trained on ImageNet")
_NIQE = pyiqa_file("niqe_modelparameters.mat", "NIQE authors (LIVE, UT Austin), research use")
_MUSIQ = pyiqa_file("musiq_koniq_ckpt-e95806b9.pth", "Apache-2.0 (MUSIQ authors)")
_MANIQA_KONIQ = pyiqa_file("ckpt_koniq10k.pt", "Apache-2.0 (MANIQA authors)")
_MANIQA_PIPAL = pyiqa_file("MANIQA_PIPAL-ae6d356b.pth", "Apache-2.0 (MANIQA authors)")
_CLIPIQA_PLUS = pyiqa_file(
    "CLIP-IQA+_learned_prompts-603f3273.pth", "S-Lab Licence 1.0, non-commercial"
)
_TOPIQ = pyiqa_file("cfanet_nr_koniq_res50-9a73138b.pth", "trained by pyiqa's authors")
_ONE_ALIGN = WeightFile(
    path="models--q-future--one-align",
    url="https://huggingface.co/q-future/one-align",
    licence="MIT",
    is_repository=True,
)


def _full_reference(name: str, title: str, direction: Direction, **fields: Any) -> Metric:
    return Metric(name=name, title=title, direction=direction, needs_reference=True, **fields)


def _no_reference(name: str, title: str, direction: Direction, **fields: Any) -> Metric:
    return Metric(name=name, title=title, direction=direction, needs_reference=False, **fields)


# fmt: off
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _full_reference(
            "psnr", "PSNR", "higher", range="0 to 80 dB", decimals=2, color="RGB",
            library=_OWN, metric_id="equals pyiqa psnr", build=_formula(formulas.psnr),
        ),
        _full_reference(
            "psnr_y", "PSNR-Y", "higher", range="0 to 80 dB", decimals=2,
            color="Y, BT.601 studio swing", library=_OWN,
            metric_id="equals pyiqa psnr(test_y_channel=True, color_space='ycbcr')",
            build=_formula(formulas.psnr, luma=True),
        ),
        _full_reference(
            "ssim", "SSIM", "higher", range="0 to 1", decimals=4, color="RGB", min_side=11,
            library=_OWN, metric_id="equals pyiqa ssimc", build=_formula(formulas.ssim),
        ),
        _full_reference(
            "ssim_y", "SSIM-Y", "higher", range="0 to 1", decimals=4, min_side=11,
            color="Y, BT.601 studio swing, rounded to 8 bits", library=_OWN,
            metric_id="equals pyiqa ssim(color_space='ycbcr')",
            build=_formula(formulas.ssim, luma=True, rounded=True),
        ),
        _full_reference(
            "ms_ssim", "MS-SSIM", "higher", range="0 to 1", decimals=4, color="RGB", min_side=161,
            library=_PYIQA, metric_id="ms_ssim (five scales)", build=_pyiqa("ms_ssim"),
        ),
        _full_reference(
            "fsim", "FSIM", "higher", range="0 to 1", decimals=4, color="RGB, chroma in YIQ",
            library=_PYIQA, metric_id="fsim (FSIMc)", build=_pyiqa("fsim"), min_side=32,
        ),
        _full_reference(
            "gmsd", "GMSD", "lower", range="0 to about 0.4", decimals=4, color="Y", min_side=16,
            library=_PYIQA, metric_id="gmsd", build=_pyiqa("gmsd"),
        ),
        _full_reference(
            "vif", "VIF", "higher", range="0 to about 1", decimals=4, color="Y", min_side=41,
            library=_PYIQA, metric_id="vif (wavelet domain)", build=_pyiqa("vif"),
        ),
        _full_reference(
            "lpips", "LPIPS", "lower", range="0 to 1", decimals=4, color="RGB", min_side=64,
            library=_TORCHMETRICS, metric_id="lpips alex 0.1", weights=(_ALEXNET,),
            build=_torchmetrics(
                "LearnedPerceptualImagePatchSimilarity", net_type="alex", normalize=True
            ),
        ),
        _full_reference(
            "lpips_vgg", "LPIPS (VGG)", "lower", range="0 to 1", decimals=4, color="RGB",
            library=_TORCHMETRICS, metric_id="lpips vgg 0.1", weights=(_VGG16,), min_side=64,
            build=_torchmetrics(
                "LearnedPerceptualImagePatchSimilarity", net_type="vgg", normalize=True
            ),
        ),
        _full_reference(
            "dists", "DISTS", "lower", range="0 to 1", decimals=4, color="RGB", min_side=64,
            library=_TORCHMETRICS, metric_id="dists", weights=(_VGG16,),
            build=_torchmetrics("DeepImageStructureAndTextureSimilarity"),
        ),
        _full_reference(
            "fid", "FID", "lower", range="0 and up", decimals=2, color="RGB", per_set=True,
            library=_PYIQA, metric_id="fid (clean mode, 2048 features)",
            weights=(_INCEPTION,),
            build=_pyiqa_set("fid", num_workers=0, verbose=False),
        ),
        _no_reference(
            "niqe", "NIQE", "lower", range="about 2 to 20", decimals=2, min_side=96,
            color="Y, full range", library=_PYIQA, metric_id="niqe", build=_pyiqa("niqe"),
            weights=(_NIQE,),
        ),
        _no_reference(
            "musiq", "MUSIQ", "higher", range="0 to 100", decimals=2, color="RGB", min_side=32,
            library=_PYIQA, metric_id="musiq (KonIQ-10k)", build=_pyiqa("musiq"),
            weights=(_MUSIQ,),
        ),
        _no_reference(
            "maniqa", "MANIQA (KonIQ)", "higher", range="about 0 to 1", decimals=4, color="RGB",
            library=_PYIQA, metric_id="maniqa (KonIQ-10k)", build=_pyiqa("maniqa"),
            weights=(_MANIQA_KONIQ,),
        ),
        _no_reference(
            "maniqa_pipal", "MANIQA (PIPAL)", "higher", range="about 0 to 1", decimals=4,
            color="RGB", library=_PYIQA, metric_id="maniqa-pipal", build=_pyiqa("maniqa-pipal"),
            weights=(_MANIQA_PIPAL,),
        ),
        _no_reference(
            "clipiqa", "CLIP-IQA", "higher", range="0 to 1", decimals=4, color="RGB",
            library=_PYIQA, metric_id="clipiqa (RN50, five prompt pairs)",
            build=_pyiqa("clipiqa"), weights=(_CLIP_RN50,),
        ),
        _no_reference(
            "clipiqa_plus", "CLIP-IQA+", "higher", range="0 to 1", decimals=4, color="RGB",
            library=_PYIQA, metric_id="clipiqa+ (RN50, learned prompts)",
            build=_pyiqa("clipiqa+"),
            weights=(_CLIP_RN50, _CLIPIQA_PLUS),
        ),
        _no_reference(
            "topiq", "TOPIQ", "higher", range="about 0 to 1", decimals=4, color="RGB",
            library=_PYIQA, metric_id="topiq_nr (KonIQ-10k)", build=_pyiqa("topiq_nr"),
            weights=(_TOPIQ,), min_side=32,
        ),
        _no_reference(
            "qalign", "Q-Align", "higher", range="1 to 5", decimals=3, color="RGB",
            library=_PYIQA, metric_id="qalign (OneAlign, quality)", build=_pyiqa("qalign"),
            weights=(_ONE_ALIGN,),
        ),
        _no_reference(
            "sharpness", "Sharpness", "none", range="0 and up", decimals=1, min_side=3,
            color="Y, full range, 8-bit units", library=_OWN, build=_sharpness,
            metric_id="variance of the 3x3 Laplacian; a statistic, not a quality score",
        ),
    )
}
# fmt: on


def select_metrics(names: Iterable[str]) -> list[Metric]:
    """Return the metrics with these names, in order, without duplicates.

    Raises:
        ValueError: A name is unknown.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}; known: {', '.join(sorted(METRICS))}")
    return [METRICS[name] for name in names]


def check_weights(
    names: Iterable[str], *, require: Iterable[str] = (), hub_dir: Path | None = None
) -> dict[str, tuple[Missing, ...]]:
    """Check for the weight files of metrics; call this before any model work.

    Args:
        require: Metrics that must not be n/a.
        hub_dir: Where to look; None is torch's hub folder.

    Returns:
        The missing files of each metric that cannot be computed; empty if all can.

    Raises:
        ValueError: A name is unknown.
        FileNotFoundError: A file of a required metric is missing.
    """
    required = {metric.name for metric in select_metrics(require)}
    chosen = select_metrics([*names, *required])
    missing = {metric.name: tuple(find_missing(metric.weights, hub_dir)) for metric in chosen}
    missing = {name: files for name, files in missing.items() if files}
    lacking = [
        f"{name}: {file}" for name in sorted(required & set(missing)) for file in missing[name]
    ]
    if lacking:
        raise FileNotFoundError("required metrics lack weights: " + "; ".join(lacking))
    return missing


def build_scores(names: Iterable[str], device: str = "cpu") -> dict[str, Score]:
    """Return the score functions of metrics by name; all their weights must be there.

    Raises:
        ValueError: A name is unknown, or is a metric of whole sets.
        FileNotFoundError: Weights are missing; the message names files and sources.
    """
    metrics = select_metrics(names)
    check_weights([], require=[metric.name for metric in metrics])
    for metric in metrics:
        if metric.per_set:
            raise ValueError(f"metric {metric.name!r} measures whole sets, not pictures")
    return {metric.name: metric.build(torch.device(device)) for metric in metrics}
