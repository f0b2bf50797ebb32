"""Captions: who is dropped, what is appended, and that CLIP's tokens suffice."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from open_supir.base.rng import keyed_rng
from open_supir.data.captions import (
    CaptionPolicy,
    approximate_tokens,
    choose_caption,
    compose,
    partial_caption,
    truncate,
)

LONG = (
    "The image features a woman sitting on a wooden bench in a park, surrounded by tall trees. "
    "She is wearing a blue dress and holding a cup of coffee in her hand. The scene appears "
    "peaceful and serene, with sunlight filtering through the leaves. In the background there "
    "are several other people walking along a winding path, some of them with dogs."
)


def count_words(text: str) -> int:
    return len(text.split())


def choose(policy: CaptionPolicy, position: int = 0, **options) -> str:
    options = {"caption": "a cat", "meta": {}, "is_negative": False} | options
    return choose_caption(policy, keyed_rng(position), **options).text


def test_positives_are_dropped_at_the_given_rate() -> None:
    policy = CaptionPolicy(drop_prob=0.2, quality_prob=0.5, quality_words="sharp")
    counts = Counter(choose(policy, p) for p in range(4000))
    assert set(counts) == {"", "a cat", "a cat, sharp"}
    assert abs(counts[""] / 4000 - 0.2) < 0.03
    assert abs(counts["a cat, sharp"] / 4000 - 0.8 * 0.5) < 0.03


def test_negatives_always_carry_the_negative_words() -> None:
    policy = CaptionPolicy(drop_prob=1.0, negative_words="blurry")
    assert {choose(policy, p, is_negative=True) for p in range(200)} == {"blurry"}


def test_negatives_are_dropped_only_when_asked() -> None:
    policy = CaptionPolicy(drop_prob=0.5, drop_negatives=True, negative_words="blurry")
    assert {choose(policy, p, is_negative=True) for p in range(200)} == {"blurry", ""}


def test_negatives_may_tell_what_they_show() -> None:
    policy = CaptionPolicy(negative_content_prob=1.0, negative_words="blurry")
    assert choose(policy, is_negative=True, meta={"content": "a dog."}) == "a dog. blurry"
    assert choose(policy, is_negative=True, meta={"content": 7}) == "blurry"


def test_policies_draw_the_same_randomness() -> None:
    """Whatever a policy says, later draws of the sample are the same."""
    states = []
    for policy in (CaptionPolicy(drop_prob=0), CaptionPolicy(drop_prob=1, quality_prob=0)):
        rng = keyed_rng("x")
        choose_caption(policy, rng, caption="a", meta={}, is_negative=False)
        states.append(rng.random())
    assert states[0] == states[1]


@pytest.mark.parametrize("budget", ["reserve", "suffix_first"])
@pytest.mark.parametrize("count", [approximate_tokens, count_words])
def test_budget_keeps_all_quality_words(budget: str, count: Callable[[str], int]) -> None:
    words = "highly detailed, sharp, film grain, taken with a good camera"
    policy = CaptionPolicy(budget=budget, quality_words=words, max_tokens=40)
    caption = compose(LONG, words, policy, count)
    assert words in caption.text and count(caption.text) <= 40 and caption.truncated
    assert not compose("a cat", words, policy, count).truncated


def test_budget_none_loses_the_quality_words_of_long_captions() -> None:
    """What the released code does: the words come after what CLIP can see."""
    policy = CaptionPolicy(budget="none", max_tokens=40)
    caption = compose(LONG, "sharp", policy, count_words)
    assert caption.text.endswith("sharp") and caption.truncated
    assert count_words(caption.text) > 40


def test_released_prompts_and_a_long_caption_fit_by_the_tokenizer_of_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    tokenizer = open_clip.SimpleTokenizer()

    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    words = (
        "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera, hyper "
        "detailed photo - realistic maximum detail, 32k, Color Grading, ultra HD, extreme "
        "meticulous detailing, skin pore detailing, hyper sharpness, perfect without deformations."
    )
    assert count(words) == 53
    for counter in (count, approximate_tokens):
        text = compose(LONG, words, CaptionPolicy(), counter).text
        assert text.endswith(words) and count(text) <= 75 and len(text) > len(words)
    for text in (words, LONG):
        assert abs(approximate_tokens(text) / count(text) - 1) < 0.15


def test_truncate_prefers_sentence_then_comma_then_word() -> None:
    text = "one two three. four five, six seven eight nine"
    assert truncate(text, 20, count_words) == text
    assert truncate(text, 7, count_words) == "one two three."
    assert truncate("a b, c d, e f g", 5, count_words) == "a b, c d"
    assert truncate("a b c d e", 3, count_words) == "a b c"
    assert truncate("a b c", 0, count_words) == ""


def test_close_crops_take_the_caption_of_their_policy() -> None:
    meta = {
        "caption_short": "short",
        "captions": {"top_left": "tl", "top_right": "tr", "bottom_left": "bl"},
    }
    corner = (0.0, 0.5, 0.5, 0.5)  # top, left, height, width: the top right quarter
    assert partial_caption("full", "long", meta, corner) == "long"
    assert partial_caption("none", "long", meta, corner) == ""
    assert partial_caption("short", "long", meta, corner) == "short"
    assert partial_caption("quadrant", "long", meta, corner) == "tr"
    assert partial_caption("quadrant", "long", meta, (0.5, 0.5, 0.5, 0.5)) == "short"
    assert partial_caption("short", "One. Two.", {}, corner) == "One."
    assert partial_caption("quadrant", "One. Two.", {"captions": ["x"]}, corner) == "One."


def test_partial_caption_applies_below_the_visible_share_only() -> None:
    policy = CaptionPolicy(drop_prob=0, quality_prob=0, min_visible=0.5, partial="none")
    assert choose(policy, visible=0.4) == ""
    assert choose(policy, visible=0.5) == "a cat"
    policy = CaptionPolicy(drop_prob=0, quality_prob=1, quality_words="sharp", min_visible=0.5,
                           partial="none")  # fmt: skip
    assert choose(policy, visible=0.4) == "sharp"


@pytest.mark.parametrize(
    "options", [{"drop_prob": 1.5}, {"partial": "some"}, {"budget": "x"}, {"max_tokens": 77}]
)
def test_caption_policy_refuses_bad_values(options: dict) -> None:
    with pytest.raises(ValueError):
        CaptionPolicy(**options)


def test_random_texts_never_exceed_the_budget() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        words = ["".join(rng.choice(list("abc.,1! "), 6)) for _ in range(rng.integers(1, 60))]
        text = compose(" ".join(words), "sharp, clean", CaptionPolicy(max_tokens=30), count_words)
        assert count_words(text.text) <= 30 and text.text.endswith("sharp, clean")


def test_full_scale_configuration_counts_the_tokens_of_clip() -> None:
    """Not the estimate: the budget then keeps every quality word, to the token."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    conf = OmegaConf.load(Path(__file__).parents[2] / "conf/data/shards.yaml")
    data = instantiate(OmegaConf.merge(conf, {"root": "nowhere", "heldout": "nowhere", "seed": 0}))
    reader = data.sample_reader
    words = reader.captions.quality_words
    assert reader.count_tokens(words) == 53  # of the released positive prompt, by CLIP
    text = compose(LONG, words, reader.captions, reader.count_tokens).text
    assert text.endswith(words) and 60 < reader.count_tokens(text) <= 75


@pytest.mark.parametrize("data", ["demo", "shards"])
def test_open_questions_of_the_paper_are_keys_that_a_sweep_sets(data: str) -> None:
    """Every rule of the policy stands in the configuration, so that no override needs a plus."""
    from dataclasses import asdict

    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    conf = OmegaConf.load(Path(__file__).parents[2] / f"conf/data/{data}.yaml")
    swept = ["captions.partial=quadrant", "captions.min_visible=0.5",
             "captions.drop_negatives=true", "captions.negative_content_prob=0.5"]  # fmt: skip
    OmegaConf.set_struct(conf, True)
    policy = asdict(instantiate(OmegaConf.merge(conf, OmegaConf.from_dotlist(swept)).captions))
    assert (policy["partial"], policy["min_visible"]) == ("quadrant", 0.5)
    assert policy["drop_negatives"] and policy["negative_content_prob"] == 0.5
    assert set(asdict(CaptionPolicy())) - set(conf["captions"]) == {"max_tokens"}
