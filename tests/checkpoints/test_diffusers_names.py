"""Diffusers names <-> ours, beyond the lists of the released size (tests/contracts)."""

import pytest

from open_supir.checkpoints.diffusers_names import (
    SDXL_SHAPE,
    UNetShape,
    diffusers_pieces,
    from_diffusers,
    to_diffusers,
)

# Worked out by hand from diffusers' own block numbering.
PAIRS = {
    "unet.input_blocks.3.0.op.bias": "unet/down_blocks.0.downsamplers.0.conv.bias",
    "unet.input_blocks.8.1.proj_in.bias": "unet/down_blocks.2.attentions.1.proj_in.bias",
    "unet.middle_block.2.in_layers.0.bias": "unet/mid_block.resnets.1.norm1.bias",
    "unet.output_blocks.5.2.conv.bias": "unet/up_blocks.1.upsamplers.0.conv.bias",
    "unet.output_blocks.8.0.skip_connection.bias": "unet/up_blocks.2.resnets.2.conv_shortcut.bias",
    "control.input_hint_block.0.bias": "controlnet/input_hint_block.0.bias",
    "vae.decoder.up.3.upsample.conv.bias": "vae/decoder.up_blocks.0.upsamplers.0.conv.bias",
    "vae.encoder.down.1.block.0.nin_shortcut.bias": (
        "vae/encoder.down_blocks.1.resnets.0.conv_shortcut.bias"
    ),
    "robust_encoder.encoder.norm_out.bias": "robust_encoder/encoder.conv_norm_out.bias",
    "vae.encoder.mid.attn_1.q.weight:linear": ("vae/encoder.mid_block.attentions.0.to_q.weight"),
    "clip_g.text_projection:transposed": "text_encoder_2/text_projection.weight",
}


@pytest.mark.parametrize(("ours", "theirs"), PAIRS.items())
def test_diffusers_names_map_both_ways(ours: str, theirs: str) -> None:
    assert to_diffusers(ours) == theirs
    assert from_diffusers(theirs) == ours


def test_old_vae_attention_names_are_read() -> None:
    theirs = "vae/encoder.mid_block.attentions.0.proj_attn.weight"
    assert from_diffusers(theirs) == "vae.encoder.mid.attn_1.proj_out.weight:linear"


def test_other_depths_number_their_blocks_by_their_own_shape() -> None:
    """One residual block a level, two levels, transformers only on the second."""
    shape = UNetShape(res_blocks=1, attention=(False, True), vae_levels=3)
    assert to_diffusers("unet.input_blocks.3.1.norm.bias", shape) == (
        "unet/down_blocks.1.attentions.0.norm.bias"
    )
    upsampler = "unet/up_blocks.0.upsamplers.0.conv.bias"
    assert from_diffusers(upsampler, shape) == "unet.output_blocks.1.2.conv.bias"
    assert to_diffusers("vae.decoder.up.0.block.0.norm1.bias", shape) == (
        "vae/decoder.up_blocks.2.resnets.0.norm1.bias"
    )


def test_upsampler_sits_second_where_the_level_has_no_transformer() -> None:
    shape = UNetShape(attention=(True, False))
    upsampler = "unet/up_blocks.0.upsamplers.0.conv.bias"
    assert from_diffusers(upsampler, shape) == "unet.output_blocks.2.1.conv.bias"


def test_shape_is_read_off_either_layout() -> None:
    shape = UNetShape(res_blocks=1, attention=(False, True), vae_levels=2)
    ours = [
        "unet.input_blocks.1.0.in_layers.0.bias",
        "unet.input_blocks.2.0.op.weight",
        "unet.input_blocks.3.0.in_layers.0.bias",
        "unet.input_blocks.3.1.proj_in.weight",
        "vae.decoder.up.0.block.0.norm1.bias",
        "vae.decoder.up.1.block.0.norm1.bias",
    ]
    assert UNetShape.of(ours) == shape
    assert UNetShape.of_diffusers([to_diffusers(name, shape) for name in ours]) == shape
    assert UNetShape.of([]) == SDXL_SHAPE


def test_pieces_name_what_is_stored_otherwise() -> None:
    fused = "clip_g.transformer.resblocks.0.attn.in_proj_bias"
    assert diffusers_pieces(fused) == (f"{fused}:q", f"{fused}:k", f"{fused}:v")
    query = "vae.decoder.mid.attn_1.q.weight"
    assert diffusers_pieces(query) == (f"{query}:linear",)
    assert diffusers_pieces("unet.out.2.bias") == ("unet.out.2.bias",)
