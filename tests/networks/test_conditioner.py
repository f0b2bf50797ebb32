"""Conditioner: tokens, padding, widths, order of the size numbers."""

import math

import torch

from open_supir.networks import Conditioner
from open_supir.networks.conditioner import (
    END_OF_TEXT,
    TextTowerConfig,
    count_tokens,
    encode_text,
    pad_with_end,
    tokenize,
)


def test_tokens_have_the_known_numbers() -> None:
    """CLIP's published vocabulary: 'a photo of a cat' is 320 1125 539 320 2368."""
    tokens = tokenize(["a photo of a cat"])
    assert tokens.shape == (1, 77)
    assert tokens[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]
    assert count_tokens("a photo of a cat") == 5


def test_first_tower_is_padded_with_the_end_mark() -> None:
    tokens = tokenize(["cat", ""])
    padded = pad_with_end(tokens)
    assert (padded[0, 2:] == END_OF_TEXT).all() and padded[0, 1] == tokens[0, 1]
    assert (padded[1, 1:] == END_OF_TEXT).all()


def test_conditioning_has_the_towers_widths(conditioner: Conditioner) -> None:
    cond = conditioner(["a", "b"], torch.zeros(2, 6))
    assert cond.context.shape == (2, 77, conditioner.context_dim) == (2, 77, 32)
    assert cond.vector.shape == (2, conditioner.vector_dim) == (2, 40)


def test_size_embedding_equals_the_formula(conditioner: Conditioner) -> None:
    """Four channels a number: cos and sin of s and of s / 100."""
    embedded = conditioner.embed_sizes(torch.tensor([[512.0, 0, 0, 0, 0, 64.0]]))
    expected = [math.cos(512), math.cos(5.12), math.sin(512), math.sin(5.12)]
    assert torch.allclose(embedded[0, :4], torch.tensor(expected), atol=1e-4)
    expected = [math.cos(64), math.cos(0.64), math.sin(64), math.sin(0.64)]
    assert torch.allclose(embedded[0, -4:], torch.tensor(expected), atol=1e-4)


def test_context_is_the_last_but_one_block_without_final_norm(conditioner: Conditioner) -> None:
    tower, tokens = conditioner.clip_g, tokenize(["a brown dog"])
    x = tower.token_embedding(tokens) + tower.positional_embedding
    x = tower.transformer.resblocks[0](x, attn_mask=tower.attn_mask)
    penultimate, pooled = encode_text(tower, tokens)
    assert torch.allclose(penultimate, x, atol=1e-6)
    last = tower.ln_final(tower.transformer.resblocks[1](x, attn_mask=tower.attn_mask))
    end = tokens.argmax(dim=-1)
    assert torch.allclose(pooled, last[0, end] @ tower.text_projection, atol=1e-5)


def test_towers_built_without_memory_have_their_causal_mask() -> None:
    """It is computed and in no file: loading would leave it on meta, and nothing would mask."""
    config = TextTowerConfig(width=16, layers=2, heads=1)
    with torch.device("meta"):
        built = Conditioner(clip_l=config, clip_g=config, size_channels=4)
    for tower in (built.clip_l, built.clip_g):
        assert tower.token_embedding.weight.is_meta
        assert tower.attn_mask[0, 1] == float("-inf") and tower.attn_mask[1, 0] == 0
