"""The parameters of a degraded batch: one number a quantity and sample, readable and replayable.

Shapes: B batch; every tensor is (B,), on the CPU.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from src.degradation.config import MODES
from src.degradation.counter_rng import derive
from src.degradation.jpeg import CODECS
from src.degradation.kernels import KINDS, make_kernels

NOISES = ("none", "gaussian", "poisson")
BACKS = ("none", *MODES)
# Integers that rows spell out.
NAMES = {"kind": KINDS, "mode": MODES, "noise": NOISES, "back": BACKS}
NO_JPEG = 0.0  # quality of samples that are not compressed
Row = dict[str, Any]


class _Fields:
    """What the nested parameter classes share."""

    def columns(self) -> dict[str, Any]:
        """Return nested dicts of Python lists."""
        return {
            field.name: value.columns() if isinstance(value, _Fields) else value.tolist()
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            for value in [getattr(self, field.name)]
        }


@dataclass(frozen=True, kw_only=True)
class KernelParams(_Fields):
    """Arguments of `kernels.make_kernels`."""

    kind: Tensor
    side: Tensor
    sigma_x: Tensor
    sigma_y: Tensor
    theta: Tensor
    beta: Tensor
    cutoff: Tensor

    def kernels(self) -> Tensor:
        """Return (B, K, K) float32."""
        return make_kernels(
            self.kind, self.side, self.sigma_x, self.sigma_y, self.theta, self.beta, self.cutoff
        )


@dataclass(frozen=True, kw_only=True)
class StageParams(_Fields):
    """Blur, resize to (height, width), noise and JPEG of one stage.

    `mode` indexes `MODES`, `noise` indexes `NOISES`; `quality` 0 means no compression. `strength`
    is the Gaussian's sigma in [0, 255] units or the Poisson factor.
    """

    kernel: KernelParams
    height: Tensor
    width: Tensor
    scale: Tensor
    mode: Tensor
    noise: Tensor
    strength: Tensor
    gray: Tensor
    quality: Tensor


@dataclass(frozen=True, kw_only=True)
class DegradationParams(_Fields):
    """Everything that decides how a batch is degraded; together with HQ it determines LQ.

    `height`, `width` and `mode` belong to the final resize, `sinc` to the final filter,
    `jpeg_last` to the order: resize and filter before the second JPEG, or after it. `back` indexes
    `BACKS`; "none" leaves LQ small.
    """

    seed: Tensor
    hq_height: Tensor
    hq_width: Tensor
    first: StageParams
    second: StageParams
    sinc: KernelParams
    height: Tensor
    width: Tensor
    mode: Tensor
    jpeg_last: Tensor
    back: Tensor
    identity: Tensor

    def __len__(self) -> int:
        return len(self.seed)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the images' device needs.

        Returns:
            (3, B, K, K) kernels of both blurs and the final sinc, (2, B) int64 noise keys of both
            stages, and (2, B) float32 noise strengths.
        """
        kernels = torch.stack(
            [p.kernels() for p in (self.first.kernel, self.second.kernel, self.sinc)]
        )
        keys = torch.stack([derive(self.seed, stream) for stream in (1, 2)])
        return kernels, keys, torch.stack([self.first.strength, self.second.strength]).float()

    def jpeg_tables(self, codec: str) -> Tensor:
        """Return (2, B, 2, 64) quantisation tables of both stages."""
        make, _ = CODECS[codec]
        qualities = (self.first.quality, self.second.quality)
        return torch.stack([make(quality.float().clamp_min(1)) for quality in qualities])

    def rows(self) -> list[Row]:
        """Return one plain, readable dict a sample; `from_rows` is the inverse, exactly."""
        columns = self.columns()
        return [_row(columns, i) for i in range(len(self))]

    def summaries(self) -> list[str]:
        """Return one line a sample, to stand beside pictures."""
        return [_summary(row) for row in self.rows()]

    @classmethod
    def from_rows(cls, rows: list[Row]) -> "DegradationParams":
        """Rebuild parameters from what `rows` returned, also after a way through JSON."""
        return _from_rows(cls, rows)


def _row(columns: dict[str, Any], index: int) -> Row:
    row: Row = {}
    for name, values in columns.items():
        if isinstance(values, dict):
            row[name] = _row(values, index)
        else:
            row[name] = NAMES[name][values[index]] if name in NAMES else values[index]
    return row


def _from_rows(cls: type, rows: list[Row]) -> Any:
    fields = {}
    for field in dataclasses.fields(cls):
        values = [row[field.name] for row in rows]
        if field.name in PARTS:
            fields[field.name] = _from_rows(PARTS[field.name], values)
        elif field.name in NAMES:
            fields[field.name] = torch.tensor([NAMES[field.name].index(v) for v in values])
        else:
            wide = torch.float64 if isinstance(values[0], float) else None
            fields[field.name] = torch.tensor(values, dtype=wide)
    return cls(**fields)


PARTS: dict[str, type] = {
    "first": StageParams,
    "second": StageParams,
    "kernel": KernelParams,
    "sinc": KernelParams,
}


def _summary(row: Row) -> str:
    if row["identity"]:
        return "identity"
    parts = [_stage_summary(row["first"]), _stage_summary(row["second"])]
    sinc = f"sinc {row['sinc']['side']} " if row["sinc"]["kind"] != "none" else ""
    parts.append(f"{row['mode']} {row['width']}x{row['height']} {sinc}")
    return " | ".join(part.strip() for part in parts)


def _stage_summary(stage: Row) -> str:
    kernel = stage["kernel"]
    words = [] if kernel["kind"] == "none" else [kernel["kind"], f"{kernel['side']}"]
    if kernel["kind"] not in ("none", "sinc"):
        words.append(f"s{kernel['sigma_x']:.1f}")
    words.append(f"{stage['mode']} {stage['width']}x{stage['height']}")
    if stage["noise"] != "none":
        words.append(f"{'gray ' * stage['gray']}{stage['noise']} {stage['strength']:.2g}")
    if stage["quality"] != NO_JPEG:
        words.append(f"jpeg {stage['quality']:.0f}")
    return " ".join(words)
