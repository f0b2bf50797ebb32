"""Opening weight files: formats, laziness, and what is refused."""

import collections
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from open_supir.checkpoints.files import open_checkpoint, read_safetensors_header
from open_supir.checkpoints.parts import read_contents
from tests.checkpoints.standins import official_sdxl, official_supir


def test_safetensors_and_pickle_hold_the_same(tmp_path: Path, sdxl_file: Path) -> None:
    wanted = official_sdxl()
    pickled = tmp_path / "same.ckpt"
    torch.save(wanted, pickled)
    for path in (sdxl_file, pickled):
        checkpoint = open_checkpoint(path)
        assert set(checkpoint) == set(wanted)
        assert all(torch.equal(checkpoint[key], tensor) for key, tensor in wanted.items())
        assert all(checkpoint.spec(key).shape == tuple(t.shape) for key, t in wanted.items())


def test_tensors_survive_remapping_of_the_file(
    sdxl_file: Path, supir_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tensor read from a fresh mapping; all kept ones stay valid."""
    monkeypatch.setattr("open_supir.checkpoints.files.REMAP_BYTES", 0)
    for path, wanted in ((sdxl_file, official_sdxl()), (supir_file, official_supir())):
        checkpoint = open_checkpoint(path)
        kept = {key: checkpoint[key] for key in checkpoint}
        assert all(torch.equal(kept[key], wanted[key]) for key in wanted)


def test_loaded_tensors_can_be_written_without_touching_the_file(sdxl_file: Path) -> None:
    key = "model.diffusion_model.out.2.bias"
    open_checkpoint(sdxl_file)[key].add_(1)
    assert torch.equal(open_checkpoint(sdxl_file)[key], official_sdxl()[key])


def test_nested_state_dicts_and_other_entries_are_understood(supir_file: Path) -> None:
    torch.save({"state_dict": official_supir(), "epoch": 3, "optimizer": [1, {"a": 2}]}, supir_file)
    assert set(open_checkpoint(supir_file)) == set(official_supir())


def test_training_checkpoints_give_their_average_where_they_have_one(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    name = "network.control.out.0.bias"
    content = {"format": "open-supir", "global_step": 5, "state_dict": {name: torch.zeros(2)}}
    torch.save(content, path)
    assert open_checkpoint(path)[name].sum() == 0
    assert open_checkpoint(path).metadata["weights"] == "raw"
    torch.save(content | {"ema": {name: torch.ones(2)}}, path)
    assert open_checkpoint(path)[name].sum() == 2
    metadata = open_checkpoint(path).metadata
    assert metadata == {"layout": "native", "weights": "averaged", "step": "5"}


def test_missing_file_names_setting_and_source(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.ckpt.*weights\.supir.*SUPIR-v0Q"):
        open_checkpoint(tmp_path / "gone.ckpt", key="weights.supir")


@pytest.mark.parametrize("share", [0.001, 0.3, 0.99])
@pytest.mark.parametrize("name", ["sdxl.safetensors", "supir.ckpt"])
def test_truncated_files_are_refused_at_opening(
    tmp_path: Path, sdxl_file: Path, supir_file: Path, name: str, share: float
) -> None:
    path = tmp_path / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=rf"{name}: (truncated|not a|cannot be read)"):
        open_checkpoint(path)


def test_truncation_states_both_sizes(sdxl_file: Path) -> None:
    size = sdxl_file.stat().st_size
    sdxl_file.write_bytes(sdxl_file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"declares {size:,} bytes, got {size - 100:,}"):
        open_checkpoint(sdxl_file)


def test_empty_file_is_refused(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.ckpt"):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match="not a"):
            open_checkpoint(tmp_path / name)


class _Payload:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": official_supir(), "extra": _Payload(tmp_path / "ran")}, path)
    with pytest.raises(ValueError, match=r"evil\.ckpt: refused.*safetensors"):
        open_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_plain_containers_in_pickles_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "ordered.pt"
    torch.save(collections.OrderedDict(official_supir()), path)
    assert len(open_checkpoint(path)) == len(official_supir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>404, there is nothing here at all", "web page"),
    ],
)
@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_failed_downloads_are_recognised(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        open_checkpoint(tmp_path / name)


def test_other_suffixes_and_empty_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ValueError, match="onnx"):
        open_checkpoint(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="no weights found"):
        open_checkpoint(tmp_path)


def test_header_agrees_with_the_library(sdxl_file: Path) -> None:
    specs, metadata = read_safetensors_header(sdxl_file)
    assert metadata == {}
    assert {key: spec.dtype for key, spec in specs.items()} == {
        key: tensor.dtype for key, tensor in official_sdxl().items()
    }


def _sharded_unet(folder: Path) -> Path:
    unet = folder / "unet"
    unet.mkdir(parents=True)
    save_file({"conv_in.weight": torch.ones(2, 2)}, unet / "part-1.safetensors")
    save_file({"conv_in.bias": torch.zeros(2)}, unet / "part-2.safetensors")
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    weights = {"conv_in.weight": "part-1.safetensors", "conv_in.bias": "part-2.safetensors"}
    index.write_text(json.dumps({"weight_map": weights}))
    return index


def test_sharded_folder_is_one_mapping(tmp_path: Path) -> None:
    _sharded_unet(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint) == {"unet/conv_in.weight", "unet/conv_in.bias"}
    assert checkpoint["unet/conv_in.weight"].sum() == 4


def test_missing_shard_is_named(tmp_path: Path) -> None:
    _sharded_unet(tmp_path)
    (tmp_path / "unet" / "part-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"part-2\.safetensors"):
        open_checkpoint(tmp_path)


def test_shard_index_may_not_point_elsewhere(tmp_path: Path) -> None:
    index = _sharded_unet(tmp_path)
    index.write_text(json.dumps({"weight_map": {"conv_in.bias": "../secret.safetensors"}}))
    with pytest.raises(ValueError, match="in the index.s folder"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.bin",
    ],
)
def test_every_form_of_a_component_is_found(tmp_path: Path, name: str) -> None:
    """Half precision variants, shards, and both together, named as diffusers names them."""
    index = _sharded_unet(tmp_path)
    if name.endswith(".json"):
        index.rename(index.with_name(name))
    else:
        index.unlink()
        tensors = {"conv_in.weight": torch.ones(2, 2), "conv_in.bias": torch.zeros(2)}
        path = index.with_name(name)
        torch.save(tensors, path) if name.endswith(".bin") else save_file(tensors, path)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint) == {"unet/conv_in.weight", "unet/conv_in.bias"}


@pytest.mark.parametrize("as_folder", [True, False])
def test_one_component_may_come_by_itself(tmp_path: Path, as_folder: bool) -> None:
    """A VAE in diffusers' layout, as a file or as its own folder, is known by its names."""
    names = ["decoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.norm1.weight"]
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({name: torch.ones(2) for name in names}, path)
    checkpoint = open_checkpoint(tmp_path if as_folder else path)
    assert set(checkpoint) == {f"vae/{name}" for name in names}
    parts = read_contents(checkpoint).parts
    assert "encoder.down.0.block.0.norm1.weight" in parts["vae"]
