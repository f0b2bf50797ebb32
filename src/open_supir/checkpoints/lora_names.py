"""Names inside LoRA files of SDXL -> our tensors, as pure functions of strings.

The same layer has several names: with LDM's or diffusers' block numbers, with dots or (kohya) with
underscores, and with the tensors called down and up, or A and B. Sources: the key lists of kohya's
sd-scripts, LyCORIS, peft and diffusers.
"""

import re
from collections.abc import Iterable

from open_supir.checkpoints.diffusers_names import UNetShape, diffusers_pieces, to_diffusers
from open_supir.checkpoints.keymaps import HF_TEXT

# Our parts -> prefixes of their layers, before names with dots and with underscores.
PREFIXES = {
    "unet": (("unet.", "", "diffusion_model.", "model.diffusion_model."), "lora_unet_"),
    "clip_l": (("text_encoder.",), "lora_te1_"),
    "clip_g": (("text_encoder_2.",), "lora_te2_"),
}

_PAIR = re.compile(
    r"(.+)\.(?:lora_(down|up|mid|A|B)(?:\.default)?|lora(?:_linear_layer)?\.(down|up))\.weight"
)
_PROCESSOR = re.compile(r"(.+)\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight")
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
_AB = {"A": "down", "B": "up"}


def split_key(key: str) -> tuple[str, str] | None:
    """Return a stored key's layer and its role in it; None for other keys.

    It is down, up or mid (of a factorised convolution), alpha, dora_scale (as LyCORIS has it) or
    magnitude (as peft has it).
    """
    key = key.replace("base_model.model.", "")
    if match := _PROCESSOR.fullmatch(key):
        inner = "to_out.0" if match[2] == "to_out" else match[2]
        return f"{match[1]}.{inner}", match[3]
    if match := _PAIR.fullmatch(key):
        kind = match[2] or match[3]
        return match[1], _AB.get(kind, kind)
    if match := _MAGNITUDE.fullmatch(key):
        return match[1], "magnitude"
    layer, _, kind = key.rpartition(".")
    return (layer, kind) if layer and kind in ("alpha", "dora_scale") else None


def layer_names(names: Iterable[str]) -> dict[str, str]:
    """Return the layers of a base as LoRA files may call them -> our marked names `part.name`.

    Args:
        names: Our names of the base's tensors.
    """
    names = [name for name in names if name.partition(".")[0] in PREFIXES]
    shape = UNetShape.of(names)
    found = {}
    for name in names:
        part, _, inner = name.partition(".")
        dotted, underscored = PREFIXES[part]
        for piece in diffusers_pieces(name):
            if not piece.partition(":")[0].endswith(("weight", "text_projection")):
                continue
            stem = to_diffusers(piece, shape).partition("/")[2].removesuffix(".weight")
            # LDM's block numbers; text layers also without the wrapper that transformers 5 dropped
            other = inner.removesuffix(".weight") if part == "unet" else stem.removeprefix(HF_TEXT)
            for layer in (stem, other):
                found |= {f"{prefix}{layer}": piece for prefix in dotted}
                found[underscored + layer.replace(".", "_")] = piece
    return found


def guess_base(layers: Iterable[str], contexts: Iterable[int]) -> str:
    """Say in words which other base a LoRA was made for; "" where its names do not show it.

    Args:
        layers: Its layers, as it calls them.
        contexts: Input widths of the layers that read text.
    """
    if any(re.search(r"double_blocks|single_blocks|transformer[._](?!blocks)", x) for x in layers):
        return "a diffusion transformer, such as Flux or SD3"
    widths = set(contexts)
    if any(layer.startswith("lora_te_") for layer in layers) or widths & {768, 1024}:
        return "Stable Diffusion 2.x" if 1024 in widths else "Stable Diffusion 1.x"
    return ""
