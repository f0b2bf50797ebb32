"""Loading parts into modules: values, accounting for names, failure messages."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from open_supir.checkpoints import load_parts
from open_supir.checkpoints.load import Load, load_all, prediction_of
from tests.checkpoints.standins import (
    module_of,
    official_sdxl,
    official_supir,
    open_clip,
    our_clip_l,
    part_of,
    random_tensors,
    unet_of,
)

HF = "conditioner.embedders.0.transformer.text_model."
VAE = "first_stage_model."


def _supir_parts() -> dict[str, nn.Module]:
    official = official_supir()
    control = part_of(official, "model.control_model.")
    del control["mask_LQ"]
    encoder = part_of(official, f"{VAE}denoise_")
    shared = {"quant_conv.weight": torch.ones(8, 8, 1, 1)}
    return {
        "control": module_of(control),
        "connector": module_of(part_of(official, "model.diffusion_model.")),
        "robust_encoder": module_of(encoder | shared),
    }


def test_parts_get_the_values_of_the_file(sdxl_file: Path) -> None:
    official = official_sdxl()
    unet = module_of(unet_of(official), device="meta")
    vae = module_of(part_of(official, VAE))
    report = load_parts(sdxl_file, {"unet": unet, "vae": vae})
    for module, prefix in ((unet, "model.diffusion_model."), (vae, VAE)):
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, official[prefix + name])
    assert {part: len(names) for part, names in report.loaded.items()} == {"unet": 13, "vae": 7}
    assert not report.missing and not report.unexpected and not report.on_meta


def test_the_log_names_each_part_once_with_its_last_file(
    sdxl_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vae = part_of(official_sdxl(), VAE)
    other = tmp_path / "vae.safetensors"
    save_file({f"{VAE}{name}": tensor for name, tensor in vae.items()}, other)
    unet, module = module_of(unet_of(official_sdxl())), module_of(vae)
    with caplog.at_level("INFO", "open_supir.checkpoints.load"):
        load_all(
            [
                Load(path=sdxl_file, parts={"unet": unet, "vae": module}),
                Load(path=other, parts={"vae": module}),
            ]
        )
    assert caplog.messages == [f"UNet: from {sdxl_file}", f"autoencoder: from {other}"]


@pytest.mark.parametrize(
    ("metadata", "keys", "prediction"),
    [
        ({}, [], "eps"),
        ({}, ["v_pred"], "v"),
        ({"prediction": "edm"}, [], "edm"),
        ({"modelspec.prediction_type": "epsilon"}, [], "eps"),
        ({"modelspec.prediction_type": "v"}, [], "v"),
        ({"recipe": '{"architecture": {"denoiser": {"prediction": "edm"}}}'}, [], "edm"),
    ],
)
def test_prediction_is_what_the_file_says(
    tmp_path: Path, metadata: dict[str, str], keys: list[str], prediction: str
) -> None:
    path = tmp_path / "base.safetensors"
    save_file({key: torch.zeros(1) for key in ["a", *keys]}, path, metadata=metadata or None)
    assert prediction_of(path) == prediction


def test_text_towers_get_fused_projections(sdxl_file: Path) -> None:
    official = official_sdxl()
    towers = {
        "clip_l": module_of(random_tensors(our_clip_l()), device="meta"),
        "clip_g": module_of(random_tensors(open_clip()), device="meta"),
    }
    load_parts(sdxl_file, towers)
    prefix = f"{HF}encoder.layers.0.self_attn."
    thirds = [official[f"{prefix}{letter}_proj.weight"] for letter in "qkv"]
    fused = towers["clip_l"].state_dict()["transformer.resblocks.0.attn.in_proj_weight"]
    assert torch.equal(fused, torch.cat(thirds))
    projection = towers["clip_g"].state_dict()["text_projection"]
    assert torch.equal(projection, official["conditioner.embedders.1.model.text_projection"])


@pytest.mark.parametrize("prefixed", [True, False])
def test_supir_weights_load_with_and_without_prefixes(
    tmp_path: Path, supir_file: Path, prefixed: bool
) -> None:
    path = supir_file
    if not prefixed:
        path = tmp_path / "pruned.safetensors"
        bare = {
            key.removeprefix("model.").removeprefix("diffusion_model."): tensor
            for key, tensor in official_supir().items()
        }
        save_file(bare, path)
    parts = _supir_parts()
    report = load_parts(path, parts)
    encoder = parts["robust_encoder"].state_dict()
    wanted = official_supir()[f"{VAE}denoise_encoder.conv_in.weight"]
    assert torch.equal(encoder["encoder.conv_in.weight"], wanted)
    assert report.missing == {"robust_encoder": ("quant_conv.weight",)}
    assert (encoder["quant_conv.weight"] == 1).all()


def test_robust_encoder_takes_quant_conv_from_the_vae(sdxl_file: Path) -> None:
    encoder = _supir_parts()["robust_encoder"]
    load_parts(
        sdxl_file, {"robust_encoder": encoder}, expected_missing=["robust_encoder.encoder.*"]
    )
    wanted = official_sdxl()[f"{VAE}quant_conv.weight"]
    assert torch.equal(encoder.state_dict()["quant_conv.weight"], wanted)


def test_dtype_is_the_files_unless_given(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({key: tensor.half() for key, tensor in official_sdxl().items()}, path)
    unet = module_of(unet_of(official_sdxl()))
    load_parts(path, {"unet": unet})
    assert {tensor.dtype for tensor in unet.state_dict().values()} == {torch.float16}
    load_parts(path, {"unet": unet}, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in unet.state_dict().values()} == {torch.bfloat16}


def test_loading_keeps_what_is_frozen_frozen(sdxl_file: Path) -> None:
    unet = module_of(unet_of(official_sdxl())).requires_grad_(False)
    unet.get_parameter("out.2.bias").requires_grad_(True)
    load_parts(sdxl_file, {"unet": unet})
    assert [n for n, p in unet.named_parameters() if p.requires_grad] == ["out.2.bias"]


def test_missing_keys_are_counted_and_the_first_is_named(sdxl_file: Path) -> None:
    extra = {"new.one.weight": torch.ones(1), "new.two.weight": torch.ones(1)}
    unet = module_of(unet_of(official_sdxl()) | extra)
    with pytest.raises(KeyError, match=r"2 keys missing from part 'unet', first: new\.one\.weight"):
        load_parts(sdxl_file, {"unet": unet})
    report = load_parts(sdxl_file, {"unet": unet}, expected_missing=["unet.new.*"])
    assert report.missing == {"unet": ("new.one.weight", "new.two.weight")}


def test_unexpected_keys_are_errors_unless_ignored(sdxl_file: Path) -> None:
    held = unet_of(official_sdxl())
    del held["out.2.bias"]
    with pytest.raises(KeyError, match=r"1 keys unexpected in part 'unet', first: out\.2\.bias"):
        load_parts(sdxl_file, {"unet": module_of(held)})
    report = load_parts(sdxl_file, {"unet": module_of(held)}, ignored=["unet.out.*"])
    assert report.unexpected == {"unet": ("out.2.bias",)}


@pytest.mark.parametrize(
    ("key", "said"),
    [("ztsnr", "1 keys of no known part, first: ztsnr"), ("v_pred", "train with denoiser=v")],
)
def test_keys_of_no_part_are_errors_unless_ignored(tmp_path: Path, key: str, said: str) -> None:
    """Such a key can change what the weights mean, as in v-prediction fine-tunes."""
    path = tmp_path / "v.safetensors"
    save_file(official_sdxl() | {key: torch.ones(1)}, path)
    unet = module_of(unet_of(official_sdxl()))
    with pytest.raises(KeyError, match=said):
        load_parts(path, {"unet": unet})
    assert load_parts(path, {"unet": unet}, ignored=[key]).unexpected == {"": (key,)}


def test_shapes_that_differ_are_named_and_nothing_is_loaded(sdxl_file: Path) -> None:
    held = unet_of(official_sdxl())
    held["out.2.bias"] = torch.ones(9)
    unet = module_of(held)
    with pytest.raises(ValueError, match=r"1 tensors.*out\.2\.bias is \[4\].*\[9\] in the module"):
        load_parts(sdxl_file, {"unet": unet})
    assert all((tensor == 1).all() for tensor in unet.state_dict().values())


def test_absent_part_is_told_with_what_the_file_holds(sdxl_file: Path) -> None:
    words = r"nothing for control, connector.*SDXL checkpoint.*parts unet, vae.*weights\.supir"
    with pytest.raises(ValueError, match=words):
        load_parts(sdxl_file, _supir_parts(), key="weights.supir")


def test_control_of_another_depth_is_explained(tmp_path: Path) -> None:
    names = [f"input_blocks.4.1.transformer_blocks.{n}.norm1.bias" for n in range(5)]
    names += ["input_blocks.3.0.op.weight", "input_blocks.1.1.transformer_blocks.0.norm1.bias"]
    held = {name: torch.ones(2) for name in names}
    path = tmp_path / "half.safetensors"
    save_file({f"control_model.{name}": tensor for name, tensor in held.items()}, path)
    deeper = held | {names[0].replace("blocks.0", "blocks.5"): torch.ones(2)}
    with pytest.raises(KeyError, match=r"\[1, 5\] blocks deep.*\[1, 6\]; run with control=half"):
        load_parts(path, {"control": module_of(deeper)})


def test_half_a_fused_projection_is_refused(tmp_path: Path) -> None:
    official = official_sdxl()
    del official[f"{HF}encoder.layers.0.self_attn.k_proj.bias"]
    path = tmp_path / "broken.safetensors"
    save_file(official, path)
    with pytest.raises(ValueError, match="in_proj_bias lacks its pieces k"):
        load_parts(path, {"unet": module_of(unet_of(official))})


def test_unknown_part_is_refused_with_the_known_ones(sdxl_file: Path) -> None:
    with pytest.raises(ValueError, match="unknown parts text; known: unet"):
        load_parts(sdxl_file, {"text": nn.Linear(1, 1)})


def test_what_stays_on_meta_is_reported(sdxl_file: Path) -> None:
    unet = module_of(unet_of(official_sdxl()), device="meta")
    unet.register_buffer("mask", torch.empty(2, device="meta"), persistent=False)
    assert load_parts(sdxl_file, {"unet": unet}).on_meta == {"unet": ("mask",)}


def test_parts_without_weights_load_from_any_file(supir_file: Path) -> None:
    report = load_parts(supir_file, {"connector": nn.Module()}, ignored=["connector.*"])
    assert report.loaded == {"connector": ()}


def test_part_may_start_as_a_copy_of_another(sdxl_file: Path) -> None:
    """An adaptor is the UNet's encoder by name; what it lacks of the UNet is no mistake."""
    unet = unet_of(official_sdxl())
    names = ["input_blocks.0.0.weight", "input_blocks.4.1.proj_in.weight", "time_embed.0.weight"]
    own = {name: unet[name] for name in names} | {"input_hint_block.0.weight": torch.ones(2)}
    control = module_of(own, device="meta")
    arguments = {"taken_from": {"control": "unet"}, "dtype": torch.float32}
    with pytest.raises(KeyError, match="1 keys missing from part 'control', first: input_hint"):
        load_parts(sdxl_file, {"control": control}, **arguments)
    expected = ["control.input_hint_block.*"]
    report = load_parts(sdxl_file, {"control": control}, **arguments, expected_missing=expected)
    assert report.on_meta == {"control": ("input_hint_block.0.weight",)}
    state = control.state_dict()
    assert all(torch.equal(state[name], unet[name]) for name in names)


def test_copy_of_an_absent_part_names_that_part(supir_file: Path) -> None:
    control = module_of({"input_blocks.0.0.weight": torch.ones(2)})
    with pytest.raises(ValueError, match=r"nothing for unet; .*expected for weights\.sdxl: unet"):
        load_parts(
            supir_file, {"control": control}, taken_from={"control": "unet"}, key="weights.sdxl"
        )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "out.2.bias holds NaN or infinity"),
        (float("inf"), "out.2.bias holds NaN or infinity"),
        (1e5, "out.2.bias does not fit into float16; use dtype=bfloat16"),  # 65504 is the largest
    ],
)
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float, said: str) -> None:
    path = tmp_path / "sdxl.safetensors"
    tensors = official_sdxl()
    tensors["model.diffusion_model.out.2.bias"][1] = value
    save_file(tensors, path)
    unet = module_of(unet_of(tensors))
    with pytest.raises(ValueError, match=said):
        load_parts(path, {"unet": unet}, dtype=torch.float16)
