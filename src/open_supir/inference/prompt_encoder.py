"""Caption and options -> the two conditions of guidance, with a cache of encoded prompts."""

from collections import OrderedDict
from collections.abc import Callable

import torch

from open_supir.inference.options import RestoreOptions
from open_supir.inference.prompts import compose_prompt, split_chunks, suffix_first
from open_supir.networks import Conditioner, Conditioning

KEPT = 16  # cached prompts


class PromptEncoder:
    """Encodes prompts and caches the last few: the negative one is the same for all images.

    Args:
        conditioner: Captions and sizes -> Conditioning; its weights must not change.
        count_tokens: Number of tokens of a text for the conditioner's encoders.
    """

    def __init__(self, conditioner: Conditioner, count_tokens: Callable[[str], int]) -> None:
        self.conditioner = conditioner
        self.count_tokens = count_tokens
        self.encoded: OrderedDict[tuple, Conditioning] = OrderedDict()

    def __call__(
        self,
        caption: str,
        options: RestoreOptions,
        size: tuple[int, int],
        device: torch.device,
    ) -> tuple[str, Conditioning, Conditioning]:
        """Return the full positive prompt, and the conditions of it and of the negative prompt.

        Args:
            caption: What the image shows; may be empty.
            size: (h, w) given to the conditioner.
        """
        quality, negative = options.positive_prompt, [options.negative_prompt]
        if options.prompt_mode == "chunks":
            positive = split_chunks(caption, quality, count_tokens=self.count_tokens)
            negative = split_chunks("", options.negative_prompt, count_tokens=self.count_tokens)
        elif options.prompt_mode == "suffix_first":
            positive = [suffix_first(caption, quality)]
        else:
            positive = [compose_prompt(caption, quality, count_tokens=self.count_tokens)]
        length = max(len(positive), len(negative))  # guidance needs the same number of tokens
        cond, uncond = (
            self._encode([*texts, *[""] * (length - len(texts))], size, device)
            for texts in (positive, negative)
        )
        return " | ".join(positive), cond, uncond

    def _encode(
        self, texts: list[str], size: tuple[int, int], device: torch.device
    ) -> Conditioning:
        """Encode a prompt's chunks: concatenate their tokens, keep the first one's vector."""
        key = (*texts, *size)
        if key not in self.encoded:
            sizes = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32, device=device)
            parts = [self.conditioner([text], sizes) for text in texts]
            context = torch.cat([part.context for part in parts], dim=1)
            self.encoded[key] = Conditioning(context, parts[0].vector)
            if len(self.encoded) > KEPT:
                self.encoded.popitem(last=False)
        self.encoded.move_to_end(key)
        return self.encoded[key]
