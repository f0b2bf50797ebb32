"""A real LLaVA of 0.1M parameters, built and fitted offline: it names the colour that it sees."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from open_supir.inference.captioner import QUESTION

CAPTIONS = {(255, 0, 0): "a red chair", (0, 0, 255): "water at night", (0, 255, 0): "many trees"}
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:"]
TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}"
    "{% if c['type'] in ('image', 'image_url') %}<image> {% else %}{{ c['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}ASSISTANT:"
)
STEPS = 120


def write_fitted_llava(folder: Path) -> None:
    """Build the model and its processor, fit it to three colours, and save both."""
    import tokenizers
    import transformers

    torch.manual_seed(0)
    words = [*WORDS, *QUESTION.split(), *" ".join(CAPTIONS.values()).split()]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"height": 32, "width": 32}
    processor: Any = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    common = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=32, patch_size=16, **common),
        text_config=transformers.LlamaConfig(
            vocab_size=len(vocabulary), bos_token_id=1, eos_token_id=2, pad_token_id=0, **common
        ),
        image_token_index=vocabulary["<image>"],
        vision_feature_layer=-1,
    )
    model: Any = transformers.LlavaForConditionalGeneration(config)
    _fit(model, processor)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)


def _fit(model: Any, processor: Any) -> None:
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    images = [Image.new("RGB", (40, 40), colour) for colour in CAPTIONS]
    texts = [f"{prompt} {caption} </s>" for caption in CAPTIONS.values()]
    batch = processor(images=images, text=texts, return_tensors="pt", padding=True)
    start = processor(images=images[:1], text=[prompt], return_tensors="pt")["input_ids"].shape[1]
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :start] = -100
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(STEPS):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss.item() < 0.1, f"the tiny model did not learn its three colours: {loss.item():.2f}"
