"""The captioner with a real, tiny LLaVA of random weights, built and saved offline."""

from pathlib import Path

import pytest
import torch

from src.inference.captioner import QUESTION
from src.inference.captioner_local import LocalCaptioner

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

pytestmark = pytest.mark.slow

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:", "a", "red", "blue"]
TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}"
    "{% endfor %}ASSISTANT:"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llava")
    words = WORDS + QUESTION.split()
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"height": 32, "width": 32}
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
    common = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=32, patch_size=8, **common),
        text_config=transformers.LlamaConfig(
            vocab_size=len(vocabulary), bos_token_id=1, eos_token_id=2, pad_token_id=0, **common
        ),
        image_token_index=vocabulary["<image>"],
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def test_local_model_answers_the_same_words_each_time_and_none_of_the_prompt(model: str) -> None:
    captioner = LocalCaptioner(model, max_tokens=5)
    image = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
    caption = captioner(image)
    assert caption and caption == captioner(image)
    assert len(caption.split()) <= 5 and "\n" not in caption
    assert QUESTION not in caption and "<image>" not in caption.split()


def test_image_and_question_reach_the_model(model: str) -> None:
    captioner = LocalCaptioner(model, max_tokens=1)
    seen: list[dict] = []
    generate = captioner.model.generate
    captioner.model.generate = lambda **inputs: seen.append(inputs) or generate(**inputs)
    captioner(torch.zeros(3, 40, 60))
    captioner(torch.ones(3, 40, 60))
    assert seen[0]["pixel_values"].mean() < 0 < seen[1]["pixel_values"].mean()
    words = captioner.processor.batch_decode(seen[0]["input_ids"])[0]
    assert words.count("<image>") == 16  # one a patch: 32 pixels in patches of 8
    assert QUESTION in words


def test_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        LocalCaptioner(str(tmp_path / "nowhere"))
