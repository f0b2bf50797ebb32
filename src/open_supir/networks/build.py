"""Build networks without memory, which loading the weights provides."""

from collections.abc import Mapping
from typing import Any

import torch

from open_supir.base.registry import build


def build_on_meta(spec: Mapping[str, Any]) -> Any:
    """Build `spec` on the meta device; see `build`."""
    with torch.device("meta"):
        return build(spec)
