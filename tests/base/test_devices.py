"""Devices and the precision chosen for them; torch says what a machine has."""

import pytest
import torch

from open_supir.base.devices import best_dtype, find_device


def test_auto_is_the_accelerator_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("cuda", "xpu", "mps"):
        found = torch.device(kind)
        monkeypatch.setattr(
            torch.accelerator, "current_accelerator", lambda check_available, found=found: found
        )
        assert find_device("auto") == found
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert find_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "meta", "tpu:0"])
def test_unknown_devices_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=f"device={name}: known are auto, cuda, xpu, mps, cpu"):
        find_device(name)


def test_precision_is_bfloat16_where_the_device_computes_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert best_dtype(torch.device("cpu")) == "float32"
    for has, wanted in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, h=has: h)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor, h=has: h)
        assert best_dtype(torch.device("cuda")) == best_dtype(torch.device("mps")) == wanted
