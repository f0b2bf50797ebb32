"""Diffusers folders of real networks: our own round trip, and diffusers as a second reader."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from open_supir.checkpoints import export_diffusers, inspect_checkpoint, load_parts
from open_supir.checkpoints.diffusers_config import tokenizer_files
from open_supir.networks import AutoencoderKL, Conditioner, Conditioning, ControlAdaptor, UNet
from open_supir.networks.conditioner import (
    TextTowerConfig,
    encode_text,
    pad_with_end,
    tokenize,
    vocabulary,
)

TRUNK = {
    "in_channels": 4,
    "model_channels": 32,
    "channel_mult": (1, 2, 4),
    "num_res_blocks": 2,
    "transformer_depth": (0, 1, 2),
    "head_channels": 64,
    "context_dim": 128,
    "vector_dim": 64 + 6 * 16,
}


def image_parts() -> dict[str, Any]:
    torch.manual_seed(0)
    parts = {
        "unet": UNet(out_channels=4, **TRUNK),
        "control": ControlAdaptor(**TRUNK),
        "vae": AutoencoderKL(
            ch=32, ch_mult=(1, 2, 4, 4), num_res_blocks=2, z_channels=4, scale_factor=0.13025
        ),
    }
    return {part: _randomise(module) for part, module in parts.items()}


def small_conditioner() -> Conditioner:
    conditioner = Conditioner(
        clip_l=TextTowerConfig(width=64, layers=3, heads=1, quick_gelu=True),
        clip_g=TextTowerConfig(width=64, layers=3, heads=1),
        size_channels=16,
    )
    _randomise(conditioner)
    return conditioner


def _randomise(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.05)
    return module


def test_folder_gives_the_same_networks_back(tmp_path: Path) -> None:
    parts = image_parts()
    export_diffusers(tmp_path, parts, {"step": "1"})
    assert inspect_checkpoint(tmp_path).metadata["step"] == "1"
    wanted = {part: module.state_dict() for part, module in parts.items()}
    fresh = {part: module.to("meta") for part, module in parts.items()}
    load_parts(tmp_path, fresh)
    for part, module in fresh.items():
        state = module.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in wanted[part].items())


def test_tokenizers_of_the_folder_give_the_numbers_that_ours_do(tmp_path: Path) -> None:
    """Read back by transformers; the first pads with the end mark, the second with 0. (SDXL's
    second names "!" as its padding and so takes every "!" for it; ours does not.)
    """
    transformers = pytest.importorskip("transformers")
    for name, text in tokenizer_files(*vocabulary()).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    captions = [
        "A photo of a cat, 8k.",
        "",
        "na\u00efve caf\u00e9 \u4e2d\u6587 it's",
        "sharp " * 100,
    ]
    ours = tokenize(captions)
    for folder, expected in (("tokenizer", pad_with_end(ours)), ("tokenizer_2", ours)):
        theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / folder)
        out = theirs(captions, padding="max_length", truncation=True, return_tensors="pt")
        assert torch.equal(out.input_ids, expected)


@pytest.mark.slow
def test_diffusers_computes_the_same_from_the_folder(tmp_path: Path) -> None:
    """Every name found, and equal outputs; fp32 on the CPU, so only summation order may differ."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    parts, conditioner = image_parts(), small_conditioner()
    del parts["control"]
    towers = {"clip_l": conditioner.clip_l, "clip_g": conditioner.clip_g}
    export_diffusers(tmp_path, parts | towers, {})
    readers = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
    }
    theirs = {}
    for folder, reader in readers.items():
        theirs[folder], info = reader.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]

    tokens = torch.randint(1, 49000, (2, 77))
    tokens[:, 20], tokens[:, 21:] = 49407, 0
    x, pooled = torch.randn(2, 4, 8, 8), torch.randn(2, 64)
    sizes = torch.tensor([[512.0, 512, 0, 0, 512, 512]]).repeat(2, 1)
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        for tower, folder in zip(towers.values(), list(readers)[2:], strict=True):
            hidden = theirs[folder](tokens, output_hidden_states=True).hidden_states[-2]
            torch.testing.assert_close(encode_text(tower, tokens)[0], hidden)
        context = torch.randn(2, 77, 128)
        vector = torch.cat([pooled, conditioner.embed_sizes(sizes)], dim=-1)
        t = torch.tensor([10, 500])
        out = theirs["unet"](
            x, t, context, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}
        ).sample
        torch.testing.assert_close(parts["unet"](x, t, Conditioning(context, vector)), out)
        z = parts["vae"].encode(image)
        mean = theirs["vae"].encode(image).latent_dist.mean
        torch.testing.assert_close(z, 0.13025 * mean)
        torch.testing.assert_close(parts["vae"].decode(z), theirs["vae"].decode(mean).sample)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_diffusers_reads_our_folder_whole_and_we_read_the_shards_it_writes(
    tmp_path: Path, variant: str | None
) -> None:
    """The pipeline finds every component; saved again in shards, the same weights come back."""
    diffusers = pytest.importorskip("diffusers")
    parts, conditioner = image_parts(), small_conditioner()
    del parts["control"]
    towers = {"clip_l": conditioner.clip_l, "clip_g": conditioner.clip_g}
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    export_diffusers(ours, parts | towers, {}, tokens=vocabulary())
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(ours)
    assert torch.equal(pipeline.tokenizer("a cat", return_tensors="pt").input_ids[0, :3],
                       tokenize(["a cat"])[0, :3])  # fmt: skip
    pipeline.save_pretrained(theirs, max_shard_size="2MB", variant=variant)
    assert len([*theirs.glob("unet/*.safetensors")]) > 1 and [*theirs.glob("unet/*index*.json")]

    wanted = {p: {n: t.clone() for n, t in m.state_dict().items()}
              for p, m in (parts | towers).items()}  # fmt: skip
    fresh = {part: module.to("meta") for part, module in (parts | towers).items()}
    load_parts(theirs, fresh)
    for part, module in fresh.items():
        state = module.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in wanted[part].items())
