"""The ladder of what is given up for want of memory, and the restorer on it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from open_supir.diffusion import SamplerSettings
from open_supir.inference import RestoreOptions, Restorer
from open_supir.inference.memory import UNET_WIDEST, fit, is_out_of_memory, step_down
from open_supir.networks import Conditioning
from open_supir.networks.build import build_on_meta
from open_supir.networks.sdxl import sdxl_architecture

IMAGE = torch.rand(3, 150, 200, generator=torch.Generator().manual_seed(0))


def test_ladder_gives_up_exact_things_first_and_ends() -> None:
    options, names = RestoreOptions(), []
    while (lower := step_down(options, native_tile=64)) is not None:
        options, rung = lower
        names.append((rung.name, rung.is_exact))
    assert names == [
        ("sequential_cfg=true", True),
        ("vae_tile=1024", True),
        ("tile=64", False),
        ("tile=32", False),
        ("tile=16", False),
        ("vae_tile=256", True),
        ("offload=true", True),
    ]


def test_tiles_asked_for_are_first_taken_one_by_one() -> None:
    options = RestoreOptions(sampler=SamplerSettings(tile=32, tile_batch=4))
    lower = step_down(options, native_tile=64, has_device=False)
    assert lower is not None and lower[1].name == "tile_batch=1"


def test_out_of_memory_goes_down_the_ladder_and_is_told(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A device that holds one half of guidance only: same result, and the log says how."""
    expected = restorer(IMAGE)
    forward = restorer.network.forward

    def small_device(x, *args, **kwargs):
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(restorer.network, "forward", small_device)
    result = restorer(IMAGE)
    assert [rung.name for rung in result.given_up] == ["sequential_cfg=true"]
    assert result.is_exact and result.options.sampler.sequential_cfg
    assert "out of memory; retrying with sequential_cfg=true" in caplog.text
    torch.testing.assert_close(result.restored, expected.restored, atol=1e-4, rtol=0)


