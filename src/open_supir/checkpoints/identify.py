"""Identify a weight file by its names and shapes alone, so that a wrong file fails in seconds."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from open_supir.checkpoints.files import Checkpoint, Folder, open_checkpoint
from open_supir.checkpoints.keymaps import PARTS, canonical
from open_supir.checkpoints.parts import Contents, our_names, read_contents

# The adaptor's transformer depth on levels that have transformers: SDXL's, then tiny scale's.
CONTROL_DEPTHS: dict[tuple[int, ...], str] = {
    (2, 10): "full",
    (1, 5): "half",
    (1, 4): "third",
    (1, 2): "full",
    (1, 1): "half",
    (1,): "third",
}
TENSORS_AT_FULL_SIZE = {
    "unet": 1680,
    "vae": 248,
    "clip_l": 148,
    "clip_g": 389,
    "robust_encoder": 106,
}

# kohya's and peft's names, diffusers' older ones, LyCORIS
_LORA = re.compile(
    r"lora_(up|down|A|B)\b|\.lora\.(up|down)\.|lora_linear_layer|\.hada_w1|\.lokr_w1|^(lora|lycoris)_"
)
# Scales that a quantised file keeps beside its weights (ComfyUI, torchao, bitsandbytes)
_SCALES = re.compile(r"(^|\.)scaled_fp8$|\.(scale_weight|weight_scale|absmax|quant_map)$")
_TRANSFORMER = re.compile(
    r"(model\.diffusion_model\.)?(double_|single_|joint_|(single_)?transformer_)?blocks\.\d+\."
    r"|model\.diffusion_model\.(layers\.\d+|x_embedder)\."
)
_UNUSABLE = {
    "lora": "a LoRA (low-rank differences, not weights; merge it with weights.loras=[FILE])",
    "sd1": "a Stable Diffusion 1.x checkpoint",
    "sd2": "a Stable Diffusion 2.x checkpoint",
    "refiner": "an SDXL refiner (not the base)",
    "controlnet": "a ControlNet",
    "flux": "a diffusion transformer, such as Flux or SD3 (it has no UNet)",
    "inpainting": "an inpainting or editing model (its UNet takes a second image)",
    "quantised": "a quantised checkpoint (8 or 4 bits, with scales that are not read; use the "
    "float16 or bfloat16 file of the same model, or save it as one in the program that made it)",
    "embedding": "a textual inversion (an embedding of a few tokens)",
}
_USABLE = {
    "sdxl": "an SDXL checkpoint (base or fine-tune)",
    "supir": "SUPIR weights (only the parts SUPIR trains; they need SDXL as well)",
    "supir-full": "a whole SUPIR model, SDXL included",
    "vae": "a VAE alone",
    "diffusers": "a diffusers folder",
    "native": "a checkpoint of this project",
    "unknown": "a file of unknown kind",
}
DESCRIPTIONS = _UNUSABLE | _USABLE

UNKNOWN_CONNECTOR = "unknown"
_JOINT = re.compile(r"^project_modules\.\d+\.")
_SFT = {"param_free_norm", "mlp_shared", "zero_mul", "zero_add", "zero_conv"}
_ATTENTION = {"norm1", "norm2", "attn"}
# Option of conf/connector -> the layers of its joints; the first that holds a file's names applies.
_CONNECTOR_LAYERS: dict[str, set[str]] = {
    "plain": set(),
    "residual": {"weight", "bias"},
    "cross_attention": _ATTENTION,
    "zerosft": _SFT,
    "zerosft_released": _SFT | _ATTENTION,
}


@dataclass(frozen=True, kw_only=True)
class PartInfo:
    """One part of a checkpoint: counts of tensors and numbers, and of tensors by dtype."""

    tensors: int
    numbers: int
    dtypes: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint is."""

    path: Path
    kind: str  # a key of DESCRIPTIONS
    parts: dict[str, PartInfo]  # its parts, in the order of PARTS
    # transformer blocks on the adaptor's levels, highest resolution first; empty without an adaptor
    control_depth: tuple[int, ...]
    connector: str  # its connector, see `connector_kind`; empty without one
    metadata: dict[str, str]  # the file's metadata
    unknown: tuple[str, ...]  # keys of no part
    missing: tuple[str, ...]  # parts needed for restoring that this file lacks

    @property
    def control(self) -> str:
        """Adaptor's depth by name (full, half, third), else as a list; empty without an adaptor."""
        deep = tuple(depth for depth in self.control_depth if depth)
        return CONTROL_DEPTHS.get(deep, str(list(self.control_depth)) if deep else "")

    def __str__(self) -> str:
        lines = [f"{self.path}: {DESCRIPTIONS[self.kind]}"]
        for part, info in self.parts.items():
            dtypes = ", ".join(info.dtypes)
            lines.append(
                f"  {part:<15}{info.tensors:>6} tensors {info.numbers:>15,} numbers  {dtypes}"
            )
            full = TENSORS_AT_FULL_SIZE.get(part)
            if self.kind in ("sdxl", "supir", "supir-full") and full and info.tensors < full:
                lines.append(f"  {'':<15}       (full size has {full})")
        if self.control:
            lines.append(f"  control adaptor's depth: {list(self.control_depth)}, {self.control}")
        if self.connector:
            lines.append(f"  connector: {self.connector}")
        if self.unknown:
            lines.append(f"  {len(self.unknown)} keys of no known part, first: {self.unknown[0]}")
        lines += [f"  {key}: {_short(value)}" for key, value in sorted(self.metadata.items())]
        if self.kind not in _UNUSABLE:
            lines.append(f"  missing for restoring with it: {', '.join(self.missing) or 'nothing'}")
        return "\n".join(lines)


