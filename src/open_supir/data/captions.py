"""Caption policy: which words a sample is trained with.

Positives carry their caption, sometimes none, sometimes with the quality words appended. Negative
samples carry the negative words, always: they give the negative prompt of guidance its meaning.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

TokenCounter = Callable[[str], int]
MAX_TOKENS = 75  # CLIP reads 77; the first and the last are its start and end marks
PIECES = re.compile(r"[A-Za-z]+|\d|[^\sA-Za-z\d]")


def approximate_tokens(text: str) -> int:
    """Count CLIP tokens roughly: one a digit or mark, one for each seven letters of a word."""
    return sum(math.ceil(len(piece) / 7) for piece in PIECES.findall(text))


@dataclass(frozen=True, kw_only=True)
class CaptionPolicy:
    """How captions are chosen, dropped and completed.

    `min_visible`: a crop that shows less than this share of the image takes `partial` instead of
    the full caption: "full", "short" (json key `caption_short`), "quadrant" (json key `captions`,
    by quadrant), or "none". Where the json has no such caption, the first sentence stands in for
    "short", and "quadrant" falls back to "short".
    `budget`: "reserve" truncates the caption so that the quality words fit, "suffix_first" puts
    them in front, "none" only appends, as the released code does, and loses them behind long
    captions.
    """

    drop_prob: float = 0.1
    drop_negatives: bool = False
    quality_prob: float = 0.5
    quality_words: str = "a sharp, clean, highly detailed photograph"
    negative_words: str = "blurry, over-smoothed, posterised, blocky, jpeg artifacts, low quality"
    negative_content_prob: float = 0.0
    min_visible: float = 0.0
    partial: str = "full"
    budget: str = "reserve"
    max_tokens: int = MAX_TOKENS

    def __post_init__(self) -> None:
        for name in ("drop_prob", "quality_prob", "negative_content_prob", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.partial not in ("full", "short", "quadrant", "none"):
            raise ValueError(f"partial must be full, short, quadrant or none, got {self.partial!r}")
        if self.budget not in ("reserve", "suffix_first", "none"):
            raise ValueError(f"budget must be reserve, suffix_first or none, got {self.budget!r}")
        if not 1 <= self.max_tokens <= MAX_TOKENS:
            raise ValueError(f"max_tokens must be in [1, {MAX_TOKENS}], got {self.max_tokens}")


class Caption(NamedTuple):
    """The words of one sample, and whether its caption had to be shortened."""

    text: str
    truncated: bool


def choose_caption(
    policy: CaptionPolicy,
    rng: np.random.Generator,
    *,
    caption: str,
    meta: Mapping[str, Any],
    is_negative: bool,
    visible: float = 1.0,
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
    count_tokens: TokenCounter = approximate_tokens,
) -> Caption:
    """Choose the words of a sample.

    The same three random numbers are drawn whatever the policy, so that policies differ in nothing
    but the words.

    Args:
        policy: The rules.
        rng: Randomness of this sample alone.
        caption: The caption of the whole image.
        meta: The json of the sample; may hold `caption_short`, `captions` by quadrant, and, of a
            negative sample, `content`: what it shows.
        is_negative: Whether this is a negative sample.
        visible: Share of the image that the crop shows.
        box: Crop as shares of the image: top, left, height, width.
        count_tokens: Counts the tokens of a text, without start and end marks.
    """
    drop, quality, content = rng.random(3)
    if is_negative:
        if policy.drop_negatives and drop < policy.drop_prob:
            return Caption("", False)
        body = _content(meta) if content < policy.negative_content_prob else ""
        return compose(body, policy.negative_words, policy, count_tokens)
    if drop < policy.drop_prob:
        return Caption("", False)
    if visible < policy.min_visible:
        caption = partial_caption(policy.partial, caption, meta, box)
    suffix = policy.quality_words if quality < policy.quality_prob else ""
    return compose(caption, suffix, policy, count_tokens)


def _content(meta: Mapping[str, Any]) -> str:
    """What a negative sample shows, where its json says so."""
    content = meta.get("content")
    return content if isinstance(content, str) else ""


def partial_caption(
    kind: str, caption: str, meta: Mapping[str, Any], box: tuple[float, float, float, float]
) -> str:
    """Return the caption for a crop that shows only part of the image."""
    if kind == "full":
        return caption
    if kind == "none":
        return ""
    if kind == "quadrant":
        vertical = "top" if box[0] + box[2] / 2 < 0.5 else "bottom"
        horizontal = "left" if box[1] + box[3] / 2 < 0.5 else "right"
        by_quadrant = meta.get("captions")
        if isinstance(by_quadrant, Mapping):
            found = by_quadrant.get(f"{vertical}_{horizontal}")
            if isinstance(found, str) and found:
                return found
    short = meta.get("caption_short")
    if isinstance(short, str) and short:
        return short
    return re.split(r"(?<=[.!?])\s", caption, maxsplit=1)[0]


def compose(
    caption: str, suffix: str, policy: CaptionPolicy, count_tokens: TokenCounter
) -> Caption:
    """Join a caption and a suffix within the token budget."""
    caption, suffix = " ".join(caption.split()), suffix.strip()
    if policy.budget == "none":
        joined = _join(caption, suffix)
        return Caption(joined, count_tokens(joined) > policy.max_tokens)
    room = policy.max_tokens - (count_tokens(suffix) + 1 if suffix else 0)
    shortened = truncate(caption, max(0, room), count_tokens)
    first, second = (shortened, suffix) if policy.budget == "reserve" else (suffix, shortened)
    return Caption(_join(first, second), shortened != caption)


def _join(first: str, second: str) -> str:
    if not first or not second:
        return first or second
    return f"{first} {second}" if first[-1] in ".,;:!?" else f"{first}, {second}"


def truncate(text: str, room: int, count_tokens: TokenCounter) -> str:
    """Shorten `text` to `room` tokens, at a sentence end, else at a comma, else at a word."""
    if count_tokens(text) <= room:
        return text
    for pattern in (r"(?<=[.!?])\s+", r",\s+", r"\s+"):
        ends = [match.start() for match in re.finditer(pattern, text)]
        low, high = 0, len(ends)
        while low < high:
            middle = (low + high) // 2
            if count_tokens(text[: ends[middle]]) <= room:
                low = middle + 1
            else:
                high = middle
        if low:
            return text[: ends[low - 1]]
    return ""
