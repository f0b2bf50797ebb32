"""Names of tensors: official SDXL and SUPIR files <-> our modules, as pure functions of strings.

Our name of a tensor is `part.name`, where `name` is its key in the state dict of that part's
module. Inside a part the names are the official ones, so most of the map is prefixes. Where the
stored tensor differs from ours, a marker after a colon says which piece or form of ours it is:
`clip_l.….in_proj_weight:q` is the first third of the fused projection. This keeps the maps one to
one: `to_official(from_official(key)) == key`.

Sources: the key lists of the files themselves; open_clip's and transformers' CLIP text towers.
"""

import re
from fnmatch import fnmatchcase

import torch
from torch import Tensor

PARTS = ("unet", "connector", "control", "vae", "robust_encoder", "clip_l", "clip_g")

# Longest first: connectors live inside the official UNet, the robust encoder in the first stage.
_PREFIXES = (
    ("model.diffusion_model.project_modules.", "connector.project_modules."),
    ("model.diffusion_model.", "unet."),
    ("model.control_model.", "control."),
    ("first_stage_model.denoise_encoder.", "robust_encoder.encoder."),
    ("first_stage_model.", "vae."),
    ("conditioner.embedders.1.model.", "clip_g."),
)
_CLIP_L = "conditioner.embedders.0.transformer."
HF_TEXT = "text_model."

# Prefixes as redistributed files shorten them, and in full.
_BARE = (
    ("diffusion_model.", "model.diffusion_model."),
    ("project_modules.", "model.diffusion_model.project_modules."),
    ("control_model.", "model.control_model."),
    ("denoise_encoder.", "first_stage_model.denoise_encoder."),
    ("encoder.", "first_stage_model.encoder."),
    ("decoder.", "first_stage_model.decoder."),
    ("quant_conv.", "first_stage_model.quant_conv."),
    ("post_quant_conv.", "first_stage_model.post_quant_conv."),
)

# Leftovers in official files and fine-tunes; none is a weight of a part.
DROPPED = (
    "*.position_ids",  # a buffer of old transformers versions
    "*mask_LQ",  # left over from an unreleased variant of SUPIR
    "*.logit_scale",  # CLIP's contrastive temperature
    "conditioner.embedders.0.transformer.text_projection.weight",  # CLIP-L's pooling, unused here
    "denoiser.*",  # the noise table, computed here
    "model_ema.*",
    "discriminator.*",  # of one-step training
    "first_stage_model.loss.*",
    "first_stage_model.model_ema.*",
    "alphas_cumprod*",
    "sqrt_*alphas_cumprod*",
    "log_one_minus_alphas_cumprod",
    "betas",
    "posterior_*",
    "global_step",
    "embedding_manager.*",
)

_BLOCK = re.compile(r"(?:encoder\.layers|transformer\.resblocks)\.(\d+)\.(.+)")
_HF_TO_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_HF_BLOCK_TO_OPEN_CLIP = {
    f"{theirs}.{kind}": f"{ours}.{kind}"
    for kind in ("weight", "bias")
    for theirs, ours in (
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("self_attn.out_proj", "attn.out_proj"),
    )
} | {
    f"self_attn.{letter}_proj.{kind}": f"attn.in_proj_{kind}:{letter}"
    for kind in ("weight", "bias")
    for letter in "qkv"
}
_OPEN_CLIP_TO_HF = {ours: theirs for theirs, ours in _HF_TO_OPEN_CLIP.items()}
_OPEN_CLIP_BLOCK_TO_HF = {ours: theirs for theirs, ours in _HF_BLOCK_TO_OPEN_CLIP.items()}


def from_official(key: str) -> str | None:
    """Return our name (with its marker) for an official key; None for keys of no part.

    `embedders.0` is CLIP-L in transformers' layout, `embedders.1` is bigG in open_clip's.
    """
    if is_dropped(key):
        return None
    if key.startswith(_CLIP_L):
        name = hf_to_open_clip(key.removeprefix(_CLIP_L))
        return None if name is None else f"clip_l.{name}"
    for theirs, ours in _PREFIXES:
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return None


def to_official(name: str) -> str:
    """Return the official key for our name; the inverse of `from_official`.

    Raises:
        KeyError: The name belongs to no part, or a fused tensor of CLIP-L lacks its marker.
    """
    if name.startswith("clip_l."):
        return _CLIP_L + open_clip_to_hf(name.removeprefix("clip_l."))
    for theirs, ours in _PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(f"{name!r} has no official name; parts are {', '.join(PARTS)}")