def inspect_checkpoint(path: str | Path, *, key: str = "") -> CheckpointInfo:
    """Identify a weight file or folder from its headers.

    Args:
        path: See `open_checkpoint`.

    Raises:
        FileNotFoundError, ValueError: See `open_checkpoint`; truncated files raise here.
    """
    checkpoint = open_checkpoint(path, key=key)
    contents = read_contents(checkpoint)
    return CheckpointInfo(
        path=checkpoint.path,
        kind=kind_of(checkpoint),
        parts={part: _part_info(contents, part) for part in contents.parts},
        control_depth=transformer_depth(contents.parts.get("control", ())),
        connector=connector_kind(contents.parts["connector"], checkpoint.metadata)
        if "connector" in contents.parts
        else "",
        metadata=dict(checkpoint.metadata),
        unknown=contents.unknown,
        missing=tuple(part for part in PARTS if part not in contents.parts),
    )


def kind_of(checkpoint: Checkpoint) -> str:
    """Return the kind of a checkpoint, a key of DESCRIPTIONS."""
    keys = [canonical(key) for key in checkpoint]
    unusable = _unusable_kind(keys, checkpoint)
    if unusable:
        return unusable
    if isinstance(checkpoint, Folder):
        return "diffusers"
    if checkpoint.metadata.get("layout") == "native":
        return "native"
    names = our_names(checkpoint)
    if any(name is not None and key == name for key, name in names.items()):
        return "native"
    parts = {name.partition(".")[0] for name in names.values() if name is not None}
    trained = parts & {"connector", "control", "robust_encoder"}
    if "unet" in parts:
        return "supir-full" if trained else "sdxl"
    if trained:
        return "supir"
    return "vae" if parts == {"vae"} else "unknown"


def connector_kind(names: Iterable[str], metadata: Mapping[str, str] | None = None) -> str:
    """Return the option of conf/connector with these names; no names mean "plain".

    For a connector from outside the project: the class that the metadata's recipe names, or
    UNKNOWN_CONNECTOR.
    """
    recipe = json.loads((metadata or {}).get("recipe", "null")) or {}
    target = recipe.get("architecture", {}).get("connector", {}).get("_target_", "open_supir.")
    if not target.startswith("open_supir."):
        return target
    layers = {_JOINT.sub("", name).partition(".")[0] for name in names}
    known = (kind for kind, own in _CONNECTOR_LAYERS.items() if layers <= own)
    return next(known, UNKNOWN_CONNECTOR)


def refuse_unusable(checkpoint: Checkpoint, wanted: Iterable[str], *, key: str = "") -> None:
    """Raise ValueError, naming what was found and expected, if no part can load such a file."""
    kind = kind_of(checkpoint)
    if kind in _UNUSABLE:
        slot = f" for {key}" if key else ""
        raise ValueError(
            f"{checkpoint.path}: this is {_UNUSABLE[kind]}; expected{slot} a file with the parts "
            f"{', '.join(wanted)} of {_expected_kind(wanted)}"
        )


