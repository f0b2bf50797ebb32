"""One copy carries everything, and brings it back as it was."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from open_supir.base.upload import pack, unpack, upload
from open_supir.degradation.canvas_tables import make_layout, make_tables

from .samples import config, preset


def tables() -> dict[str, torch.Tensor]:
    ranges, size = config("supir_q"), (40, 64)
    params = preset("supir_q").draw(torch.arange(3), size=size)
    return make_tables(params, ranges, make_layout(ranges, size))


def test_packed_tensors_come_back_exactly() -> None:
    """Of every dtype that occurs: integers, floats, flags."""
    tensors = tables() | {"none": torch.empty(0, 4), "number": torch.tensor(2.5)}
    again = unpack(*pack(tensors, pinned=False))
    assert {value.dtype for value in again.values()} >= {torch.int64, torch.float32, torch.bool}
    assert list(again) == list(tensors)
    for name, value in tensors.items():
        assert torch.equal(again[name], value) and again[name].dtype == value.dtype


class _Copies(TorchDispatchMode):
    """How many operators brought something to the meta device, which stands for any other."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count += func.overloadpacket.__name__ == "_to_copy" and result.is_meta
        return result


def test_upload_is_one_copy() -> None:
    tensors = tables()
    with _Copies() as copies:
        there = upload(tensors, torch.device("meta"))
    assert copies.count == 1
    assert {name: value.shape for name, value in there.items()} == {
        name: value.shape for name, value in tensors.items()
    }


def test_upload_to_the_cpu_copies_nothing() -> None:
    tensors = tables()
    assert upload(tensors, torch.device("cpu")) is tensors
