"""Restoring compiled, or in another memory layout, gives what plain restoring gives."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from open_supir.base.places import SHIPPED_MODEL
from open_supir.inference import Restorer
from open_supir.inference.model import Model
from open_supir.networks.switches import compile_networks

SIZES = ((32, 32), (48, 32))  # a second size compiles again
ROUNDING = 1e-4  # float32 sums in another order, over all steps; a fortieth of a level


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def photo(size: tuple[int, int]) -> torch.Tensor:
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(0))


def test_traced_restoring_gives_the_same_images() -> None:
    """The graphs that are captured, run without the compiler's code."""
    restorer = Restorer.from_checkpoint(SHIPPED_MODEL)
    eager = [restorer(photo(size), caption="a wall").restored for size in SIZES]
    assert compile_networks(restorer.network, "regional", backend="aot_eager") > 0
    for size, expected in zip(SIZES, eager, strict=True):
        images = restorer(photo(size), caption="a wall").restored
        torch.testing.assert_close(images, expected, rtol=0, atol=ROUNDING)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_restoring_in_channels_last_gives_the_same_images(tmp_path: Path) -> None:
    made = []
    for is_last in (False, True):
        model = Model.find(None, runs_dir=tmp_path, channels_last=is_last, weights={})
        restorer = model.load(model.options({}, {}), device=torch.device("cpu"))
        weight = restorer.vae.decoder.conv_in.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == is_last
        made.append(restorer(photo(SIZES[1]), caption="a wall").restored)
    torch.testing.assert_close(*made, rtol=0, atol=ROUNDING)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
def test_compiled_restoring_gives_the_same_images(tmp_path: Path) -> None:
    made = []
    for mode in ("off", "regional"):
        model = Model.find(None, runs_dir=tmp_path, compile=mode, weights={})
        restorer = model.load(model.options({}, {}), device=torch.device("cpu"))
        made.append([restorer(photo(size), caption="a wall").restored for size in SIZES])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for eager, compiled in zip(*made, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quantize": "int4"}, "unknown quantize 'int4'; known: int8, fp8"),
        ({"compile": True}, "unknown compile True; known: off, regional, full"),
    ],
)
def test_unknown_settings_are_refused_before_weights_are_loaded(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Model.find(SHIPPED_MODEL, runs_dir="runs", weights={}, **settings)


def test_quantize_without_its_library_is_refused_before_weights_are_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="quantize=int8 needs torchao; install with"):
        Model.find(SHIPPED_MODEL, runs_dir="runs", weights={}, quantize="int8")
