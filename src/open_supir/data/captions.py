"""Caption policy: the text that a sample is trained with.

Positives get their caption, sometimes with the quality words appended, and sometimes no text.
Negative samples get the negative words, which teaches the network the negative prompt of guidance.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from open_supir.data.index import SIZE_LIMITS

TokenCounter = Callable[[str], int]
MAX_TOKENS = 75  # CLIP reads 77, including its start and end tokens
PIECES = re.compile(r"[A-Za-z]+|\d|[^\sA-Za-z\d]")


def approximate_tokens(text: str) -> int:
    """Estimate CLIP tokens: one per digit or mark, one per seven letters of a word."""
    return sum(math.ceil(len(piece) / 7) for piece in PIECES.findall(text))


@dataclass(frozen=True, kw_only=True)
class CaptionPolicy:
    """How captions are chosen, dropped and completed.

    `min_visible`: a crop that shows less than this share of the image gets the caption that
    `partial` selects: "full", "short" (json key `caption_short`), "quadrant" (json key `captions`,
    by quadrant), or "none". If the json lacks it, "quadrant" falls back to "short", and "short" to
    the first sentence.
    `budget`: "reserve" truncates the caption so that the quality words fit, "suffix_first" puts
    them in front, "none" only appends them, as the released code does, and so loses them after
    long captions.
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
    """The text of one sample, and whether its caption was shortened."""

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
    """Choose the text of a sample.

    Every policy draws the same three random numbers, so that policies differ only in the text.

    Args:
        meta: The sample's json; may hold `caption_short`, `captions` by quadrant, and for a
            negative sample `content`, a caption of what it shows.
        visible: Share of the image's area that the crop shows.
        box: The crop's top, left, height and width as shares of the image.
        count_tokens: Counts the tokens of a text, without start and end tokens.
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
    """Return the caption of what a negative sample shows; "" if its json has none."""
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


def fit_storage(caption: str) -> str:
    """Shorten a caption to what a shard holds: 16 KiB, hundreds of times what CLIP reads."""
    return caption.encode("utf-8")[: SIZE_LIMITS["text"]].decode("utf-8", "ignore")


def _join(first: str, second: str) -> str:
    if not first or not second:
        return first or second
    return f"{first} {second}" if first[-1] in ".,;:!?" else f"{first}, {second}"


def truncate(text: str, room: int, count_tokens: TokenCounter) -> str:
    """Shorten `text` to `room` tokens: at the end of a sentence, else at a comma or a word."""
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
