"""Names of tensors: diffusers folders <-> our modules, as pure functions of strings.

A diffusers name is `folder/key`: `unet/conv_in.weight` is the tensor `conv_in.weight` of the folder
`unet`. The two layouts count blocks differently (LDM: one flat list; diffusers: one list per
level), so the map needs the number of blocks per level: `UNetShape`, SDXL's by default. diffusers
has no place for adaptor, connector and robust encoder: they go to folders of our own, with names in
the same style.

Source: the public conversion of SDXL between the two layouts, as far as the files show it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from open_supir.checkpoints.keymaps import hf_to_open_clip, open_clip_to_hf, text_pieces

FOLDERS = {
    "unet": "unet",
    "vae": "vae",
    "text_encoder": "clip_l",
    "text_encoder_2": "clip_g",
    "controlnet": "control",
    "connector": "connector",
    "robust_encoder": "robust_encoder",
}
_FOLDER_OF = {part: folder for folder, part in FOLDERS.items()}

_EMBEDDINGS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_RES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
_OLD_VAE_ATTENTION = {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}
_MIDDLE = ("resnets.0", "attentions.0", "resnets.1")


def _inverse(table: dict[str, str]) -> dict[str, str]:
    return {value: key for key, value in table.items()}


_FROM_EMBEDDINGS = _inverse(_EMBEDDINGS)
_FROM_RES = _inverse(_RES)
_FROM_VAE_ATTENTION = _inverse(_VAE_ATTENTION) | _OLD_VAE_ATTENTION


@dataclass(frozen=True, kw_only=True)
class UNetShape:
    """What the block numbers of a UNet and a VAE mean."""

    res_blocks: int = 2  # residual blocks per encoder level
    # for each level, highest resolution first, whether it holds transformers
    attention: tuple[bool, ...] = (False, True, True)
    vae_levels: int = 4  # resolution levels of the VAE

    @classmethod
    def of(cls, names: Iterable[str]) -> "UNetShape":
        """Infer the shape from our names (`unet.…`, `control.…`, `vae.…`) of a whole model."""
        inputs: dict[int, set[str]] = {}
        vae_levels = 0
        for name in names:
            if match := re.match(r"(?:unet|control)\.input_blocks\.(\d+)\.([\w.]+)", name):
                inputs.setdefault(int(match[1]), set()).add(match[2])
            elif match := re.match(r"vae\.decoder\.up\.(\d+)\.", name):
                vae_levels = max(vae_levels, int(match[1]) + 1)
        default = cls()
        vae_levels = vae_levels or default.vae_levels
        if not inputs:
            return cls(vae_levels=vae_levels)
        downs = [n for n, inner in inputs.items() if "0.op.weight" in inner]
        group = min(downs) if downs else max(inputs) + 1  # blocks per level, with downsampler
        attention = tuple(
            "1.proj_in.weight" in inputs[first] for first in range(1, max(inputs) + 1, group)
        )
        return cls(res_blocks=group - 1, attention=attention, vae_levels=vae_levels)

    @classmethod
    def of_diffusers(cls, keys: Iterable[str]) -> "UNetShape":
        """Infer the shape from the names (`unet/…`, `vae/…`) of a diffusers folder."""
        resnets, levels, attention, vae_levels = 0, 0, set(), 0
        for key in keys:
            if match := re.match(r"(?:unet|controlnet)/down_blocks\.(\d+)\.(\w+)\.(\d+)\.", key):
                level = int(match[1])
                levels = max(levels, level + 1)
                if match[2] == "resnets":
                    resnets = max(resnets, int(match[3]) + 1)
                elif match[2] == "attentions":
                    attention.add(level)
            elif match := re.match(r"vae/decoder\.up_blocks\.(\d+)\.", key):
                vae_levels = max(vae_levels, int(match[1]) + 1)
        default = cls()
        vae_levels = vae_levels or default.vae_levels
        if not levels:
            return cls(vae_levels=vae_levels)
        flags = tuple(level in attention for level in range(levels))
        return cls(res_blocks=resnets, attention=flags, vae_levels=vae_levels)


SDXL_SHAPE = UNetShape()


def to_diffusers(name: str, shape: UNetShape = SDXL_SHAPE) -> str:
    """Return `folder/key` for our marked name `part.name`.

    Raises:
        KeyError: The tensor has no name in diffusers' layout.
    """
    part, _, inner = name.partition(".")
    if part not in _FOLDER_OF:
        raise KeyError(f"{name!r} belongs to no part; parts are {', '.join(_FOLDER_OF)}")
    if part in ("clip_l", "clip_g"):
        inner = open_clip_to_hf(inner)
    elif part in ("vae", "robust_encoder"):
        inner = _vae_to_diffusers(inner, shape)
    elif part != "connector":
        inner = _unet_to_diffusers(inner, shape)
    return f"{_FOLDER_OF[part]}/{inner}"


def from_diffusers(key: str, shape: UNetShape = SDXL_SHAPE) -> str | None:
    """Return our marked name for `folder/key`, None for keys of no part; inverts `to_diffusers`."""
    folder, _, inner = key.partition("/")
    part = FOLDERS.get(folder)
    if part is None:
        return None
    if part in ("clip_l", "clip_g"):
        name = hf_to_open_clip(inner)
    elif part in ("vae", "robust_encoder"):
        name = _vae_from_diffusers(inner, shape)
    elif part == "connector":
        name = inner
    else:
        name = _unet_from_diffusers(inner, shape)
    return None if name is None else f"{part}.{name}"


def diffusers_pieces(name: str) -> tuple[str, ...]:
    """Return the marked names under which a diffusers folder stores our tensor `part.name`."""
    if name.startswith(("clip_l.", "clip_g.")):
        return text_pieces(name)
    is_vae = name.startswith(("vae.", "robust_encoder."))
    if is_vae and re.search(r"\.attn_1\.(q|k|v|proj_out)\.weight$", name):
        return (f"{name}:linear",)
    return (name,)


def _unet_to_diffusers(name: str, shape: UNetShape) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _EMBEDDINGS:
        return f"{_EMBEDDINGS[stem]}.{kind}"
    if match := re.fullmatch(r"middle_block\.([012])\.(.+)", name):
        return f"mid_block.{_MIDDLE[int(match[1])]}.{_res_to_diffusers(match[2])}"
    if not (match := re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)", name)):
        return name  # `input_hint_block` and other names that only we have
    group, side = shape.res_blocks + 1, match[1]
    level, position = divmod(int(match[2]) - (side == "input"), group)
    prefix = f"{'down' if side == 'input' else 'up'}_blocks.{level}"
    inner = match[4]
    if inner.startswith("op."):
        return f"{prefix}.downsamplers.0.conv.{kind}"
    if side == "output" and inner in ("conv.weight", "conv.bias"):
        return f"{prefix}.upsamplers.0.{inner}"
    if match[3] == "0":
        return f"{prefix}.resnets.{position}.{_res_to_diffusers(inner)}"
    return f"{prefix}.attentions.{position}.{inner}"


def _unet_from_diffusers(key: str, shape: UNetShape) -> str | None:
    stem, _, kind = key.rpartition(".")
    if stem in _FROM_EMBEDDINGS:
        return f"{_FROM_EMBEDDINGS[stem]}.{kind}"
    if match := re.fullmatch(r"mid_block\.(\w+)\.(\d+)\.(.+)", key):
        place = f"{match[1]}.{match[2]}"
        if place not in _MIDDLE:
            return None
        return f"middle_block.{_MIDDLE.index(place)}.{_res_from_diffusers(match[3])}"
    if not (match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", key)):
        return key if key.startswith("input_hint_block.") else None
    group, side, level = shape.res_blocks + 1, match[1], int(match[2])
    what, position, inner = match[3], int(match[4]), match[5]
    first = level * group + (side == "down")
    blocks = "input_blocks" if side == "down" else "output_blocks"
    if what == "downsamplers":
        return f"{blocks}.{first + shape.res_blocks}.0.op.{kind}"
    if what == "upsamplers":
        # the upsampler follows the residual block and, where the level has them, the transformer
        index = 2 if shape.attention[len(shape.attention) - 1 - level] else 1
        return f"{blocks}.{first + shape.res_blocks}.{index}.{inner}"
    if what == "resnets":
        return f"{blocks}.{first + position}.0.{_res_from_diffusers(inner)}"
    return f"{blocks}.{first + position}.1.{inner}" if what == "attentions" else None


def _res_to_diffusers(inner: str) -> str:
    stem, _, kind = inner.rpartition(".")
    return f"{_RES[stem]}.{kind}" if stem in _RES else inner  # transformers keep their names


def _res_from_diffusers(inner: str) -> str:
    stem, _, kind = inner.rpartition(".")
    return f"{_FROM_RES[stem]}.{kind}" if stem in _FROM_RES else inner


def _vae_to_diffusers(name: str, shape: UNetShape) -> str:
    name = name.partition(":")[0].replace("norm_out.", "conv_norm_out.")
    name = name.replace("nin_shortcut", "conv_shortcut")
    name = re.sub(r"\.mid\.block_([12])\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", name)
    name = re.sub(
        r"\.mid\.attn_1\.(\w+)\.",
        lambda m: f".mid_block.attentions.0.{_VAE_ATTENTION[m[1]]}.",
        name,
    )
    name = re.sub(r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets.", name)
    name = re.sub(r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0.", name)
    top = shape.vae_levels - 1  # diffusers counts decoder levels in the order they run
    name = re.sub(r"\.up\.(\d+)\.block\.", lambda m: f".up_blocks.{top - int(m[1])}.resnets.", name)
    return re.sub(
        r"\.up\.(\d+)\.upsample\.",
        lambda m: f".up_blocks.{top - int(m[1])}.upsamplers.0.",
        name,
    )


def _vae_from_diffusers(key: str, shape: UNetShape) -> str:
    top = shape.vae_levels - 1
    key = key.replace("conv_norm_out.", "norm_out.").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"\.mid_block\.resnets\.([01])\.", lambda m: f".mid.block_{int(m[1]) + 1}.", key)
    if match := re.fullmatch(r"(.*)\.mid_block\.attentions\.0\.([\w.]+)\.(weight|bias)", key):
        inner = _FROM_VAE_ATTENTION.get(match[2], match[2])
        marker = ":linear" if match[3] == "weight" and inner != "norm" else ""
        return f"{match[1]}.mid.attn_1.{inner}.{match[3]}{marker}"
    key = re.sub(r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block.", key)
    key = re.sub(r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample.", key)
    key = re.sub(r"\.up_blocks\.(\d+)\.resnets\.", lambda m: f".up.{top - int(m[1])}.block.", key)
    return re.sub(
        r"\.up_blocks\.(\d+)\.upsamplers\.0\.",
        lambda m: f".up.{top - int(m[1])}.upsample.",
        key,
    )
