"""No-reference scores for curation: metrics in METRICS, or any pyiqa metric by id."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from open_supir.evaluation.metrics import METRICS, Score, check_weights, create_pyiqa

Scorer = Callable[[Tensor], dict[str, float]]  # (1, 3, H, W) in [0, 1] -> value by metric


def build_scorer(metrics: Sequence[str], device: str = "auto") -> Scorer:
    """Load metrics once; the returned function scores an image with all of them.

    Args:
        metrics: Names in METRICS (src/open_supir/evaluation/metrics.py) or pyiqa ids.
        device: Where they run; `auto` is the GPU if there is one.

    Raises:
        ValueError: A metric is unknown, or needs a reference.
        FileNotFoundError: Weights of a metric are missing; the message names files and sources.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    known = [name for name in metrics if name in METRICS]
    check_weights(known, require=known)
    scores = {name: _build(name, torch.device(device)) for name in metrics}
    return lambda image: {name: score(image, None) for name, score in scores.items()}


def _build(name: str, device: torch.device) -> Score:
    if name in METRICS:
        metric = METRICS[name]
        if metric.needs_reference or metric.per_set:
            raise ValueError(f"metric {name!r} needs a reference; scoring has none")
        return metric.build(device)
    import pyiqa

    if name not in pyiqa.list_models():
        known = ", ".join(sorted(METRICS))
        raise ValueError(f"unknown metric {name!r}; known: {known}, and every pyiqa id")
    if name not in pyiqa.list_models(metric_mode="NR"):
        raise ValueError(f"metric {name!r} needs a reference; scoring has none")
    model = create_pyiqa(name, device)

    @torch.no_grad()
    def score(image: Tensor, reference: Tensor | None) -> float:
        return float(model(image.to(device)).flatten()[0])

    return score
