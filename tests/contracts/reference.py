"""SDXL's and SUPIR's arithmetic a second time: functions over tensors under their official names.

Written from the published shapes and formulas, on purpose without a module of ours: numbers of
blocks and heads are read off the names, nothing is fused, attention is two matrix products and a
softmax. It runs in any dtype; the tests run it in float64. It is itself checked against the golden
values, and then stands in for them at other weights, sizes and dtypes.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = Mapping[str, Tensor]
HEAD = 64  # channels of an attention head; no shape tells


class Names:
    """Tensors below a prefix."""

    def __init__(self, tensors: Tensors, prefix: str = "") -> None:
        self.tensors, self.prefix = tensors, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name]

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def at(self, name: str) -> "Names":
        return Names(self.tensors, f"{self.prefix}{name}.")

    def has(self, name: str) -> bool:
        return any(key.startswith(f"{self.prefix}{name}.") for key in self.tensors)

    def count(self, name: str) -> int:
        n = 0
        while self.has(f"{name}.{n}" if name else str(n)):
            n += 1
        return n


def conv(w: Names, x: Tensor, *, stride: int = 1, padding: int | None = None) -> Tensor:
    weight = w["weight"]
    return F.conv2d(
        x, weight, w["bias"], stride, weight.shape[-1] // 2 if padding is None else padding
    )


def linear(w: Names, x: Tensor) -> Tensor:
    out = x @ w["weight"].T
    return out + w["bias"] if "bias" in w else out


def group_norm(w: Names, x: Tensor, eps: float) -> Tensor:
    grouped = x.reshape(len(x), 32, -1)
    mean = grouped.mean(-1, keepdim=True)
    var = grouped.var(-1, unbiased=False, keepdim=True)
    normed = ((grouped - mean) / (var + eps).sqrt()).reshape(x.shape)
    return normed * w["weight"][:, None, None] + w["bias"][:, None, None]


def layer_norm(w: Names, x: Tensor) -> Tensor:
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * w["weight"] + w["bias"]


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def sinusoids(values: Tensor, width: int) -> Tensor:
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=values.dtype) / half)
    angles = values[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Attend with tokens (B, N, C) split into heads of consecutive channels."""
    split = [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v)]
    scores = split[0] @ split[1].transpose(-1, -2) / math.sqrt(split[0].shape[-1])
    weights = (scores if mask is None else scores + mask).softmax(-1)
    return (weights @ split[2]).transpose(1, 2).flatten(2)


