"""LoRA files merged into a base: formulas, refusals, and the real libraries' own results."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from open_supir.checkpoints import inspect_checkpoint, load_parts, open_checkpoint
from open_supir.checkpoints.convert import convert
from open_supir.checkpoints.loras import LoraFile, lora_files
from tests.checkpoints.standins import module_of, official_sdxl, open_clip, our_clip_l, unet_of

RANK = 2
TO_K = "input_blocks.4.1.transformer_blocks.0.attn2.to_k"
KOHYA = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
CONV = "input_blocks.3.0.op"
BLOCK = "text_model_encoder_layers_0_"


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _pair(layer: str, out: int, into: int, *kernel: int) -> dict[str, Tensor]:
    up = (out, RANK, *[1] * len(kernel))
    return {
        f"{layer}.lora_down.weight": _randn(RANK, into, *kernel),
        f"{layer}.lora_up.weight": _randn(*up),
    }


def _write(path: Path, tensors: dict[str, Tensor], **metadata: str) -> LoraFile:
    save_file(tensors, path, metadata=metadata)
    return LoraFile(str(path), 0.5)


def _loaded(base: Path, *loras: LoraFile) -> dict[str, dict[str, Tensor]]:
    official = official_sdxl()
    parts = {
        "unet": module_of(unet_of(official)),
        "clip_l": module_of({n: torch.ones(s) for n, s in our_clip_l().items()}),
        "clip_g": module_of({n: torch.ones(s) for n, s in open_clip().items()}),
    }
    load_parts(base, parts, loras=loras)
    return {part: module.state_dict() for part, module in parts.items()}


def test_kohya_layers_change_by_scale_times_alpha_over_rank(
    sdxl_file: Path, tmp_path: Path
) -> None:
    """Linear, convolution, one projection of fused ones, and bigG; all else stays to the bit."""
    tensors = _pair(KOHYA, 8, 6) | {f"{KOHYA}.alpha": torch.tensor(1.0)}
    tensors |= _pair("lora_unet_input_blocks_3_0_op", 8, 8, 3, 3)
    tensors |= _pair(f"lora_te1_{BLOCK}self_attn_k_proj", 8, 8)
    tensors |= _pair(f"lora_te2_{BLOCK}mlp_fc1", 32, 8)
    before = _loaded(sdxl_file)
    after = _loaded(sdxl_file, _write(tmp_path / "lora.safetensors", tensors))
    product = {
        layer: (tensors[f"{layer}.lora_up.weight"].flatten(1)
                @ tensors[f"{layer}.lora_down.weight"].flatten(1))
        for layer in {key.partition(".")[0] for key in tensors}
    }  # fmt: skip
    projection = "transformer.resblocks.0.attn.in_proj_weight"
    expected = {
        ("unet", f"{TO_K}.weight"): 0.5 * (1 / 2) * product[KOHYA],
        ("unet", f"{CONV}.weight"): 0.5
        * product["lora_unet_input_blocks_3_0_op"].reshape(8, 8, 3, 3),
        ("clip_l", projection): 0.5
        * torch.cat([torch.zeros(8, 8), product[f"lora_te1_{BLOCK}self_attn_k_proj"],
                     torch.zeros(8, 8)]),
        ("clip_g", "transformer.resblocks.0.mlp.c_fc.weight"): 0.5
        * product[f"lora_te2_{BLOCK}mlp_fc1"],
    }  # fmt: skip
    for part, state in after.items():
        for name, tensor in state.items():
            change = expected.get((part, name), torch.zeros(()))
            torch.testing.assert_close(tensor, before[part][name] + change, rtol=0, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_dora_gives_rows_or_columns_the_stored_lengths(
    sdxl_file: Path, tmp_path: Path, axis: int
) -> None:
    lengths = torch.arange(1.0, (8 if axis == 0 else 6) + 1)
    stored = lengths.reshape((-1, 1) if axis == 0 else (1, -1))
    tensors = _pair(KOHYA, 8, 6) | {f"{KOHYA}.dora_scale": stored}
    after = _loaded(sdxl_file, _write(tmp_path / "dora.safetensors", tensors))
    found = after["unet"][f"{TO_K}.weight"].norm(dim=1 - axis)
    torch.testing.assert_close(found, lengths)


def test_all_namings_of_a_layer_give_the_same(sdxl_file: Path, tmp_path: Path) -> None:
    down, up = _pair("x", 8, 6).values()
    theirs = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    namings = {
        f"{KOHYA}.lora_down.weight": f"{KOHYA}.lora_up.weight",
        f"lora_unet_{theirs.replace('.', '_')}_to_k.lora_down.weight":
        f"lora_unet_{theirs.replace('.', '_')}_to_k.lora_up.weight",
        f"unet.{theirs}.to_k.lora_A.weight": f"unet.{theirs}.to_k.lora_B.weight",
        f"unet.{theirs}.to_k.lora.down.weight": f"unet.{theirs}.to_k.lora.up.weight",
        f"unet.{theirs}.processor.to_k_lora.down.weight":
        f"unet.{theirs}.processor.to_k_lora.up.weight",
        f"diffusion_model.{TO_K}.lora_A.weight": f"diffusion_model.{TO_K}.lora_B.weight",
    }  # fmt: skip
    found = [
        _loaded(sdxl_file, _write(tmp_path / f"{number}.safetensors", {one: down, other: up}))
        for number, (one, other) in enumerate(namings.items())
    ]
    wanted = official_sdxl()[f"model.diffusion_model.{TO_K}.weight"] + 0.5 * up @ down
    for state in found:
        torch.testing.assert_close(state["unet"][f"{TO_K}.weight"], wanted)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (_pair(KOHYA, 8, 6) | _pair("lora_te_x", 8, 8) | _pair("lora_te_y", 8, 8),
         "made for Stable Diffusion 1.x: 2 of its 3 layers are not in the base, first: lora_te_x"),
        (_pair(KOHYA, 8, 768), "Stable Diffusion 1.x: 1 of its 1 layers have other sizes, first: "
         f"{KOHYA}, 8 x 768 instead of 8 x 6"),
        (_pair("transformer.single_blocks.0.linear", 8, 8), "a diffusion transformer, such"),
        ({f"{KOHYA}.hada_w1_a": _randn(2, 2), f"{KOHYA}.hada_w1_b": _randn(2, 2)},
         rf"2 of 2 keys belong to no LoRA, LoCon or DoRA, first: {KOHYA}.hada_w1_a \(LoHa, which"),
        ({f"{KOHYA}.lora_down.weight": _randn(2, 6)}, "1 of 1 layers lack one of their two matr"),
        (official_sdxl(), r"this is an SDXL checkpoint \(base or fine-tune\); expected for"),
    ],
    ids=["sd1", "sizes", "flux", "loha", "half", "not a lora"],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_by_name_and_count(
    sdxl_file: Path, tmp_path: Path, tensors: dict[str, Tensor], message: str
) -> None:
    lora = _write(tmp_path / "other.safetensors", tensors)
    with pytest.raises(ValueError, match=re.escape(lora.path) + ".*" + message):
        _loaded(sdxl_file, lora)


def test_settings_are_files_with_or_without_scale() -> None:
    assert lora_files(None) == () and lora_files("a") == (LoraFile("a"),)
    given = ["a", {"path": "b", "scale": 0.8}]
    assert lora_files(given) == (LoraFile("a"), LoraFile("b", 0.8))
    for wrong in ([{"file": "a"}], [{"path": "a", "scale": "x"}], [3]):
        with pytest.raises(ValueError, match="weights.loras: "):
            lora_files(wrong)


def test_convert_merges_and_says_so(sdxl_file: Path, tmp_path: Path) -> None:
    lora = _write(tmp_path / "lora.safetensors", _pair(KOHYA, 8, 6))
    settings: dict[str, Any] = dict(
        input=str(sdxl_file), output=str(tmp_path / "merged.safetensors"), format="sdxl",
        dtype=None, parts=None, base=None, license="x", metadata={}, overwrite=False,
        loras=[{"path": lora.path, "scale": 0.5}],
    )  # fmt: skip
    merged = convert(settings)
    wanted = _loaded(sdxl_file, lora)
    found = _loaded(merged)
    for part, state in wanted.items():
        assert all(torch.equal(found[part][name], tensor) for name, tensor in state.items())
    said = json.loads(open_checkpoint(merged).metadata["merged_loras"])
    assert [(one["name"], one["scale"]) for one in said] == [("lora.safetensors", 0.5)]
    assert inspect_checkpoint(merged).kind == "sdxl"


@pytest.mark.slow
def test_merging_equals_fusing_in_diffusers(tmp_path: Path) -> None:
    """Every linear layer and convolution of the UNet and both towers, by diffusers and peft: LoRA
    with and without alpha, in both namings, DoRA (of the UNet), and two at once; float32,
    so 1e-6.
    """
    diffusers, _ = pytest.importorskip("diffusers"), pytest.importorskip("peft")
    from open_supir.checkpoints import export_diffusers
    from open_supir.networks.conditioner import vocabulary
    from tests.checkpoints.test_diffusers_folder import image_parts, small_conditioner

    parts, conditioner = image_parts(), small_conditioner()
    parts = {"unet": parts["unet"], "vae": parts["vae"],
             "clip_l": conditioner.clip_l, "clip_g": conditioner.clip_g}  # fmt: skip
    export_diffusers(tmp_path / "base", parts, {}, tokens=vocabulary())
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path / "base")
    files = _real_files(pipeline, tmp_path)
    for case in (
        [("peft", 0.8)],
        [("kohya", 0.9)],
        [("dora", 0.7)],
        [("kohya", 0.9), ("peft", -0.5)],
    ):
        names = [name for name, _ in case]
        pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path / "base")
        for name in names:
            pipeline.load_lora_weights(str(files[name]), adapter_name=name)
        pipeline.set_adapters(names, [scale for _, scale in case])
        pipeline.fuse_lora(adapter_names=names)
        pipeline.unload_lora_weights()
        fused = tmp_path / "-".join(names)
        pipeline.save_pretrained(fused)
        theirs = _states(parts, fused)
        ours = _states(parts, tmp_path / "base",
                       *(LoraFile(str(files[name]), scale) for name, scale in case))  # fmt: skip
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, rtol=1e-6, atol=1e-6)


def _states(parts: dict[str, Any], path: Path, *loras: LoraFile) -> dict[str, Tensor]:
    loaded = {part: module for part, module in parts.items() if part != "vae"}
    load_parts(path, loaded, loras=loras)
    return {
        f"{part}.{n}": t.clone() for part, m in loaded.items() for n, t in m.state_dict().items()
    }


def _real_files(pipeline: Any, folder: Path) -> dict[str, Path]:
    """Write LoRAs of all layers of a diffusers pipeline: in peft's names, kohya's, and as DoRA."""
    peft, kohya, dora = {}, {}, {}
    for part, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te1_"),
                         ("text_encoder_2", "lora_te2_")):  # fmt: skip
        for name, layer in getattr(pipeline, part).named_modules():
            if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) or "projection" in name:
                continue
            weight, under = layer.weight, prefix + name.replace(".", "_")
            ones = [1] * (weight.ndim - 2)
            down = 0.1 * torch.randn(RANK, *weight.shape[1:])
            up = 0.1 * torch.randn(weight.shape[0], RANK, *ones)
            pair = {f"{part}.{name}.lora_A.weight": down, f"{part}.{name}.lora_B.weight": up}
            peft |= pair
            shape = [1, -1, *ones] if ones else [-1]
            lengths = 0.5 + torch.rand(weight.shape[0]).reshape(shape)
            if part == "unet":  # transformers does not read the lengths of text towers
                dora |= pair | {f"{part}.{name}.lora_magnitude_vector": lengths}
            if "add_embedding" in name:  # diffusers drops it from files with kohya's names
                continue
            kohya |= {f"{under}.lora_down.weight": down, f"{under}.lora_up.weight": up,
                      f"{under}.alpha": torch.tensor(1.0)}  # fmt: skip
    files = {"peft": peft, "kohya": kohya, "dora": dora}
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in files}
