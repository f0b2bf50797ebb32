"""SUPIR files: out of a training checkpoint, back into restoration; and the released ones."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from open_supir.base.files import sha256_of
from open_supir.checkpoints import inspect_checkpoint
from open_supir.checkpoints.convert import convert
from open_supir.commands.evaluate import evaluate
from open_supir.diffusion import SamplerSettings
from open_supir.inference import Restorer
from open_supir.inference.checkpoint import RELEASED, load_networks, read_recipe
from open_supir.networks.build import build_on_meta
from open_supir.training.base_weights import load_base_weights
from open_supir.training.recipe import ARCHITECTURE
from tests.conftest import randomise
from tests.contracts.full_size import full_size_parts
from tests.integration.conftest import Compose
from tests.integration.test_base_weights import built
from tests.test_configs import CONF, ROOT, plain


@pytest.fixture
def checkpoint(composed_in: Compose, tmp_path: Path) -> Path:
    """A stage-2 training checkpoint, saved as training saves one, of random weights."""
    cfg = composed_in("train", "experiment=zerosft_released", "weights.robust_encoder=clean")
    module = built(cfg)
    used = load_base_weights(module, cfg)
    randomise(module.network.control), randomise(module.network.connector)
    recipe = {
        "stage": "supir",
        "architecture": {part: plain(cfg, part) for part in ARCHITECTURE},
        "sampler": {"num_steps": 2},
        "options": {"size_condition": [64, 64]},
        **used,
    }
    path = tmp_path / "last.ckpt"
    state = {"format": "open-supir", "global_step": 7, "recipe": recipe}
    torch.save({**state, "state_dict": module.state_dict()}, path)
    return path


@pytest.fixture
def exported(checkpoint: Path, tmp_path: Path) -> Path:
    """The same as a SUPIR file, as the command line makes it."""
    return converted(checkpoint, tmp_path / "mine.safetensors")


def converted(source: Path, output: Path, **changes: Any) -> Path:
    settings = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/convert.yaml"))
    assert isinstance(settings, dict)
    return convert({**settings, "input": str(source), "output": str(output), **changes})


def test_export_says_what_it_is_and_what_it_belongs_to(exported: Path, workplace: Path) -> None:
    metadata = inspect_checkpoint(exported).metadata
    assert metadata["format"] == "pt" and metadata["layout"] == "supir"
    assert metadata["base"] == "prior.safetensors"
    assert metadata["base_sha256"] == sha256_of(workplace / "prior.safetensors")
    assert metadata["control"] == "full" and metadata["connector"] == "zerosft_released"
    assert metadata["step"] == "7" and metadata["weights"] == "raw"
    assert metadata["base_license"] == metadata["license"] == "unstated"
    assert "weights" not in json.loads(metadata["recipe"])  # paths of this machine


def test_licence_of_the_base_is_passed_on(
    checkpoint: Path, workplace: Path, tmp_path: Path
) -> None:
    """SDXL base says it under `modelspec.license`."""
    base = tmp_path / "sdxl.safetensors"
    words = {"modelspec.license": "CreativeML Open RAIL++-M License"}
    save_file(load_file(workplace / "prior.safetensors"), base, words)
    path = converted(checkpoint, tmp_path / "out.safetensors", base=str(base))
    metadata = inspect_checkpoint(path).metadata
    assert metadata["base_license"] == metadata["license"] == words["modelspec.license"]
    assert metadata["base_sha256"] == sha256_of(base)


def test_exported_file_restores_as_the_checkpoint_does(
    checkpoint: Path, exported: Path, workplace: Path
) -> None:
    image = torch.rand(3, 24, 40)
    base: dict[str, str | None] = {"sdxl": str(workplace / "prior.safetensors")}
    first = Restorer.from_checkpoint(checkpoint)(image, seed=3)
    again = Restorer.from_checkpoint(exported, weights=base)(image, seed=3)
    assert again.options.sampler == first.options.sampler
    assert torch.equal(again.restored, first.restored)


@pytest.fixture
def with_encoder(checkpoint: Path, workplace: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The checkpoint as trained with a robust encoder far from the ordinary one, and its file."""
    encoder = tmp_path / "robust.safetensors"
    tensors = load_file(workplace / "robust.safetensors")
    save_file({name: tensor + 0.05 for name, tensor in tensors.items()}, encoder)
    state = torch.load(checkpoint, weights_only=True)
    state["recipe"]["weights"]["robust_encoder"] = str(encoder)
    path = tmp_path / "stage_2.ckpt"
    torch.save(state, path)
    return path, encoder


