"""What is done to module, data and trainer before they fit."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from open_supir.networks import AutoencoderKL, Conditioner, UNet
from open_supir.training import fit
from tests.training.modules import batch, supir_module


def test_whole_networks_are_compiled_for_training_shapes_alone(
    unet: UNet, vae: AutoencoderKL, conditioner: Conditioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs captured by validating before, in and after training, against those of a step."""
    for name in ("check_crops", "keep_global_batch"):
        monkeypatch.setattr(fit, name, lambda *_, **__: None)
    compile_networks = fit.compile_networks
    monkeypatch.setattr(
        fit, "compile_networks", lambda *args, **more: compile_networks(*args, **more, backend=note)
    )
    graphs = []

    def note(graph: torch.fx.GraphModule, values: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    module = supir_module(unet, vae, conditioner)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    data: Any = SimpleNamespace(
        precomputed=[], global_batch=2, micro_batch=2, sample_reader=SimpleNamespace(crop_size=32)
    )
    trainer: Any = SimpleNamespace(callbacks=[])
    switches: Any = {"channels_last": False, "checkpointing": "none", "compile": "full"}
    fit.make_ready(module, data, trainer, **switches)

    def validate() -> int:
        before = len(graphs)
        for callback in trainer.callbacks:
            callback.on_validation_start(trainer, module)
        with torch.no_grad():
            module.validation_step(batch(1), 0)
        for callback in trainer.callbacks:
            callback.on_validation_end(trainer, module)
        return len(graphs) - before

    assert validate() == 0
    module.training_step(batch(2), 0)
    captured = len(graphs)
    assert captured > 0 and validate() == 0
    module.training_step(batch(2), 0)
    assert len(graphs) == captured
    torch._dynamo.reset()
