"""Text and size conditioning of SDXL: two CLIP text towers and an embedding of three image sizes.

Shapes: B batch, 77 tokens, L and G the widths of the two towers. Towers are open_clip's text
transformers; the visual halves are never built.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from open_supir.base.registry import register
from open_supir.base.upload import upload
from open_supir.networks.layers import sinusoidal_embedding

NUM_TOKENS = 77
END_OF_TEXT = 49407


class Conditioning(NamedTuple):
    """Caption and sizes of images: context (B, 77, L + G), vector (B, G_pooled + sizes)."""

    context: Tensor
    vector: Tensor


@register
@dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """Size of one text tower.

    SDXL has 768 channels, 12 layers, 12 heads, quick GELU; and 1280, 32, 20, GELU.
    """

    width: int
    layers: int
    heads: int
    quick_gelu: bool = False

    def __post_init__(self) -> None:
        if self.layers < 2 or self.width % self.heads:
            raise ValueError(
                f"a text tower needs two layers and a width divisible by its heads, got {self}"
            )


@register
class Conditioner(nn.Module):
    """Captions and sizes -> Conditioning.

    The context is both towers' tokens after the penultimate block, without the final norm. The
    vector is the second tower's pooled projection, then the embedded original size, crop corner and
    target size.

    Args:
        clip_l: The tower whose padding is the end-of-text token (OpenAI CLIP-L in SDXL).
        clip_g: The tower whose padding is 0 and whose pooled output is used (OpenCLIP bigG in
            SDXL).
        size_channels: Channels per embedded size number, of which there are six; 256 in SDXL.
    """

    def __init__(
        self, *, clip_l: TextTowerConfig, clip_g: TextTowerConfig, size_channels: int
    ) -> None:
        super().__init__()
        self.clip_l = _text_tower(clip_l, projected=False)
        self.clip_g = _text_tower(clip_g, projected=True)
        self.size_channels = size_channels
        self.context_dim = clip_l.width + clip_g.width
        self.vector_dim = clip_g.width + 6 * size_channels

    def forward(self, captions: list[str] | Tensor, sizes: Tensor) -> Conditioning:
        """Encode B captions, or their tokens (B, 77), and sizes (B, 6).

        Sizes are original, crop corner, target; (h, w) in pixels.
        """
        return self.with_sizes(*self.encode(captions, sizes.device), sizes)

    def encode(self, captions: list[str] | Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Encode B captions, or their tokens (B, 77) on `device`.

        Returns:
            Context (B, 77, L + G) and pooled text (B, G_pooled).
        """
        if isinstance(captions, Tensor):
            tokens = captions
        else:
            tokens = upload({"tokens": tokenize(captions)}, device)["tokens"]
        penultimate_l, _ = encode_text(self.clip_l, pad_with_end(tokens))
        penultimate_g, pooled = encode_text(self.clip_g, tokens)
        return torch.cat([penultimate_l, penultimate_g], dim=-1), pooled

    def with_sizes(self, context: Tensor, pooled: Tensor, sizes: Tensor) -> Conditioning:
        """Combine encoded captions and sizes (B, 6)."""
        embedded = self.embed_sizes(sizes).to(pooled.dtype)
        return Conditioning(context, torch.cat([pooled, embedded], dim=-1))

    def embed_sizes(self, sizes: Tensor) -> Tensor:
        """Embed sizes (B, 6) as (B, 6 * size_channels)."""
        return sinusoidal_embedding(sizes.reshape(-1), self.size_channels).reshape(len(sizes), -1)


def tokenize(captions: list[str]) -> Tensor:
    """Return CLIP's token numbers (B, 77) int64, cut at 77 and padded with 0."""
    return _tokenizer()(captions, context_length=NUM_TOKENS)


def count_tokens(text: str) -> int:
    """Count the tokens of a text without start and end marks; the towers see at most 75."""
    return len(_tokenizer().encode(text))


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """Return CLIP's tokens with their numbers, and its merges in order, in transformers' form."""
    tokenizer = _tokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    tokens = {names.get(token, token): number for token, number in tokenizer.encoder.items()}
    return tokens, [" ".join(pair) for pair in tokenizer.bpe_ranks if pair]


def pad_with_end(tokens: Tensor) -> Tensor:
    """Replace the padding after the end mark by the end mark, as SDXL's first tower expects."""
    position = torch.arange(tokens.shape[1], device=tokens.device)
    end = tokens.argmax(dim=1, keepdim=True)  # the end mark has the largest number
    return torch.where(position > end, END_OF_TEXT, tokens)


def encode_text(tower: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens after the penultimate block (B, 77, W) and pooled output (B, W_out)."""
    last = len(tower.transformer.resblocks) - 1  # type: ignore[union-attr, arg-type]
    out = tower.forward_intermediates(tokens, indices=[last - 1], output_fmt="NLC")  # type: ignore[operator]
    return out["text_intermediates"][0], out["text_features"]


@lru_cache(maxsize=1)
def _tokenizer():  # noqa: ANN202 - open_clip's class; importing it at module level costs seconds
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=NUM_TOKENS)


def _text_tower(config: TextTowerConfig, *, projected: bool) -> nn.Module:
    from open_clip.transformer import QuickGELU, TextTransformer

    tower = TextTransformer(
        context_length=NUM_TOKENS,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        output_dim=config.width if projected else None,
        act_layer=QuickGELU if config.quick_gelu else nn.GELU,
    )
    with torch.device("cpu"):  # computed, not in any file: towers built on meta need it too
        tower.register_buffer("attn_mask", tower.build_causal_mask(), persistent=False)
    return tower
