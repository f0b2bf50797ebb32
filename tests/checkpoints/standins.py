"""Small models with the names of the real ones: modules made from tables of tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

WIDTH, CONTEXT = 8, 6


def module_of(tensors: Mapping[str, Tensor], *, device: str = "cpu") -> nn.Module:
    """Build a tree of modules whose state dict has these names and shapes, filled with ones."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        owner = root
        for step in path:
            if not hasattr(owner, step):
                owner.add_module(step, nn.Module())
            owner = owner.get_submodule(step)
        owner.register_parameter(leaf, nn.Parameter(torch.ones(tensor.shape, device=device)))
    return root


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Return one normal tensor a name."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def official_sdxl() -> dict[str, Tensor]:
    """Return the tensors of a file with official SDXL names: two levels, one transformer block."""
    unet = {
        "input_blocks.0.0.weight": (WIDTH, 4, 3, 3),
        "input_blocks.1.0.in_layers.0.weight": (WIDTH,),
        "input_blocks.3.0.op.weight": (WIDTH, WIDTH, 3, 3),
        **_transformer("input_blocks.4.1."),
        **_transformer("middle_block.1."),
        "output_blocks.2.2.conv.weight": (WIDTH, WIDTH, 3, 3),
        "label_emb.0.0.weight": (WIDTH, 5),
        "time_embed.0.weight": (WIDTH, WIDTH),
        "out.2.bias": (4,),
    }
    shapes = {f"model.diffusion_model.{name}": shape for name, shape in unet.items()}
    shapes |= {f"first_stage_model.{name}": shape for name, shape in _vae().items()}
    hf = "conditioner.embedders.0.transformer.text_model."
    shapes |= {f"{hf}{name}": shape for name, shape in _hf_text().items()}
    shapes |= {f"conditioner.embedders.1.model.{n}": shape for n, shape in open_clip().items()}
    return random_tensors(shapes) | {
        f"{hf}embeddings.position_ids": torch.arange(7)[None],
        "conditioner.embedders.1.model.logit_scale": torch.tensor(1.0),
        "denoiser.sigmas": torch.ones(3),
    }


def official_supir() -> dict[str, Tensor]:
    """Return a file's worth of tensors with official SUPIR names."""
    control = {
        "input_hint_block.0.weight": (WIDTH, 4, 3, 3),
        "input_blocks.3.0.op.weight": (WIDTH, WIDTH, 3, 3),
        **_transformer("input_blocks.4.1."),
    }
    shapes = {f"model.control_model.{name}": shape for name, shape in control.items()}
    shapes["model.diffusion_model.project_modules.0.param_free_norm.weight"] = (WIDTH,)
    shapes["model.diffusion_model.project_modules.11.zero_conv.weight"] = (WIDTH, WIDTH, 1, 1)
    shapes["first_stage_model.denoise_encoder.conv_in.weight"] = (WIDTH, 3, 3, 3)
    return random_tensors(shapes, seed=1) | {"model.control_model.mask_LQ": torch.ones(1, 4)}


def open_clip() -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a one-block open_clip text tower."""
    return {
        "token_embedding.weight": (11, WIDTH),
        "positional_embedding": (7, WIDTH),
        "transformer.resblocks.0.ln_1.weight": (WIDTH,),
        "transformer.resblocks.0.attn.in_proj_weight": (3 * WIDTH, WIDTH),
        "transformer.resblocks.0.attn.in_proj_bias": (3 * WIDTH,),
        "transformer.resblocks.0.attn.out_proj.weight": (WIDTH, WIDTH),
        "transformer.resblocks.0.mlp.c_fc.weight": (4 * WIDTH, WIDTH),
        "ln_final.weight": (WIDTH,),
        "text_projection": (WIDTH, 5),
    }


def our_clip_l() -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the same tower without its projection: SDXL's first."""
    return {name: shape for name, shape in open_clip().items() if name != "text_projection"}


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors under a prefix, by the rest of their names."""
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }


def unet_of(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the UNet of `official_sdxl`."""
    return part_of(official, "model.diffusion_model.")


def _transformer(prefix: str) -> dict[str, tuple[int, ...]]:
    block = f"{prefix}transformer_blocks.0."
    return {
        f"{prefix}proj_in.weight": (WIDTH, WIDTH),
        f"{block}attn2.to_k.weight": (WIDTH, CONTEXT),
        f"{block}ff.net.0.proj.weight": (8 * WIDTH, WIDTH),
    }


def _vae() -> dict[str, tuple[int, ...]]:
    return {
        "encoder.conv_in.weight": (WIDTH, 3, 3, 3),
        "encoder.mid.attn_1.q.weight": (WIDTH, WIDTH, 1, 1),
        "encoder.mid.attn_1.norm.weight": (WIDTH,),
        "decoder.up.0.block.0.norm1.weight": (WIDTH,),
        "decoder.up.1.upsample.conv.weight": (WIDTH, WIDTH, 3, 3),
        "quant_conv.weight": (8, 8, 1, 1),
        "post_quant_conv.bias": (4,),
    }


def _hf_text() -> dict[str, tuple[int, ...]]:
    block = "encoder.layers.0."
    thirds = {
        f"{block}self_attn.{letter}_proj.{kind}": shape
        for letter in "kvq"  # the order on disk is not the order of fusion
        for kind, shape in (("weight", (WIDTH, WIDTH)), ("bias", (WIDTH,)))
    }
    return thirds | {
        "embeddings.token_embedding.weight": (11, WIDTH),
        "embeddings.position_embedding.weight": (7, WIDTH),
        f"{block}layer_norm1.weight": (WIDTH,),
        f"{block}self_attn.out_proj.weight": (WIDTH, WIDTH),
        f"{block}mlp.fc1.weight": (4 * WIDTH, WIDTH),
        "final_layer_norm.weight": (WIDTH,),
    }
