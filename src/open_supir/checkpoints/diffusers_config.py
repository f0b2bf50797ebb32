"""The JSON files of a diffusers folder, derived from the tensors' shapes.

What shapes do not show (activations, the noise table, the latent scale) follows SDXL's public
configs.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from open_supir.checkpoints.diffusers_names import UNetShape

Shapes = Mapping[str, tuple[int, ...]]

SDXL_LATENT_SCALE = 0.13025

_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "use_karras_sigmas": False,
}
_MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


_START, _END = "<|startoftext|>", "<|endoftext|>"


def tokenizer_files(vocabulary: Mapping[str, int], merges: Sequence[str]) -> dict[str, str]:
    """Return the files of SDXL's two tokenizers by relative path; they differ in their padding.

    Args:
        vocabulary: CLIP's tokens and their numbers.
        merges: CLIP's byte-pair merges, `first second`, in order.
    """
    files = {}
    for folder, padding in (("tokenizer", _END), ("tokenizer_2", "!")):  # "!" is number 0
        special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": padding}
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "do_lower_case": True,
            "add_prefix_space": False,
            **special,
        }
        files[f"{folder}/vocab.json"] = json.dumps(dict(vocabulary), ensure_ascii=False)
        files[f"{folder}/merges.txt"] = "\n".join(["#version: 0.2", *merges, ""])
        files[f"{folder}/special_tokens_map.json"] = json.dumps(special, indent=2)
        files[f"{folder}/tokenizer_config.json"] = json.dumps(config, indent=2)
    return files


def component_configs(
    shapes: Shapes, shape: UNetShape, *, head_channels: int = 64
) -> dict[str, dict[str, Any]]:
    """Return the configs of a diffusers folder by relative path.

    Args:
        shapes: Shapes by `folder/key`, in diffusers' names.
        head_channels: Width of one attention head, which shapes do not show.
    """
    folders = {key.partition("/")[0] for key in shapes}
    configs = {}
    if "unet" in folders:
        configs["unet/config.json"] = _unet_config(shapes, shape, head_channels)
    if "vae" in folders:
        configs["vae/config.json"] = _vae_config(shapes, shape)
    for folder in ("text_encoder", "text_encoder_2"):
        if folder in folders:
            configs[f"{folder}/config.json"] = _text_config(shapes, folder, head_channels)
    if {"unet", "vae", "text_encoder", "text_encoder_2"} <= folders:
        configs["scheduler/scheduler_config.json"] = _SCHEDULER
        configs["model_index.json"] = _MODEL_INDEX
    return configs


def _unet_config(shapes: Shapes, shape: UNetShape, head_channels: int) -> dict[str, Any]:
    levels = range(len(shape.attention))
    channels = [shapes[f"unet/down_blocks.{n}.resnets.0.conv1.weight"][0] for n in levels]
    attended = [n for n in levels if shape.attention[n]]
    first = (
        f"unet/down_blocks.{attended[0]}.attentions.0"
        if attended
        else "unet/mid_block.attentions.0"
    )
    labels = shapes["unet/add_embedding.linear_1.weight"][1]
    pooled = shapes.get("text_encoder_2/text_projection.weight")
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": shapes["unet/conv_in.weight"][1],
        "out_channels": shapes["unet/conv_out.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": shape.res_blocks,
        "down_block_types": [
            "CrossAttnDownBlock2D" if held else "DownBlock2D" for held in shape.attention
        ],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": [
            "CrossAttnUpBlock2D" if held else "UpBlock2D" for held in reversed(shape.attention)
        ],
        "attention_head_dim": [width // head_channels for width in channels],  # their number
        "transformer_layers_per_block": [max(1, _depth(shapes, n)) for n in levels],
        "cross_attention_dim": shapes[f"{first}.transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (labels - pooled[0]) // 6 if pooled else 256,
        "projection_class_embeddings_input_dim": labels,
        "sample_size": 128,
        "act_fn": "silu",
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }


def _depth(shapes: Shapes, level: int) -> int:
    prefix = f"unet/down_blocks.{level}.attentions.0.transformer_blocks."
    return len({key[len(prefix) :].partition(".")[0] for key in shapes if key.startswith(prefix)})


def _vae_config(shapes: Shapes, shape: UNetShape) -> dict[str, Any]:
    levels = range(shape.vae_levels)
    prefix = "vae/encoder.down_blocks.0.resnets."
    resnets = {key[len(prefix) :].partition(".")[0] for key in shapes if key.startswith(prefix)}
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": shapes["vae/encoder.conv_in.weight"][1],
        "out_channels": shapes["vae/decoder.conv_out.weight"][0],
        "latent_channels": shapes["vae/post_quant_conv.weight"][0],
        "block_out_channels": [
            shapes[f"vae/encoder.down_blocks.{n}.resnets.0.conv1.weight"][0] for n in levels
        ],
        "layers_per_block": len(resnets),
        "down_block_types": ["DownEncoderBlock2D"] * shape.vae_levels,
        "up_block_types": ["UpDecoderBlock2D"] * shape.vae_levels,
        "act_fn": "silu",
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": SDXL_LATENT_SCALE,
        "force_upcast": True,
    }


def _text_config(shapes: Shapes, folder: str, head_channels: int) -> dict[str, Any]:
    text = f"{folder}/text_model."
    vocabulary, width = shapes[f"{text}embeddings.token_embedding.weight"]
    layers = {key.split(".")[3] for key in shapes if key.startswith(f"{text}encoder.layers.")}
    projection = shapes.get(f"{folder}/text_projection.weight")
    return {
        "architectures": ["CLIPTextModelWithProjection" if projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": width,
        "intermediate_size": shapes[f"{text}encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": width // head_channels,
        "max_position_embeddings": shapes[f"{text}embeddings.position_embedding.weight"][0],
        "vocab_size": vocabulary,
        "projection_dim": projection[0] if projection else width,
        "hidden_act": "quick_gelu" if folder == "text_encoder" else "gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,  # SDXL's value; makes transformers pool at the largest token number
    }
