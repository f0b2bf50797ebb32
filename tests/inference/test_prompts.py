import pytest

from open_supir.inference.prompts import (
    MAX_TOKENS,
    NEGATIVE_PROMPT,
    POSITIVE_PROMPT,
    compose_prompt,
    split_chunks,
    suffix_first,
)
from open_supir.networks.conditioner import count_tokens


def _words(text: str) -> int:
    return len(text.replace(",", " , ").split())


def test_default_prompts_have_the_published_token_counts() -> None:
    """53 and 61 tokens: counted by CLIP's own tokenizer for the released texts."""
    assert count_tokens(POSITIVE_PROMPT) == 53
    assert count_tokens(NEGATIVE_PROMPT) == 61


def test_short_caption_is_kept_whole() -> None:
    assert compose_prompt("a cat\nasleep", "sharp", count_tokens=_words) == "a cat asleep, sharp"
    assert compose_prompt("A cat.", "sharp", count_tokens=_words) == "A cat. sharp"


def test_empty_parts_leave_no_separator() -> None:
    assert compose_prompt("", "sharp", count_tokens=_words) == "sharp"
    assert compose_prompt("a cat", "", count_tokens=_words) == "a cat"
    assert compose_prompt("", "", count_tokens=_words) == ""


@pytest.mark.parametrize("length", [1, 21, 22, 23, 94, 500])
def test_quality_words_never_fall_past_the_last_token(length: int) -> None:
    caption = " ".join(["extraordinarily", "red", "cat's"][i % 3] for i in range(length))
    prompt = compose_prompt(caption, POSITIVE_PROMPT, count_tokens=count_tokens)
    assert prompt.endswith(POSITIVE_PROMPT)
    assert count_tokens(prompt) <= MAX_TOKENS


def test_as_much_of_the_caption_is_kept_as_fits() -> None:
    caption = " ".join(f"w{i}" for i in range(50))
    prompt = compose_prompt(caption, "q1 q2 q3", count_tokens=_words, max_tokens=20)
    assert prompt == " ".join(f"w{i}" for i in range(16)) + ", q1 q2 q3"  # 16 + comma + 3


def test_quality_words_that_do_not_fit_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="quality words take 80 tokens"):
        compose_prompt("", "sharp " * 80, count_tokens=_words)


def test_quality_words_first_push_out_the_caption_only() -> None:
    assert suffix_first("a cat\nasleep", "sharp") == "sharp, a cat asleep"
    assert suffix_first("", "sharp") == "sharp" and suffix_first("a cat", "") == "a cat"


@pytest.mark.parametrize("length", [0, 1, 21, 23, 94, 500])
def test_chunks_lose_no_word_and_fit(length: int) -> None:
    words = [["extraordinarily", "red", "cat's"][i % 3] for i in range(length)]
    chunks = split_chunks(" ".join(words), POSITIVE_PROMPT, count_tokens=count_tokens)
    assert all(count_tokens(chunk) <= MAX_TOKENS for chunk in chunks)
    everything = " ".join(chunks).replace(",", "").split()
    assert everything == [*words, *POSITIVE_PROMPT.replace(",", "").split()]
