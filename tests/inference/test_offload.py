"""Offload: parts wait on the host and visit the device, one at a time."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from open_supir.inference import Restorer, offload
from open_supir.inference import restorer as module
from open_supir.inference.offload import park, visiting
from open_supir.rehearsal.meter import Meter

IMAGE = torch.rand(3, 150, 200, generator=torch.Generator().manual_seed(0))
PARTS = ("conditioner", "vae", "robust_encoder", "network")
CPU = torch.device("cpu")


def _tensors(part: nn.Module) -> list[Tensor]:
    return [*part.parameters(), *part.buffers()]


_copied = offload._copied


def _really_copied(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy from a CPU to itself."""
    clone = tensor.detach().clone()
    is_parameter = isinstance(tensor, nn.Parameter)
    return _copied(nn.Parameter(clone) if is_parameter else clone, device)


def _on_gpu(restorer: Restorer, **changes: Any) -> Restorer:
    """Return a restorer of the same networks on the pretended GPU, made inside `measuring`."""
    return Restorer(
        restorer.network, restorer.denoiser, restorer.conditioner, restorer.vae,
        restorer.robust_encoder, options=restorer.options, device="cuda", **changes,
    )  # fmt: skip


def test_one_part_at_a_time_is_on_the_device(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, names = [], {id(getattr(restorer, name)): name for name in PARTS}
    at_work = [0]

    @contextmanager
    def noted(part: nn.Module, device: torch.device) -> Iterator[None]:
        order.append(names[id(part)])
        at_work.append(at_work[-1] + 1)
        with visiting(part, device):
            yield
        at_work.append(at_work[-1] - 1)

    monkeypatch.setattr(module, "visiting", noted)
    restorer(IMAGE, offload=True, sampler=dataclasses.replace(restorer.options.sampler, tau=4.0))
    assert order == ["robust_encoder", "vae", "conditioner", "vae", "network", "vae"]
    assert max(at_work) == 1


def test_weights_go_to_the_device_and_never_back(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rounds on a pretended GPU. What is read from it is the result, and tiles' pictures."""
    size = sum(
        t.numel() * t.element_size() for name in PARTS for t in _tensors(getattr(restorer, name))
    )
    monkeypatch.setattr("open_supir.inference.memory._memory", lambda device: 10**12)
    meter = Meter("other")
    with meter.measuring(backward=False), torch.no_grad():
        gpu = _on_gpu(restorer, offload=True)
        with meter.inside("all"):
            for _ in range(2):
                gpu(IMAGE, caption="a cat")
            gpu.clean(IMAGE[None])
            gpu.preview(torch.zeros(1, 4, 8, 8, device="cuda"))
        left, phase = meter.now, meter.phases["all"]
    reads = [place for place in phase.waits if place.startswith("copy to the host")]
    assert reads and all("offload" not in place and "PyTorch" not in place for place in reads)
    copied = sum(len(_tensors(getattr(restorer, name))) for name in PARTS)
    assert phase.copies["pinned"] >= 2 * copied
    assert left < 0.1 * size and phase.peak < 2 * size  # prompts are kept


def test_preview_leaves_parts_where_they_are(restorer: Restorer) -> None:
    """The device of a part is cuda:0, not equal to the cuda that was asked for."""
    with Meter("other").measuring(backward=False), torch.no_grad():
        gpu = _on_gpu(restorer)
        gpu.preview(torch.zeros(1, 4, 8, 8, device="cuda"))
        assert {t.device.type for t in _tensors(gpu.vae)} == {"cuda"}


def test_offload_gives_the_same_and_leaves_the_weights(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies that are changed after use: what stays are the tensors that were there."""
    expected = restorer(IMAGE, caption="a cat").restored
    before = [
        (t, t.data_ptr(), t.clone()) for name in PARTS for t in _tensors(getattr(restorer, name))
    ]
    copies = []

    def cloned(tensor: Tensor, device: torch.device) -> Tensor:
        copies.append(_really_copied(tensor, device))
        return copies[-1]

    monkeypatch.setattr(offload, "_copied", cloned)
    for _ in range(2):
        assert torch.equal(restorer(IMAGE, caption="a cat", offload=True).restored, expected)
        for copy in copies:
            copy.data.zero_()
    assert copies
    after = [t for name in PARTS for t in _tensors(getattr(restorer, name))]
    for (tensor, place, values), now in zip(before, after, strict=True):
        assert now is tensor and now.data_ptr() == place and torch.equal(now, values)


def test_tied_weights_are_copied_once_and_stay_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    part = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    part[1].weight = part[0].weight
    names, seen = list(part.state_dict()), []
    monkeypatch.setattr(
        offload, "_copied", lambda t, device: seen.append(t) or _really_copied(t, device)
    )
    own = part[0].weight
    with visiting(part, CPU):
        assert part[0].weight is part[1].weight is not own
        assert list(part.state_dict()) == names
    assert part[0].weight is part[1].weight is own
    assert len(seen) == 8  # one weight and two biases; five of the norm


def test_weights_that_do_not_fit_leave_the_part_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    part = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    own = list(part.parameters())

    def small(tensor: Tensor, device: torch.device) -> Tensor:
        if tensor is own[-1]:
            raise torch.OutOfMemoryError("out")
        return _really_copied(tensor, device)

    monkeypatch.setattr(offload, "_copied", small)
    with pytest.raises(torch.OutOfMemoryError), visiting(part, CPU):
        pass
    assert all(now is before for now, before in zip(part.parameters(), own, strict=True))


def test_what_cannot_be_pinned_stays_in_ordinary_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(tensor: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: out of memory\nmore")

    monkeypatch.setattr(Tensor, "pin_memory", refuse)
    park(nn.Linear(2, 2), torch.device("cuda"))
    assert "slower to copy: CUDA error: out of memory" in caplog.text


def test_compiled_parts_are_not_compiled_again_for_their_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guards are on shapes and places, not on the tensors themselves."""
    monkeypatch.setattr(offload, "_copied", _really_copied)
    torch._dynamo.reset()
    part, graphs = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval(), []
    part.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for _ in range(3):
        with visiting(part, CPU), torch.no_grad():
            part(torch.ones(2, 2))
    torch._dynamo.reset()
    assert len(graphs) == 1