def test_base_of_other_contents_is_refused_or_said(
    checkpoint: Path, workplace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "base.safetensors"
    held = load_file(workplace / "prior.safetensors")
    save_file(held, base)
    state = torch.load(checkpoint, weights_only=True)
    state["recipe"]["weights"]["sdxl"] = str(base)
    torch.save(state, checkpoint)
    load_networks(checkpoint)  # a copy elsewhere
    name = next(name for name in held if name.endswith("middle_block.0.in_layers.2.weight"))
    save_file(held | {name: held[name] + 0.01}, base)
    with pytest.raises(ValueError, match=r"base.*not the UNet.*trained with.*weights\.sdxl=FILE"):
        load_networks(checkpoint)
    load_networks(checkpoint, weights={"sdxl": str(workplace / "prior.safetensors")})
    assert "trained with" not in caplog.text
    load_networks(checkpoint, weights={"sdxl": str(base)})
    assert "base.safetensors: not the UNet" in caplog.text


def test_complete_file_restores_alone(checkpoint: Path, tmp_path: Path) -> None:
    whole = converted(checkpoint, tmp_path / "whole.safetensors", format="complete")
    given = load_networks(checkpoint)
    assert read_recipe(whole)["weights"] == {"sdxl": str(whole), "robust_encoder": "clean"}
    alone = load_networks(whole)
    for name in ("network", "vae", "robust_encoder", "conditioner"):
        states = [getattr(networks, name).state_dict() for networks in (given, alone)]
        assert states[0].keys() == states[1].keys()
        for key, tensor in states[0].items():
            torch.testing.assert_close(states[1][key], tensor, rtol=0, atol=0)


def test_complete_file_says_which_base_is_gone(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    state["recipe"]["weights"]["sdxl"] = str(tmp_path / "gone.safetensors")
    torch.save(state, checkpoint)
    with pytest.raises(FileNotFoundError, match=r"gone.*weights\.sdxl.*input=\[FILE"):
        converted(checkpoint, tmp_path / "whole.safetensors", format="complete")
    assert not (tmp_path / "whole.safetensors").exists()


def test_export_brings_the_robust_encoder_in(
    with_encoder: tuple[Path, Path], workplace: Path, tmp_path: Path
) -> None:
    checkpoint, encoder = with_encoder
    image = torch.rand(3, 24, 40)
    base: dict[str, str | None] = {"sdxl": str(workplace / "prior.safetensors")}
    first = Restorer.from_checkpoint(checkpoint)(image)
    output = converted(checkpoint, tmp_path / "mine.safetensors")
    encoder.unlink()
    again = Restorer.from_checkpoint(output, weights=base)(image)
    assert torch.equal(again.restored, first.restored)
    clean = Restorer.from_checkpoint(output, weights={**base, "robust_encoder": "clean"})(image)
    assert not torch.equal(clean.restored, first.restored)


def test_export_refuses_where_the_robust_encoder_is_gone(
    with_encoder: tuple[Path, Path], workplace: Path, tmp_path: Path
) -> None:
    checkpoint, encoder = with_encoder
    moved = encoder.rename(tmp_path / "moved.safetensors")
    output = tmp_path / "mine.safetensors"
    with pytest.raises(FileNotFoundError, match=r"robust\.safetensors: .*input=\[FILE,STAGE_2"):
        converted(checkpoint, output)
    assert not output.exists()
    settings = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/convert.yaml"))
    assert isinstance(settings, dict)
    both = {"input": [str(moved), str(checkpoint)], "output": str(output)}
    assert "robust_encoder" in inspect_checkpoint(convert({**settings, **both})).parts
    trained = converted(checkpoint, tmp_path / "two.safetensors", parts=["control", "connector"])
    base: dict[str, str | None] = {"sdxl": str(workplace / "prior.safetensors")}
    with pytest.raises(ValueError, match=r"two\.safetensors.*set weights\.robust_encoder=FILE"):
        load_networks(trained, weights=base)
    load_networks(trained, weights={**base, "robust_encoder": str(moved)})


def test_exported_file_is_evaluated_where_it_is_told_all_that_a_run_would_say(
    exported: Path, workplace: Path, composed_in: Compose, tmp_path: Path
) -> None:
    settings = [
        f"checkpoint={exported}",
        f"weights.sdxl={workplace / 'prior.safetensors'}",
        "weights.robust_encoder=clean",
        "metrics.names=[psnr]",
        "protocol.repeats=1",
        "protocol.limit=1",
        "device=cpu",
    ]
    with pytest.raises(ValueError, match="set data_root=..., output=..., degradation=..."):
        evaluate(composed_in("evaluate", *settings))
    places = [f"data_root={workplace / 'shards'}", f"output={tmp_path / 'eval'}"]
    table = evaluate(composed_in("evaluate", *settings, *places, "degradation=bicubic"))
    assert "| restored" in table and (tmp_path / "eval/table.csv").is_file()


def test_exported_file_without_its_base_asks_for_it(exported: Path) -> None:
    with pytest.raises(ValueError, match=r"mine\.safetensors does not name.*weights\.sdxl=FILE"):
        load_networks(exported)


def test_networks_load_in_the_type_asked_for(checkpoint: Path) -> None:
    networks = load_networks(checkpoint, dtype=torch.bfloat16)
    for module in (networks.network, networks.conditioner):
        assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in networks.vae.parameters()} == {torch.float32}
    assert not [n for n, p in networks.network.named_parameters() if p.is_meta]


@pytest.mark.parametrize("slot", ["sdxl", "vae", "robust_encoder"])
def test_wrong_file_for_any_slot_of_restoring_is_named(
    checkpoint: Path, tmp_path: Path, slot: str
) -> None:
    lora = tmp_path / "lora.safetensors"
    save_file({"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.zeros(4, 8)}, lora)
    with pytest.raises(ValueError, match=rf"LoRA .*expected for weights\.{slot} "):
        load_networks(checkpoint, weights={slot: str(lora)})


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """The names of SUPIR-v0Q, every tensor one number: what is read of them here is names."""
    prefixes = {"control": "model.control_model.", "connector": "model.diffusion_model."}
    names = [
        prefix + name
        for part, prefix in prefixes.items()
        for name in full_size_parts()[part].state_dict()
    ]
    names += ["first_stage_model.denoise_encoder.conv_in.bias", "model.control_model.mask_LQ"]
    path = tmp_path / "SUPIR-v0Q.ckpt"
    torch.save({"state_dict": {name: torch.zeros(1) for name in names}}, path)
    return path


def test_released_file_is_built_at_sdxl_size_as_its_names_say(released: Path) -> None:
    recipe = read_recipe(released)
    for part, module in full_size_parts().items():
        if part in recipe["architecture"]:
            own = build_on_meta(recipe["architecture"][part]).state_dict()
            assert {n: t.shape for n, t in own.items()} == {
                n: t.shape for n, t in module.state_dict().items()
            }
    assert recipe["weights"] == {"robust_encoder": str(released)}
    assert recipe["options"]["size_condition"] == [1024, 1024]


def test_recipe_of_an_older_checkpoint_restores_alike(checkpoint: Path, tmp_path: Path) -> None:
    """Checkpoints used to record one key `restore`, with the sampler settings inside."""
    state = torch.load(checkpoint, weights_only=True)
    recipe = state["recipe"]
    recipe["restore"] = {"settings": recipe.pop("sampler"), **recipe.pop("options")}
    torch.save(state, tmp_path / "older.ckpt")
    assert read_recipe(tmp_path / "older.ckpt") == read_recipe(checkpoint)


def test_released_settings_are_those_of_the_preset() -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        preset = instantiate(compose("restore", overrides=["sampler=released"]).sampler)
    ours = SamplerSettings(**RELEASED["sampler"])
    assert dataclasses.replace(preset, s_tmax=ours.s_tmax) == ours  # both are beyond every sigma


def test_files_that_do_not_restore_say_what_they_are(workplace: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a stage-2 checkpoint, but an SDXL checkpoint"):
        read_recipe(workplace / "prior.safetensors")
    with pytest.raises(ValueError, match="SUPIR weights .*with the parts robust_encoder"):
        read_recipe(workplace / "robust.safetensors")
    with pytest.raises(FileNotFoundError, match="setting checkpoint"):
        read_recipe(tmp_path / "gone.ckpt")
    stage_1 = tmp_path / "stage_1.ckpt"
    state = {"robust_encoder.encoder.conv_in.bias": torch.zeros(1)}
    recipe = {"stage": "robust_encoder"}
    torch.save({"format": "open-supir", "state_dict": state, "recipe": recipe}, stage_1)
    with pytest.raises(ValueError, match="of stage robust_encoder with the parts robust_encoder"):
        read_recipe(stage_1)
