"""Write `.safetensors` files tensor by tensor, atomically.

The safetensors library needs all tensors at once; here they are read, written and released one by
one, so converting a file needs the memory of its largest tensor. The format: 8 bytes of header
length, a JSON header, the tensors' bytes.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from open_supir.base.dtypes import is_finite
from open_supir.base.files import replacing
from open_supir.checkpoints.files import SAFETENSORS_DTYPES, TensorSpec

_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, tuple[TensorSpec, Callable[[], Tensor]]],
    metadata: Mapping[str, str],
) -> None:
    """Write tensors under their names; the file appears at `path` complete or not at all.

    Args:
        tensors: By name, shape and dtype in the file, and a function that returns the tensor.
        metadata: The file's metadata; `format: pt` is added if absent.

    Raises:
        ValueError: A metadata value is not a string, the format has no such dtype, or a value is
            too large for its dtype.
    """
    wrong = [key for key, value in metadata.items() if not isinstance(value, str)]
    if wrong:
        raise ValueError(f"metadata values must be strings, {wrong[0]!r} is {metadata[wrong[0]]!r}")
    # widest types first, as in the library, keeps every tensor aligned
    order = sorted(tensors, key=lambda name: (-tensors[name][0].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name in order:
        shape, dtype = tensors[name][0]
        if dtype not in _NAMES:
            raise ValueError(f"{name}: safetensors files cannot hold {dtype}")
        end = offset + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in order:
            (shape, dtype), read = tensors[name]
            held = read().detach()
            tensor = held.to(device="cpu", dtype=dtype).contiguous()
            if is_finite(held) and not is_finite(tensor):
                raise ValueError(f"{name} does not fit into {dtype}; keep it wider: dtype=bfloat16")
            assert tuple(tensor.shape) == tuple(shape), (name, tensor.shape, shape)
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