def test_smaller_tiles_are_marked_as_another_result(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = restorer.network.forward

    def tiny_device(x, *args, **kwargs):
        if x.shape[0] * x.shape[-2] * x.shape[-1] > 32 * 32:
            raise torch.OutOfMemoryError("out")
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(restorer.network, "forward", tiny_device)
    result = restorer(IMAGE, caption="a cat")
    assert [r.name for r in result.given_up][-1] == "tile=32" and not result.is_exact


def test_where_nothing_is_left_the_message_says_what_to_do(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_device(*args, **kwargs):
        raise torch.OutOfMemoryError("out")

    monkeypatch.setattr(restorer.network, "forward", no_device)
    with pytest.raises(torch.OutOfMemoryError, match="reduce scale"):
        restorer(IMAGE)


def test_what_counts_as_running_out_of_memory() -> None:
    """torch.OutOfMemoryError is the device's allocator only; pinned memory has another error."""
    pinned = RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later")
    cpu = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
    assert all(map(is_out_of_memory, (pinned, cpu, MemoryError(), torch.OutOfMemoryError("out"))))
    assert not is_out_of_memory(RuntimeError("CUDA error: illegal memory access"))


def test_offloaded_weights_do_not_count_while_others_work(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4096 x 4096 as in `test_estimate_by_hand`, on 18 GB: half of it may be used. The network's
    own weights still count where it samples, but not for the autoencoder.
    """
    monkeypatch.setattr("open_supir.inference.memory._memory", lambda device: int(18e9))
    parts: dict[str, Any] = dict(vae=restorer.vae, network=restorer.network, native_tile=128)
    place = torch.device("cpu")

    def names(**weights: int) -> list[str]:
        given_up = fit(RestoreOptions(), size=(4096, 4096), device=place, **weights, **parts)[1]
        return [rung.name for rung in given_up]

    assert names(weights=int(6.5e9)) == ["vae_tile=1024", "tile=128"]
    assert names(weights=0, sampling_weights=int(6.5e9)) == ["tile=128"]


def test_other_errors_are_not_taken_for_memory(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args, **kwargs):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(restorer.network, "forward", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        restorer(IMAGE)


@pytest.mark.parametrize(
    "gigabytes, names",
    [
        (9.0, []),
        (7.0, ["sequential_cfg=true"]),
        (4.0, ["tile=128"]),
        (0.5, ["vae_tile=1024", "tile=128"]),
    ],
)
def test_estimate_by_hand(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch, gigabytes: float, names: list[str]
) -> None:
    """4096x4096 pixels. Autoencoder: 6 * 8 channels * 4 B a pixel, 3.2 GB. UNet: 31 * 32 channels *
    4 B a latent pixel, 4.2 GB a half of guidance. Of a CPU's memory half may be used.
    """
    monkeypatch.setattr("open_supir.inference.memory._memory", lambda device: int(gigabytes * 2e9))
    _, given_up = fit(
        RestoreOptions(),
        size=(4096, 4096),
        vae=restorer.vae,
        network=restorer.network,
        native_tile=128,
        device=torch.device("cpu"),
    )
    assert [rung.name for rung in given_up] == names


def test_memory_that_runs_out_in_the_autoencoder_is_sought_there() -> None:
    lower = step_down(RestoreOptions(), native_tile=64, in_autoencoder=True)
    assert lower is not None and lower[1].name == "vae_tile=1024"


def test_weights_take_their_share(restorer: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_supir.inference.memory._memory", lambda device: int(18e9))
    parts: dict[str, Any] = dict(vae=restorer.vae, network=restorer.network, native_tile=128)
    place = torch.device("cpu")
    _, given_up = fit(RestoreOptions(), size=(4096, 4096), device=place, weights=int(2e9), **parts)
    assert [rung.name for rung in given_up] == ["sequential_cfg=true"]  # nothing without weights


def _largest(module: torch.nn.Module, run) -> int:
    """Return the number of values of the largest output of any module within."""
    seen = [0]

    def note(part, args, out) -> None:
        seen.append(out.numel() if isinstance(out, torch.Tensor) else 0)

    hooks = [part.register_forward_hook(note) for part in module.modules()]
    run()
    for hook in hooks:
        hook.remove()
    return max(seen)


def test_what_fits_is_asked_at_the_padded_size(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At full size 2881 pixels are worked at as 2912, whose decoder has a tensor beyond 2^31."""
    sizes = []
    monkeypatch.setattr(
        "open_supir.inference.restorer.fit",
        lambda options, *, size, **_: sizes.append(size) or (options, []),
    )
    assert restorer.multiple == 8
    for scale in (1, 2):
        restorer(IMAGE[:, :33, :40], caption="a cat", scale=scale)
    assert sizes == [(40, 40), (72, 80)]


def test_no_tensor_of_whole_images_is_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """At SDXL's size, in the largest image that the ladder leaves whole on a device without end."""
    monkeypatch.setattr("open_supir.inference.memory._memory", lambda device: int(1e15))
    spec = sdxl_architecture()
    vae, network = build_on_meta(spec["vae"]), SimpleNamespace(unet=build_on_meta(spec["unet"]))
    parts = dict(vae=vae, network=network, native_tile=128, device=torch.device("cpu"))

    def given_up(side: int) -> list[str]:
        return [rung.name for rung in fit(RestoreOptions(), size=(side, side), **parts)[1]]

    assert given_up(2880) == [] and given_up(2904) == ["vae_tile=1024"]
    z = torch.empty(1, 4, 360, 360, device="meta")
    assert 2**30 < _largest(vae.decoder, lambda: vae.decode(z)) < 2**31

    assert given_up(7232) == ["vae_tile=1024"]
    assert given_up(7360) == ["vae_tile=1024", "sequential_cfg=true"]
    x, t = torch.empty(2, 4, 64, 64, device="meta"), torch.empty(2, device="meta")
    cond = Conditioning(
        torch.empty(2, 77, 2048, device="meta"), torch.empty(2, 2816, device="meta")
    )
    largest = _largest(network.unet, lambda: network.unet(x, t, cond))
    assert largest == UNET_WIDEST * 320 * 2 * 64 * 64


def test_tiled_autoencoder_gives_the_untiled_result(restorer: Restorer) -> None:
    """Exact recipe: 1e-5 of the latent grows to at most 1e-3 over two steps of random networks."""
    whole = restorer(IMAGE)
    tiled = restorer(IMAGE, vae_tile=64)
    assert tiled.is_exact
    torch.testing.assert_close(tiled.restored, whole.restored, atol=1e-3, rtol=0)


def test_estimated_norms_are_told_and_not_called_exact(restorer: Restorer) -> None:
    exact = restorer(IMAGE, vae_tile=64)
    estimated = restorer(IMAGE, vae_tile=64, vae_tile_norms="estimated")
    assert exact.is_exact and not estimated.is_exact
    said = [result.options.described()["vae_tile_norms"] for result in (exact, estimated)]
    assert said == ["exact", "estimated"]
    assert not torch.equal(estimated.cleaned, exact.cleaned)
