"""Writing other people's layouts: round trips, metadata, atomicity."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from open_supir.checkpoints import (
    export_diffusers,
    export_native,
    export_sdxl,
    export_supir,
    inspect_checkpoint,
    load_parts,
)
from open_supir.checkpoints.files import TensorSpec
from open_supir.checkpoints.keymaps import is_dropped
from open_supir.checkpoints.safetensors_writer import write_safetensors
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


def _sdxl_parts() -> dict[str, nn.Module]:
    return {
        "unet": module_of(unet_of(official_sdxl())),
        "vae": module_of(part_of(official_sdxl(), "first_stage_model.")),
        "clip_l": module_of(random_tensors(our_clip_l())),
        "clip_g": module_of(random_tensors(open_clip())),
    }


def _loaded(path: Path) -> dict[str, nn.Module]:
    parts = _sdxl_parts()
    load_parts(path, parts)
    return parts


def _weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not is_dropped(key)}


def _assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert set(first) == set(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_sdxl_file_comes_back_as_it_was(tmp_path: Path, sdxl_file: Path) -> None:
    """Everything but the clutter that no part holds; read back by the format's own library."""
    export_sdxl(tmp_path / "out.safetensors", _loaded(sdxl_file), {})
    _assert_same(load_file(tmp_path / "out.safetensors"), _weights(official_sdxl()))


def test_supir_file_holds_the_trained_parts_under_official_names(
    tmp_path: Path, supir_file: Path
) -> None:
    official = official_supir()
    control = part_of(official, "model.control_model.")
    del control["mask_LQ"]
    encoder = part_of(official, "first_stage_model.denoise_")
    parts = {
        "control": module_of(control),
        "connector": module_of(part_of(official, "model.diffusion_model.")),
        "robust_encoder": module_of(encoder | {"quant_conv.weight": torch.ones(8, 8, 1, 1)}),
    }
    load_parts(supir_file, parts)
    path = tmp_path / "out.safetensors"
    export_supir(path, parts, {"step": "30", "license": "mine"})
    _assert_same(load_file(path), _weights(official))
    metadata = inspect_checkpoint(path).metadata
    assert metadata["step"] == "30"
    assert metadata["layout"] == "supir"
    assert metadata["connector"] == "zerosft"
    assert metadata["control"] == "third"  # as deep as the tiny scale's


def test_dtype_is_converted_in_the_file_only(tmp_path: Path) -> None:
    unet = module_of(unet_of(official_sdxl()))
    path = tmp_path / "half.safetensors"
    export_sdxl(path, {"unet": unet}, {}, dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    assert unet.get_parameter("out.2.bias").dtype == torch.float32


def test_text_towers_survive_a_diffusers_folder(tmp_path: Path, sdxl_file: Path) -> None:
    parts = _loaded(sdxl_file)
    folder = tmp_path / "folder"
    export_diffusers(folder, {part: parts[part] for part in ("clip_l", "clip_g")}, {})
    projection = load_file(folder / "text_encoder_2" / "model.safetensors")[
        "text_projection.weight"
    ]
    assert torch.equal(projection, parts["clip_g"].state_dict()["text_projection"].T)
    config = json.loads((folder / "text_encoder_2" / "config.json").read_text())
    assert config["architectures"] == ["CLIPTextModelWithProjection"]
    assert config["vocab_size"] == 11
    assert config["num_hidden_layers"] == 1
    again = {
        "clip_l": module_of(random_tensors(our_clip_l())),
        "clip_g": module_of(random_tensors(open_clip())),
    }
    load_parts(folder, again)
    for part, module in again.items():
        _assert_same(module.state_dict(), parts[part].state_dict())


def test_native_file_holds_any_parts_unsplit(tmp_path: Path, sdxl_file: Path) -> None:
    parts = _loaded(sdxl_file)
    path = tmp_path / "native.safetensors"
    export_native(path, parts, {})
    info = inspect_checkpoint(path)
    assert info.kind == "native"
    assert info.missing == ("connector", "control", "robust_encoder")
    assert "clip_l.transformer.resblocks.0.attn.in_proj_weight" in load_file(path)
    for part, module in _loaded(path).items():
        _assert_same(module.state_dict(), parts[part].state_dict())


def test_metadata_must_be_strings(tmp_path: Path) -> None:
    unet = module_of(unet_of(official_sdxl()))
    with pytest.raises(ValueError, match="'step' is 3"):
        export_sdxl(tmp_path / "a.safetensors", {"unet": unet}, {"step": 3})  # type: ignore[dict-item]


def test_parts_that_the_layout_has_no_place_for_are_refused(tmp_path: Path) -> None:
    unet = module_of(unet_of(official_sdxl()))
    with pytest.raises(ValueError, match="SUPIR file holds the parts control.*got unet"):
        export_supir(tmp_path / "a.safetensors", {"unet": unet}, {})


def test_modules_that_were_never_loaded_are_refused(tmp_path: Path) -> None:
    unet = module_of(unet_of(official_sdxl()), device="meta")
    with pytest.raises(ValueError, match=r"13 tensors were never loaded, first: unet\."):
        export_sdxl(tmp_path / "a.safetensors", {"unet": unet}, {})


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    save_file({"old": torch.ones(2)}, path)

    def fail() -> Tensor:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_safetensors(path, {"new": (TensorSpec((2,), torch.float32), fail)}, {})
    assert list(load_file(path)) == ["old"]
    assert [file.name for file in tmp_path.iterdir()] == ["kept.safetensors"]


def test_writer_agrees_with_the_library_on_every_dtype(tmp_path: Path) -> None:
    """Odd sizes and all widths at once: offsets, alignment, scalars and empty tensors."""
    tensors = {
        "f32": torch.randn(3, 5),
        "bf16": torch.randn(7).bfloat16(),
        "f16": torch.randn(1, 3).half(),
        "f64": torch.randn(2).double(),
        "i64": torch.arange(3),
        "u8": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "transposed": torch.randn(4, 3).T,
        "f8": torch.randn(3).to(torch.float8_e4m3fn),
    }
    entries = {
        key: (TensorSpec(tuple(t.shape), t.dtype), lambda t=t: t) for key, t in tensors.items()
    }
    path = tmp_path / "all.safetensors"
    write_safetensors(path, entries, {"words": "gr\u00fc\u00dfe"})
    read = load_file(path)
    assert {key: tensor.dtype for key, tensor in read.items()} == {
        key: tensor.dtype for key, tensor in tensors.items()
    }
    assert all(torch.equal(read[key].float(), tensors[key].float()) for key in tensors)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "words": "gr\u00fc\u00dfe"}
