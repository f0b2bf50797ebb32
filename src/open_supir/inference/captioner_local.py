"""Captions from a vision-language model run in this process with transformers."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from open_supir.base.images import to_uint8
from open_supir.base.images.captions import one_line
from open_supir.inference.captioner import QUESTION


class LocalCaptioner:
    """Asks any image-text-to-text model of transformers; decoding is greedy, hence deterministic.

    Args:
        model: Folder or hub name. Code in model repositories is never run.
        dtype: Dtype of its weights; "auto" keeps the stored one.

    Raises:
        ImportError: transformers is not installed (extra `caption`).
    """

    def __init__(
        self,
        model: str,
        *,
        question: str = QUESTION,
        max_tokens: int = 256,
        device: torch.device | str = "cpu",
        dtype: str = "auto",
    ) -> None:
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise ImportError(
                "captioner=local needs transformers; install with: pip install -e '.[caption]'"
            ) from error
        self.processor: Any = AutoProcessor.from_pretrained(model, trust_remote_code=False)
        network: Any = AutoModelForImageTextToText.from_pretrained(
            model, dtype=dtype, trust_remote_code=False, use_safetensors=True
        )
        self.model = network.to(device).eval()
        self.question = question
        self.identity = f"local {model} {max_tokens} {question}"
        self.max_tokens = max_tokens

    @torch.no_grad()
    def __call__(self, image: Tensor, *, source: Path | None = None) -> str:
        """Return the model's description of `image` (3, H, W) in [0, 1], as one line."""
        pixels = to_uint8(image).cpu().permute(1, 2, 0).contiguous().numpy()
        content = [{"type": "image"}, {"type": "text", "text": self.question}]
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        inputs = self.processor(
            images=[Image.fromarray(pixels)], text=[prompt], return_tensors="pt"
        ).to(self.model.device, self.model.dtype)
        tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.max_tokens)
        answer = tokens[:, inputs["input_ids"].shape[1] :]
        return one_line(self.processor.batch_decode(answer, skip_special_tokens=True)[0])