def canonical(key: str) -> str:
    """Restore the prefix of an official key stored without it (pruned files, separate VAEs)."""
    for bare, full in _BARE:
        if key.startswith(bare):
            return full + key.removeprefix(bare)
    return key


def from_native(key: str) -> str | None:
    """Return our name for a key of our own files and training checkpoints; None for other keys.

    Training checkpoints prefix UNet, control and connector by `network.`, text towers by
    `conditioner.`.
    """
    name = key.removeprefix("network.")
    if name.startswith(("conditioner.clip_l.", "conditioner.clip_g.")):
        name = name.removeprefix("conditioner.")
    part, _, inner = name.partition(".")
    return name if inner and part in PARTS else None


def is_dropped(key: str) -> bool:
    """Say whether a key is a leftover that nothing needs."""
    return any(fnmatchcase(key, pattern) for pattern in DROPPED)


def hf_to_open_clip(key: str) -> str | None:
    """Rename a transformers key of a CLIP text model to open_clip's, with a marker.

    The prefix `text_model.` may be missing; None for keys that are unknown.
    """
    if key == "text_projection.weight":
        return "text_projection:transposed"
    key = key.removeprefix(HF_TEXT)
    if match := _BLOCK.fullmatch(key):
        name = _HF_BLOCK_TO_OPEN_CLIP.get(match[2])
        return None if name is None else f"transformer.resblocks.{match[1]}.{name}"
    return _HF_TO_OPEN_CLIP.get(key)


def open_clip_to_hf(name: str) -> str:
    """Rename a marked open_clip text key to transformers'; the inverse of `hf_to_open_clip`."""
    if name == "text_projection:transposed":
        return "text_projection.weight"
    match = _BLOCK.fullmatch(name)
    table, inner = (_OPEN_CLIP_BLOCK_TO_HF, match[2]) if match else (_OPEN_CLIP_TO_HF, name)
    if inner not in table:
        raise KeyError(f"text tower tensor {name!r} has no name in transformers' layout")
    return HF_TEXT + (f"encoder.layers.{match[1]}." if match else "") + table[inner]


def official_pieces(name: str) -> tuple[str, ...]:
    """Return the marked names under which an official file stores our tensor `part.name`."""
    return text_pieces(name) if name.startswith("clip_l.") else (name,)


def text_pieces(name: str) -> tuple[str, ...]:
    """Return the marked names under which transformers' layout stores a text tower's tensor."""
    if name.endswith((".in_proj_weight", ".in_proj_bias")):
        return tuple(f"{name}:{letter}" for letter in "qkv")
    return (f"{name}:transposed",) if name.endswith("text_projection") else (name,)


def split_marker(name: str) -> tuple[str, str]:
    """Split `name:marker` in two; the marker is empty for tensors stored as they are."""
    base, _, marker = name.partition(":")
    return base, marker


def required_markers(marker: str) -> tuple[str, ...]:
    """Return all markers needed to make one tensor, this one included."""
    return ("q", "k", "v") if marker in ("q", "k", "v") else (marker,)


def join_qkv(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Fuse separate projections (W, …) into the (3 W, …) projection of open_clip."""
    return torch.cat([q, k, v])


def split_qkv(fused: Tensor) -> dict[str, Tensor]:
    """Split a fused projection (3 W, …) into views of its thirds, by letter."""
    return dict(zip("qkv", fused.chunk(3), strict=True))


def to_piece(tensor: Tensor, marker: str) -> Tensor:
    """Turn our tensor into the stored piece that the marker names."""
    if marker in ("q", "k", "v"):
        return split_qkv(tensor)[marker]
    if marker == "transposed":
        return tensor.T
    return tensor[..., 0, 0] if marker == "linear" else tensor


def from_pieces(pieces: dict[str, Tensor]) -> Tensor:
    """Make our tensor from its stored pieces, by marker; the inverse of `to_piece`."""
    if len(pieces) == 3:
        return join_qkv(pieces["q"], pieces["k"], pieces["v"])
    ((marker, tensor),) = pieces.items()
    if marker == "transposed":
        return tensor.T.contiguous()
    # a 1x1 convolution, stored as a linear layer by diffusers
    return tensor[..., None, None] if marker == "linear" and tensor.ndim == 2 else tensor


def piece_shapes_join(shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of `from_pieces` from the shapes of the pieces."""
    if len(shapes) == 3:
        return (sum(shape[0] for shape in shapes.values()), *shapes["q"][1:])
    ((marker, shape),) = shapes.items()
    if marker == "transposed":
        return shape[::-1]
    return (*shape, 1, 1) if marker == "linear" and len(shape) == 2 else shape