def transformer_depth(names: Iterable[str]) -> tuple[int, ...]:
    """Return how many transformer blocks each encoder level of a UNet or adaptor has."""
    depth: Counter[int] = Counter()
    blocks, downs = set(), set()
    for name in names:
        if match := re.match(r"input_blocks\.(\d+)\.(.+)", name):
            block = int(match[1])
            blocks.add(block)
            if match[2].startswith("0.op."):
                downs.add(block)
            elif inner := re.match(r"1\.transformer_blocks\.(\d+)\.", match[2]):
                depth[block] = max(depth[block], int(inner[1]) + 1)
    levels = [0] * (len(downs) + 1) if blocks else []
    for block in blocks:
        level = sum(down < block for down in downs)
        levels[level] = max(levels[level], depth[block])
    return tuple(levels)


def _unusable_kind(keys: list[str], checkpoint: Checkpoint) -> str:
    """Return a key of _UNUSABLE, or "". The UNet decides: keys beside SDXL's are leftovers."""

    def has(*prefixes: str) -> bool:
        return any(key.startswith(prefixes) for key in keys)

    if any(_SCALES.search(key) for key in keys):
        return "quantised"
    unet = _kind_of_unet(keys, checkpoint)
    if unet == "sdxl":
        return ""
    is_lora = 4 * sum(_LORA.search(key) is not None for key in keys) >= len(keys) > 0
    if is_lora and "recipe" not in checkpoint.metadata:  # ours may have LoRA layers of training
        return "lora"
    if keys and set(keys) <= {"clip_l", "clip_g", "emb_params"}:
        return "embedding"
    if has("conditioner.embedders.0.model."):
        return "refiner"
    if has("cond_stage_model.") and (unet or not has("model.", "first_stage_model.")):
        return "sd2" if has("cond_stage_model.model.") else "sd1"
    if not unet and any(_TRANSFORMER.match(key) for key in keys):
        return "flux"
    if has(
        "controlnet_cond_embedding.", "controlnet_down_blocks.", "model.control_model.zero_convs."
    ):
        return "controlnet"
    return unet


def _kind_of_unet(keys: list[str], checkpoint: Checkpoint) -> str:
    """Recognise a UNet by shapes alone: "sdxl" for any that may be SDXL's, "" without one."""
    by_name = dict(zip(keys, checkpoint, strict=True))

    def shape(*names: str) -> tuple[int, ...] | None:
        return next((checkpoint.spec(by_name[n]).shape for n in names if n in by_name), None)

    unet = "model.diffusion_model."
    stem = shape(f"{unet}input_blocks.0.0.weight", "unet/conv_in.weight")
    labels = shape(f"{unet}label_emb.0.0.weight", "unet/add_embedding.linear_1.weight")
    if stem is None:
        return ""
    if stem[0] == 384:
        return "refiner"
    attention = "1.transformer_blocks.0.attn2.to_k.weight"
    context = shape(
        f"{unet}input_blocks.1.{attention}",  # SDXL has no transformer there
        "unet/down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    )
    if labels is None or (context is not None and context[1] == 1024):  # SD 2 has unCLIP's labels
        return "sd2" if context is not None and context[1] == 1024 else "sd1"
    takes_more = stem[1] == 9 or (stem[0] == 320 and stem[1] == 8)  # SDXL's width
    return "inpainting" if takes_more else "sdxl"


def _expected_kind(wanted: Iterable[str]) -> str:
    trained = {"connector", "control", "robust_encoder"}
    if {"unet", "control"} <= set(wanted):
        return "SDXL or SUPIR"
    return "SUPIR-v0Q/v0F" if set(wanted) & trained else "SDXL base or a fine-tune of it"


def _part_info(contents: Contents, part: str) -> PartInfo:
    tensors = contents.parts[part]
    specs = [tensors.spec(name) for name in tensors]
    dtypes = Counter(str(spec.dtype).removeprefix("torch.") for spec in specs)
    numbers = sum(_product(spec.shape) for spec in specs)
    return PartInfo(tensors=len(specs), numbers=numbers, dtypes=dict(dtypes.most_common()))


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:120]}... ({len(text)} characters)"


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product
