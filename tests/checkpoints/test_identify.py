"""Telling weight files apart."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from open_supir.checkpoints import inspect_checkpoint, load_parts
from open_supir.checkpoints.identify import connector_kind, transformer_depth
from tests.checkpoints.standins import module_of, official_sdxl, official_supir, part_of, unet_of

UNET = "model.diffusion_model."
FILES = {
    "sd1": {
        f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
        "cond_stage_model.transformer.text_model.final_layer_norm.bias": (768,),
    },
    "sd2": {"cond_stage_model.model.ln_final.bias": (1024,)},
    "refiner": {
        f"{UNET}input_blocks.0.0.weight": (384, 4, 3, 3),
        "conditioner.embedders.0.model.ln_final.bias": (1280,),
    },
    "lora": {
        "lora_unet_input_blocks_4_1_proj_in.lora_down.weight": (4, 8),
        "lora_unet_input_blocks_4_1_proj_in.alpha": (),
    },
    "embedding": {"clip_l": (4, 768), "clip_g": (4, 1280)},
    "flux": {"double_blocks.0.img_attn.qkv.weight": (8, 8)},
    "controlnet": {"controlnet_cond_embedding.conv_in.bias": (16,)},
    "vae": {"encoder.conv_in.bias": (8,), "decoder.conv_out.bias": (3,)},
    "native": {"control.out.0.bias": (8,)},
    "unknown": {"something.else": (1,)},
}


def _write(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    return path


@pytest.mark.parametrize("kind", FILES)
def test_kinds_are_told_apart(tmp_path: Path, kind: str) -> None:
    assert inspect_checkpoint(_write(tmp_path / "a.safetensors", FILES[kind])).kind == kind


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("sd1", "Stable Diffusion 1.x"),
        ("sd2", "Stable Diffusion 2.x"),
        ("refiner", "refiner"),
        ("lora", "LoRA"),
        ("controlnet", "ControlNet"),
        ("embedding", "textual inversion"),
        ("flux", "diffusion transformer, such as Flux or SD3"),
    ],
)
def test_wrong_file_for_the_slot_names_found_and_expected(
    tmp_path: Path, kind: str, words: str
) -> None:
    path = _write(tmp_path / "wrong.safetensors", FILES[kind])
    unet = module_of(unet_of(official_sdxl()))
    with pytest.raises(ValueError, match=rf"wrong\.safetensors.*{words}.*weights\.sdxl.*unet"):
        load_parts(path, {"unet": unet}, key="weights.sdxl")


STRAYS = [
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
    "cond_stage_model.model.ln_final.bias",
    "lora_unet_input_blocks_4_1_proj_in.lora_down.weight",
    "double_blocks.0.img_attn.qkv.weight",
]


@pytest.mark.parametrize("stray", STRAYS)
def test_one_stray_key_does_not_change_the_kind_and_can_be_allowed(
    tmp_path: Path, stray: str
) -> None:
    path, tensors = tmp_path / "mix.safetensors", official_sdxl()
    save_file(tensors | {stray: torch.ones(4)}, path)
    assert inspect_checkpoint(path).kind == "sdxl"
    unet = module_of(unet_of(tensors))
    with pytest.raises(KeyError, match=r"1 keys of no known part.*ignored_keys=\[.*\]") as caught:
        load_parts(path, {"unet": unet})
    named = caught.value.args[0].partition("ignored_keys=[")[2].removesuffix("]")
    assert load_parts(path, {"unet": unet}, ignored=[named]).unexpected == {"": (stray,)}
    vae = {key: t for key, t in tensors.items() if key.startswith("first_stage_model.")}
    save_file(vae | {stray: torch.ones(4)}, path)
    assert inspect_checkpoint(path).kind in ("vae", "flux")  # a VAE's names are a Flux file's too


def test_a_stray_key_of_a_part_can_be_allowed_by_the_name_in_the_error(tmp_path: Path) -> None:
    path, tensors = tmp_path / "mix.safetensors", official_sdxl()
    save_file(tensors | {f"{UNET}out.3.bias": torch.ones(4)}, path)
    unet = module_of(unet_of(tensors))
    with pytest.raises(KeyError, match=r"load without: ignored_keys=\[unet\.out\.3\.bias\]"):
        load_parts(path, {"unet": unet})
    report = load_parts(path, {"unet": unet}, ignored=["unet.out.3.bias"])
    assert report.unexpected == {"unet": ("out.3.bias",)}


@pytest.mark.parametrize(
    "name",
    [
        "single_blocks.0.linear1.weight",  # Flux
        f"{UNET}joint_blocks.0.x_block.attn.qkv.weight",  # SD3
        f"{UNET}blocks.0.cross_attn.q_linear.weight",  # PixArt
        f"{UNET}layers.0.attention.qkv.weight",  # Lumina
        "transformer_blocks.0.attn.add_k_proj.weight",  # diffusers
    ],
)
def test_diffusion_transformers_are_not_called_sdxl(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / "a.safetensors", {name: (8, 8)})
    with pytest.raises(ValueError, match="this is a diffusion transformer"):
        load_parts(path, {"unet": module_of(unet_of(official_sdxl()))}, key="weights.sdxl")


def test_inpainting_and_scaled_files_are_named_with_a_way_out(tmp_path: Path) -> None:
    path, tensors = tmp_path / "a.safetensors", official_sdxl()
    unet, stem = module_of(unet_of(tensors)), f"{UNET}input_blocks.0.0.weight"
    save_file(tensors | {stem: torch.zeros(8, 9, 3, 3)}, path)
    with pytest.raises(ValueError, match="this is an inpainting or editing model"):
        load_parts(path, {"unet": unet})
    weight = f"{UNET}input_blocks.4.1.proj_in.weight"
    scaled = {
        weight: tensors[weight].to(torch.float8_e4m3fn),
        weight.replace("proj_in.weight", "proj_in.scale_weight"): torch.tensor(0.5),
        f"{UNET}scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn),
    }
    save_file(tensors | scaled, path)
    with pytest.raises(ValueError, match=r"use the float16 or bfloat16 file.*\); expected a file"):
        load_parts(path, {"unet": unet})


LORAS = [
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",  # kohya
    "unet.down_blocks.1.attentions.0.proj_in.lora_A.weight",  # peft, diffusers
    "unet.down_blocks.1.attentions.0.proj_in.lora.down.weight",  # older diffusers
    "lora_unet_down_blocks_1_attentions_0_proj_in.hada_w1_a",  # LoHa
    "lycoris_down_blocks_1_attentions_0_proj_in.lokr_w1",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight",
]


@pytest.mark.parametrize("name", LORAS)
def test_loras_of_every_trainer_are_known(tmp_path: Path, name: str) -> None:
    assert inspect_checkpoint(_write(tmp_path / "a.safetensors", {name: (4, 8)})).kind == "lora"


def test_pruned_sd1_is_known_by_its_shapes(tmp_path: Path) -> None:
    shapes = {
        f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
        f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    }
    assert inspect_checkpoint(_write(tmp_path / "a.safetensors", shapes)).kind == "sd1"


def test_sdxl_file_is_described_by_part(sdxl_file: Path) -> None:
    info = inspect_checkpoint(sdxl_file)
    assert info.kind == "sdxl"
    assert list(info.parts) == ["unet", "vae", "clip_l", "clip_g"]
    assert info.missing == ("connector", "control", "robust_encoder")
    unet = unet_of(official_sdxl())
    assert info.parts["unet"].tensors == len(unet)
    assert info.parts["unet"].numbers == sum(tensor.numel() for tensor in unet.values())
    assert info.parts["unet"].dtypes == {"float32": len(unet)}
    assert "missing for restoring with it: connector" in str(info)


def test_supir_file_and_whole_model_are_described(tmp_path: Path, supir_file: Path) -> None:
    info = inspect_checkpoint(supir_file)
    assert info.kind == "supir"
    assert info.control_depth == (0, 1)
    assert info.unknown == ()
    whole = tmp_path / "whole.safetensors"
    save_file(official_sdxl() | official_supir(), whole)
    assert inspect_checkpoint(whole).kind == "supir-full"
    assert inspect_checkpoint(whole).missing == ()


def test_pruned_file_with_bare_names_is_supir(tmp_path: Path) -> None:
    pruned = {
        key.removeprefix("model.").removeprefix("diffusion_model."): tensor
        for key, tensor in official_supir().items()
    }
    path = tmp_path / "pruned.safetensors"
    save_file(pruned, path)
    info = inspect_checkpoint(path)
    assert info.kind == "supir"
    assert set(info.parts) == {"connector", "control", "robust_encoder"}


def test_depth_is_counted_by_level() -> None:
    names = [
        "input_blocks.1.0.in_layers.0.weight",
        "input_blocks.3.0.op.weight",
        "input_blocks.4.1.transformer_blocks.1.norm1.bias",
        "input_blocks.6.0.op.weight",
        "input_blocks.8.1.transformer_blocks.9.norm1.bias",
    ]
    assert transformer_depth(names) == (0, 2, 10)
    assert transformer_depth([]) == ()


def test_connector_is_told_by_its_names() -> None:
    names = [n for n in part_of(official_supir(), UNET) if n.startswith("project_modules.")]
    assert connector_kind(names) == "zerosft"
    assert connector_kind([*names, "project_modules.3.attn.to_q.weight"]) == "zerosft_released"
    assert connector_kind(["project_modules.0.attn.to_q.weight"]) == "cross_attention"
    assert connector_kind(["project_modules.0.weight"]) == "residual"
    assert connector_kind([]) == "plain"


def test_a_connector_from_outside_is_named_by_its_class() -> None:
    """Its layers may have any names, even those of a shipped connector."""
    recipe = {"architecture": {"connector": {"_target_": "my_parts.MiddleConnector"}}}
    for names in (["gate.weight"], ["project_modules.0.weight"]):
        assert connector_kind(names, {"recipe": json.dumps(recipe)}) == "my_parts.MiddleConnector"
    assert connector_kind(["gate.weight"]) == "unknown"
    assert connector_kind(["project_modules.0.gate.weight"]) == "unknown"