def attention(w: Names, x: Tensor, context: Tensor) -> Tensor:
    q, k, v = linear(w.at("to_q"), x), linear(w.at("to_k"), context), linear(w.at("to_v"), context)
    return linear(w.at("to_out.0"), attend(q, k, v, q.shape[-1] // HEAD))


def tokens_of(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def image_of(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


def transformer(w: Names, x: Tensor, context: Tensor) -> Tensor:
    h = linear(w.at("proj_in"), tokens_of(group_norm(w.at("norm"), x, 1e-6)))
    for n in range(w.count("transformer_blocks")):
        block = w.at(f"transformer_blocks.{n}")
        normed = layer_norm(block.at("norm1"), h)
        h = h + attention(block.at("attn1"), normed, normed)
        h = h + attention(block.at("attn2"), layer_norm(block.at("norm2"), h), context)
        value, gate = linear(
            block.at("ff.net.0.proj"), layer_norm(block.at("norm3"), h)
        ).chunk(2, -1)  # fmt: skip
        h = h + linear(block.at("ff.net.2"), value * gelu(gate))
    return x + image_of(linear(w.at("proj_out"), h), x)


def res_block(w: Names, x: Tensor, emb: Tensor) -> Tensor:
    h = conv(w.at("in_layers.2"), silu(group_norm(w.at("in_layers.0"), x, 1e-5)))
    h = h + linear(w.at("emb_layers.1"), silu(emb))[:, :, None, None]
    h = conv(w.at("out_layers.3"), silu(group_norm(w.at("out_layers.0"), h, 1e-5)))
    return (conv(w.at("skip_connection"), x) if w.has("skip_connection") else x) + h


def upsample(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def embed(w: Names, t: Tensor, vector: Tensor) -> Tensor:
    time = sinusoids(t.to(vector.dtype), w["time_embed.0.weight"].shape[1])
    out = linear(w.at("time_embed.2"), silu(linear(w.at("time_embed.0"), time)))
    label = w.at("label_emb.0")
    return out + linear(label.at("2"), silu(linear(label.at("0"), vector)))


def encode(
    w: Names, x: Tensor, emb: Tensor, context: Tensor, hint: Tensor | None = None
) -> list[Tensor]:
    """Return the encoder's outputs and, last, the middle block's."""
    h, outputs = x, []
    for n in range(w.count("input_blocks")):
        block = w.at(f"input_blocks.{n}")
        if block.has("0.op"):
            h = conv(block.at("0.op"), h, stride=2)
        elif block.has("0.in_layers"):
            h = res_block(block.at("0"), h, emb)
            h = transformer(block.at("1"), h, context) if block.has("1") else h
        else:
            h = conv(block.at("0"), h)
            h = h if hint is None else h + hint
        outputs.append(h)
    middle = w.at("middle_block")
    h = transformer(middle.at("1"), res_block(middle.at("0"), h, emb), context)
    return [*outputs, res_block(middle.at("2"), h, emb)]


def control_features(
    w: Names, x: Tensor, t: Tensor, context: Tensor, vector: Tensor, z_lq: Tensor
) -> list[Tensor]:
    hint = conv(w.at("input_hint_block.0"), z_lq)
    return encode(w, x, embed(w, t, vector), context, hint)


def zero_sft(w: Names, c: Tensor, skip: Tensor, h: Tensor | None, scale: float) -> Tensor:
    controlled = skip + conv(w.at("zero_conv"), c)
    raw, x = skip, controlled
    if h is not None:
        raw, x = torch.cat([h, skip], 1), torch.cat([h, controlled], 1)
    shared = silu(conv(w.at("mlp_shared.0"), c))
    gain, bias = conv(w.at("zero_mul"), shared), conv(w.at("zero_add"), shared)
    out = group_norm(w.at("param_free_norm"), x, 1e-5) * (1 + gain) + bias
    return scale * out + (1 - scale) * raw


def zero_cross_attention(w: Names, c: Tensor, x: Tensor, scale: float) -> Tensor:
    normed, context = group_norm(w.at("norm1"), x, 1e-5), group_norm(w.at("norm2"), c, 1e-5)
    out = attention(w.at("attn"), tokens_of(normed), tokens_of(context))
    return x + scale * image_of(out, x)


def controlled_unet(
    unet: Names,
    connector: Names,
    control: list[Tensor],
    x: Tensor,
    t: Tensor,
    context: Tensor,
    vector: Tensor,
    scale: float,
) -> Tensor:
    """SUPIR's joint forward; module 11 joins the middle, 3 and 7 attend before the upsamplings."""
    joints = [connector.at(f"project_modules.{n}") for n in range(12)]
    emb = embed(unet, t, vector)
    *skips, h = encode(unet, x, emb, context)
    h = zero_sft(joints[11], control[9], h, None, scale)
    numbers = iter([10, 9, 8, 6, 5, 4, 2, 1, 0])
    for n, skip in enumerate(reversed(skips)):
        c, block = control[8 - n], unet.at(f"output_blocks.{n}")
        h = zero_sft(joints[next(numbers)], c, skip, h, scale)
        h = res_block(block.at("0"), h, emb)
        h = transformer(block.at("1"), h, context) if block.has("1.norm") else h
        if block.has("2.conv"):
            h = zero_cross_attention(joints[{2: 7, 5: 3}[n]], c, h, scale)
            h = conv(block.at("2.conv"), upsample(h))
    return conv(unet.at("out.2"), silu(group_norm(unet.at("out.0"), h, 1e-5)))


def vae_res_block(w: Names, x: Tensor) -> Tensor:
    h = conv(w.at("conv1"), silu(group_norm(w.at("norm1"), x, 1e-6)))
    h = conv(w.at("conv2"), silu(group_norm(w.at("norm2"), h, 1e-6)))
    return (conv(w.at("nin_shortcut"), x) if w.has("nin_shortcut") else x) + h


def vae_middle(w: Names, x: Tensor) -> Tensor:
    h = vae_res_block(w.at("block_1"), x)
    attn = w.at("attn_1")
    normed = group_norm(attn.at("norm"), h, 1e-6)
    q, k, v = (tokens_of(conv(attn.at(name), normed)) for name in "qkv")
    h = h + conv(attn.at("proj_out"), image_of(attend(q, k, v, 1), h))
    return vae_res_block(w.at("block_2"), h)


def vae_encode(w: Names, image: Tensor) -> Tensor:
    """Map images to moments before `quant_conv`."""
    h = conv(w.at("conv_in"), image)
    for level in range(w.count("down")):
        stage = w.at(f"down.{level}")
        for n in range(stage.count("block")):
            h = vae_res_block(stage.at(f"block.{n}"), h)
        if stage.has("downsample"):
            h = conv(stage.at("downsample.conv"), F.pad(h, (0, 1, 0, 1)), stride=2, padding=0)
    h = vae_middle(w.at("mid"), h)
    return conv(w.at("conv_out"), silu(group_norm(w.at("norm_out"), h, 1e-6)))


def vae_decode(w: Names, z: Tensor) -> Tensor:
    """Map unscaled latents after `post_quant_conv` to images."""
    h = vae_middle(w.at("mid"), conv(w.at("conv_in"), z))
    for level in reversed(range(w.count("up"))):
        stage = w.at(f"up.{level}")
        for n in range(stage.count("block")):
            h = vae_res_block(stage.at(f"block.{n}"), h)
        if stage.has("upsample"):
            h = conv(stage.at("upsample.conv"), upsample(h))
    return conv(w.at("conv_out"), silu(group_norm(w.at("norm_out"), h, 1e-6)))


def clip_l_penultimate(w: Names, tokens: Tensor, heads: int) -> Tensor:
    """Return transformers' `hidden_states[-2]` of CLIP's text model, of tensors in its layout."""
    text = w.at("text_model")
    h = text["embeddings.token_embedding.weight"][tokens]
    h = h + text["embeddings.position_embedding.weight"][: tokens.shape[1]]
    for n in range(text.count("encoder.layers") - 1):
        layer = text.at(f"encoder.layers.{n}")
        normed = layer_norm(layer.at("layer_norm1"), h)
        q, k, v = (linear(layer.at(f"self_attn.{name}_proj"), normed) for name in "qkv")
        attended = attend(q, k, v, heads, causal(tokens, h.dtype))
        h = h + linear(layer.at("self_attn.out_proj"), attended)
        inner = linear(layer.at("mlp.fc1"), layer_norm(layer.at("layer_norm2"), h))
        h = h + linear(layer.at("mlp.fc2"), inner / (1 + (-1.702 * inner).exp()))  # quick GELU
    return h


def clip_g_outputs(w: Names, tokens: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Return the last block's input and the pooled projection, of tensors in open_clip's layout."""
    h = w["token_embedding.weight"][tokens] + w["positional_embedding"][: tokens.shape[1]]
    penultimate = h
    for n in range(w.count("transformer.resblocks")):
        penultimate, block = h, w.at(f"transformer.resblocks.{n}")
        normed = layer_norm(block.at("ln_1"), h)
        fused = normed @ block["attn.in_proj_weight"].T + block["attn.in_proj_bias"]
        attended = attend(*fused.chunk(3, -1), heads, causal(tokens, h.dtype))
        h = h + linear(block.at("attn.out_proj"), attended)
        inner = linear(block.at("mlp.c_fc"), layer_norm(block.at("ln_2"), h))
        h = h + linear(block.at("mlp.c_proj"), gelu(inner))
    end = tokens.argmax(-1)  # the end mark has the largest number
    last = layer_norm(w.at("ln_final"), h)[torch.arange(len(tokens)), end]
    return penultimate, last @ w["text_projection"]


def causal(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    length = tokens.shape[1]
    return torch.full((length, length), -math.inf, dtype=dtype).triu(1)
