"""Prompts: the quality words of SUPIR, and how a caption shares CLIP's 77 tokens with them."""

from collections.abc import Callable

MAX_TOKENS = 75  # CLIP sees 77, of which two mark the start and the end

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

    The caption comes first and loses words from its end until both fit. Run together, as the
    released SUPIR does, a usual caption pushes the quality words out of CLIP's sight.

    Args:
        caption: Describes the image; may be empty. Line breaks become spaces.
        quality: Words wanted of every image; may be empty.
        count_tokens: Tokens of a text, without start and end marks.
        max_tokens: What the text encoder sees.

    Raises:
        ValueError: The quality words alone do not fit.
    """
    quality = " ".join(quality.split())
    if count_tokens(quality) > max_tokens:
        raise ValueError(
            f"the quality words take {count_tokens(quality)} tokens, and the text encoder sees "
            f"{max_tokens}; shorten them: {quality[:60]!r}..."
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
