"""Parameters of a degraded batch: one number per quantity and sample, readable and replayable.

Shapes: B batch; every tensor is (B,), on the CPU.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from open_supir.degradation.config import MODES
from open_supir.degradation.counter_rng import derive
from open_supir.degradation.jpeg import CODECS
from open_supir.degradation.kernels import KINDS, NONE, SINC, make_kernels

NOISES = ("none", "gaussian", "poisson")
BACKS = ("none", *MODES)
# Names that rows use in place of integers.
NAMES = {"kind": KINDS, "mode": MODES, "noise": NOISES, "back": BACKS}
NO_JPEG = 0.0  # quality of samples that are not compressed
Row = dict[str, Any]


class _Fields:
    """Base of the nested parameter classes."""

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
    is the Gaussian sigma in [0, 255] units or the Poisson factor.
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

    def numbers(self) -> dict[str, Tensor]:
        """Return drawn numbers by name, each only for the samples it affects."""
        kernel, kind = self.kernel, self.kernel.kind
        return {
            "side": kernel.side[kind != NONE],
            "sigma": kernel.sigma_x[kind < SINC],
            "beta": kernel.beta[(kind >= 2) & (kind < SINC)],
            "cutoff": kernel.cutoff[kind == SINC],
            "scale": self.scale,
            "gaussian": self.strength[self.noise == 1],
            "poisson": self.strength[self.noise == 2],
            "quality": self.quality[self.quality != NO_JPEG],
        }


@dataclass(frozen=True, kw_only=True)
class DegradationParams(_Fields):
    """Everything that decides how a batch is degraded; together with HQ it determines LQ.

    `height`, `width` and `mode` belong to the final resize, `sinc` to the final filter; with
    `jpeg_last` both precede the second JPEG, else they follow it. `back` indexes `BACKS`; "none"
    leaves LQ small.
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
        """Return the tensors that the images' device needs.

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

    def numbers(self) -> dict[str, Tensor]:
        """Return drawn numbers by name, each only for the samples it affects."""
        sinc = self.sinc.kind == SINC
        numbers = {"sinc.side": self.sinc.side[sinc], "sinc.cutoff": self.sinc.cutoff[sinc]}
        for name, stage in (("first", self.first), ("second", self.second)):
            numbers |= {f"{name}.{key}": value for key, value in stage.numbers().items()}
        return numbers

    def shares(self) -> dict[str, dict[str, float]]:
        """Return the share of samples by choice: {"first.mode": {"area": .3, ...}, ...}."""
        choices = {
            "first.kernel": (self.first.kernel.kind, KINDS),
            "first.mode": (self.first.mode, MODES),
            "first.noise": (self.first.noise, NOISES),
            "second.kernel": (self.second.kernel.kind, KINDS),
            "second.mode": (self.second.mode, MODES),
            "second.noise": (self.second.noise, NOISES),
            "sinc": (self.sinc.kind, KINDS),
            "mode": (self.mode, MODES),
            "jpeg_last": (self.jpeg_last, ("no", "yes")),
            "identity": (self.identity, ("no", "yes")),
        }
        return {
            name: {
                option: share
                for i, option in enumerate(options)
                if (share := (choice == i).double().mean().item()) > 0
            }
            for name, (choice, options) in choices.items()
        }

    def rows(self) -> list[Row]:
        """Return one plain, readable dict per sample; `from_rows` is the exact inverse."""
        columns = self.columns()
        return [_row(columns, i) for i in range(len(self))]

    def summaries(self) -> list[str]:
        """Return one line per sample, for display beside pictures."""
        return [_summary(row) for row in self.rows()]

    @classmethod
    def from_rows(cls, rows: list[Row]) -> "DegradationParams":
        """Rebuild parameters from the result of `rows`, also after a round trip through JSON."""
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
    """Spell out, in the order of application, what happens to a sample."""
    if row["identity"]:
        return "identity"
    first, second = row["first"], row["second"]
    parts = [*_stage_words(first), *_jpeg_words(first), "|", *_stage_words(second)]
    final = [row["mode"], f"{row['width']}x{row['height']}"]
    if row["sinc"]["kind"] != "none":
        final += ["sinc", str(row["sinc"]["side"])]
    jpeg = _jpeg_words(second)
    parts += ["|", *final, *jpeg] if row["jpeg_last"] else [*jpeg, "|", *final]
    return " ".join(parts)


def _stage_words(stage: Row) -> list[str]:
    kernel = stage["kernel"]
    words = [] if kernel["kind"] == "none" else [kernel["kind"], f"{kernel['side']}"]
    if kernel["kind"] not in ("none", "sinc"):
        words.append(f"s{kernel['sigma_x']:.1f}")
    words += [stage["mode"], f"{stage['width']}x{stage['height']}"]
    if stage["noise"] != "none":
        words.append(f"{'gray ' * stage['gray']}{stage['noise']} {stage['strength']:.2g}")
    return words


def _jpeg_words(stage: Row) -> list[str]:
    return [] if stage["quality"] == NO_JPEG else [f"jpeg {stage['quality']:.0f}"]
