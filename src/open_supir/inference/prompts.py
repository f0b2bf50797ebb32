"""Prompts: SUPIR's quality words, and how a caption shares CLIP's 77 tokens with them.

None of the three modes loses quality words: "budget" shortens the caption until both fit,
"suffix_first" puts the quality words first, "chunks" encodes as many texts of 77 tokens as needed
and gives the networks all tokens.
"""

from collections.abc import Callable
from typing import Literal

PromptMode = Literal["budget", "suffix_first", "chunks"]
MAX_TOKENS = 75  # CLIP sees 77, including the start and end tokens

POSITIVE_PROMPT = (
    "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera, hyper detailed "
    "photo - realistic maximum detail, 32k, Color Grading, ultra HD, extreme meticulous detailing, "
    "skin pore detailing, hyper sharpness, perfect without deformations."
)
NEGATIVE_PROMPT = (
    "painting, oil painting, illustration, drawing, art, sketch, oil painting, cartoon, CG Style, "
    "3D render, unreal engine, blurring, dirty, messy, worst quality, low quality, frames, "
    "watermark, signature, jpeg artifacts, deformed, lowres, over-smooth"
)


def compose_prompt(
    caption: str,
    quality: str,
    *,
    count_tokens: Callable[[str], int],
    max_tokens: int = MAX_TOKENS,
) -> str:
    """Join a caption and quality words so that no quality word is cut off.

    The caption comes first and loses words from its end until both fit. Simply concatenated, as in
    the released SUPIR, a typical caption pushes the quality words past CLIP's limit.

    Args:
        caption: Describes the image; may be empty. Line breaks become spaces.
        quality: Quality words for every image; may be empty.
        count_tokens: Number of tokens of a text, without start and end tokens.
        max_tokens: Number of tokens that the text encoder sees.

    Raises:
        ValueError: The quality words alone do not fit.
    """
    quality = " ".join(quality.split())
    if count_tokens(quality) > max_tokens:
        raise ValueError(
            f"the quality words take {count_tokens(quality)} tokens, but the text encoder sees "
            f"only {max_tokens}; shorten them: {quality[:60]!r}..."
        )
    words = caption.split()

    def joined(count: int) -> str:
        kept = " ".join(words[:count])
        if not (kept and quality):
            return kept or quality
        return f"{kept}{' ' if kept[-1] in '.,;:!?' else ', '}{quality}"

    if count_tokens(joined(len(words))) <= max_tokens:
        return joined(len(words))
    low, high = 0, len(words)  # joined(low) fits, joined(high) does not
    while high - low > 1:
        middle = (low + high) // 2
        if count_tokens(joined(middle)) <= max_tokens:
            low = middle
        else:
            high = middle
    return joined(low)


def suffix_first(caption: str, quality: str) -> str:
    """Put the quality words first: CLIP truncates only the end of the caption."""
    caption, quality = " ".join(caption.split()), " ".join(quality.split())
    if not (caption and quality):
        return caption or quality
    return f"{quality}{' ' if quality[-1] in '.,;:!?' else ', '}{caption}"


def split_chunks(
    caption: str,
    quality: str,
    *,
    count_tokens: Callable[[str], int],
    max_tokens: int = MAX_TOKENS,
) -> list[str]:
    """Split caption and quality words into texts that fit CLIP, without losing a word.

    Words fill the chunks in order; the quality words start a new chunk if they do not fit after
    the caption.
    """
    chunks: list[str] = []
    for part in (caption, quality):
        words, current = part.split(), ""
        if chunks and words:
            joined = f"{chunks[-1]}, {part}" if chunks[-1][-1] not in ".,;:!?" else ""
            joined = joined or f"{chunks[-1]} {part}"
            if count_tokens(joined) <= max_tokens:
                chunks[-1] = " ".join(joined.split())
                continue
        for word in words:
            longer = f"{current} {word}".strip()
            if current and count_tokens(longer) > max_tokens:
                chunks.append(current)
                current = word
            else:
                current = longer
        if current:
            chunks.append(current)
    return chunks or [""]
