"""Official names <-> ours."""

import pytest
import torch

from open_supir.checkpoints.keymaps import (
    canonical,
    from_native,
    from_official,
    from_pieces,
    hf_to_open_clip,
    is_dropped,
    join_qkv,
    open_clip_to_hf,
    piece_shapes_join,
    split_qkv,
    to_official,
    to_piece,
)

HF = "conditioner.embedders.0.transformer.text_model."
PAIRS = {
    "model.diffusion_model.input_blocks.4.1.norm.bias": "unet.input_blocks.4.1.norm.bias",
    "model.diffusion_model.project_modules.3.norm2.bias": "connector.project_modules.3.norm2.bias",
    "model.control_model.input_hint_block.0.bias": "control.input_hint_block.0.bias",
    "first_stage_model.quant_conv.bias": "vae.quant_conv.bias",
    "first_stage_model.denoise_encoder.conv_in.bias": "robust_encoder.encoder.conv_in.bias",
    "conditioner.embedders.1.model.text_projection": "clip_g.text_projection",
    f"{HF}embeddings.position_embedding.weight": "clip_l.positional_embedding",
    f"{HF}encoder.layers.7.self_attn.k_proj.bias": (
        "clip_l.transformer.resblocks.7.attn.in_proj_bias:k"
    ),
    f"{HF}encoder.layers.7.mlp.fc2.weight": "clip_l.transformer.resblocks.7.mlp.c_proj.weight",
}


@pytest.mark.parametrize(("official", "ours"), PAIRS.items())
def test_official_names_map_both_ways(official: str, ours: str) -> None:
    assert from_official(official) == ours
    assert to_official(ours) == official


@pytest.mark.parametrize(
    "key",
    [
        f"{HF}embeddings.position_ids",
        "conditioner.embedders.1.model.logit_scale",
        "conditioner.embedders.0.transformer.text_projection.weight",
        "model.control_model.mask_LQ",
        "denoiser.sigmas",
        "model_ema.decay",
    ],
)
def test_clutter_belongs_to_no_part_and_is_named(key: str) -> None:
    assert from_official(key) is None
    assert is_dropped(key)


def test_unknown_keys_are_not_taken_for_clutter() -> None:
    assert from_official("v_pred") is None
    assert not is_dropped("v_pred")


def test_to_official_refuses_a_fused_projection_of_clip_l() -> None:
    with pytest.raises(KeyError, match="in_proj_weight"):
        to_official("clip_l.transformer.resblocks.0.attn.in_proj_weight")


@pytest.mark.parametrize(
    ("bare", "full"),
    [
        (
            "project_modules.0.zero_conv.bias",
            "model.diffusion_model.project_modules.0.zero_conv.bias",
        ),
        ("control_model.time_embed.0.bias", "model.control_model.time_embed.0.bias"),
        ("diffusion_model.out.2.bias", "model.diffusion_model.out.2.bias"),
        ("decoder.conv_in.bias", "first_stage_model.decoder.conv_in.bias"),
        ("model.control_model.out", "model.control_model.out"),
    ],
)
def test_canonical_completes_bare_names(bare: str, full: str) -> None:
    assert canonical(bare) == full


def test_native_names_lose_the_training_modules_prefix() -> None:
    assert from_native("network.control.out.0.bias") == "control.out.0.bias"
    assert from_native("conditioner.clip_g.ln_final.bias") == "clip_g.ln_final.bias"
    assert from_native("model.diffusion_model.out.0.bias") is None


def test_text_model_level_may_be_absent() -> None:
    """transformers 5 writes CLIPTextModel without it."""
    name = "encoder.layers.0.layer_norm1.bias"
    assert hf_to_open_clip(name) == hf_to_open_clip(f"text_model.{name}")
    assert open_clip_to_hf("ln_final.bias") == "text_model.final_layer_norm.bias"


def test_qkv_fuse_in_the_order_of_open_clip() -> None:
    q, k, v = (torch.full((2, 3), value) for value in (1.0, 2.0, 3.0))
    fused = join_qkv(q, k, v)
    assert fused[:, 0].tolist() == [1, 1, 2, 2, 3, 3]
    assert all(torch.equal(split_qkv(fused)[n], t) for n, t in zip("qkv", (q, k, v), strict=True))


@pytest.mark.parametrize(
    ("shape", "markers"),
    [((6, 5), "qkv"), ((6,), "qkv"), ((4, 5), ("transposed",)), ((4, 4, 1, 1), ("linear",))],
)
def test_pieces_put_together_give_the_tensor_back(
    shape: tuple[int, ...], markers: tuple[str, ...]
) -> None:
    tensor = torch.randn(shape)
    pieces = {marker: to_piece(tensor, marker) for marker in markers}
    assert torch.equal(from_pieces(pieces), tensor)
    assert piece_shapes_join({m: tuple(p.shape) for m, p in pieces.items()}) == shape
