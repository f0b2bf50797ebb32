"""All that can be chosen about a restoration: one dataclass for library, command and page."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from open_supir.diffusion import SamplerSettings
from open_supir.inference.color_fix import COLOR_FIXES
from open_supir.inference.prompts import NEGATIVE_PROMPT, POSITIVE_PROMPT, PromptMode

FileFormat = Literal["png", "jpg", "webp", "tiff"]
Reference = Literal["cleaned", "input"]
MAX_SAMPLES = 64
MAX_ENLARGED = 16  # times `min_size`: where the longer side ends


@dataclass(frozen=True, kw_only=True)
class RestoreOptions:
    """What is wanted of a restoration.

    Attributes:
        settings: How to sample.
        seed: Another seed gives another restoration.
        num_samples: Restorations of each image, each from noise of its own.
        strength: From 0, which returns the input untouched, to 1, the whole restoration; between
            them the two are mixed.
        scale: Enlarge by this factor.
        long_side: Longer side of the result in pixels, in place of `scale`.
        min_size: Images whose shorter side would be below this are restored enlarged, and reduced
            after. "native" is the size that the model was trained at, as `size_condition` tells.
        color_fix: "wavelet", "adain" or "none".
        color_reference: Whose colours: the cleaned image's (as released) or the input's.
        positive_prompt: Quality words that go with every caption.
        negative_prompt: What is not wanted.
        prompt_mode: How caption and quality words share CLIP's 77 tokens; see `prompts`.
        size_condition: (h, w) told to the conditioner as original and target size, whatever the
            real one; None tells it the size at work. SUPIR always says 1024x1024.
        vae_tile: Side of the autoencoder's tiles in pixels; None passes images whole while they fit
            in memory.
        attention_tokens: Latent pixels up to which the autoencoder's attention sees the whole
            image; None by device.
        offload: Keep on the device only the part at work: text, autoencoder or networks.
        format: Of the written files.
        bits: A channel, 8 or 16, of PNG and TIFF files; None keeps the input's.
        quality: Of JPEG and WebP files, 1..100; a WebP of 100 is lossless.

    Raises:
        ValueError: A value is out of its range; the message names it.
    """

    settings: SamplerSettings = field(default_factory=SamplerSettings)
    seed: int = 0
    num_samples: int = 1
    strength: float = 1.0
    scale: float = 1.0
    long_side: int | None = None
    min_size: int | Literal["native"] = 0
    color_fix: str = "wavelet"
    color_reference: Reference = "cleaned"
    positive_prompt: str = POSITIVE_PROMPT
    negative_prompt: str = NEGATIVE_PROMPT
    prompt_mode: PromptMode = "budget"
    size_condition: tuple[int, int] | None = None
    vae_tile: int | None = None
    attention_tokens: int | None = None
    offload: bool = False
    format: FileFormat = "png"
    bits: int | None = None
    quality: int = 95

    def __post_init__(self) -> None:
        choices = {
            "color_fix": tuple(COLOR_FIXES),
            "color_reference": get_args(Reference),
            "prompt_mode": get_args(PromptMode),
            "format": get_args(FileFormat),
            "bits": (8, 16, None),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}; known: {', '.join(map(str, known))}"
                )
        ranges: dict[str, tuple[float, float]] = {
            "seed": (0, 2**63 - 1),
            "num_samples": (1, MAX_SAMPLES),
            "strength": (0, 1),
            "scale": (1 / 64, 64),
            "long_side": (1, 2**17),
            "min_size": (0, 2**14),
            "vae_tile": (32, 2**15),
            "attention_tokens": (1, 2**40),
            "quality": (1, 100),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if name == "min_size" and value == "native":
                continue
            if isinstance(value, str):
                raise ValueError(f"{name} must be a number, got {value!r}")
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} must be in {low:g}..{high:g}, got {value}")
        if self.long_side is not None and self.scale != 1:
            raise ValueError(f"give scale or long_side, not both: {self.scale}, {self.long_side}")
        if self.bits == 16 and self.format not in ("png", "tiff"):
            raise ValueError(f"bits=16 needs format png or tiff, got {self.format}")
        if self.size_condition is not None:  # a list, where a checkpoint or a config gives it
            object.__setattr__(self, "size_condition", tuple(self.size_condition))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (h, w) of the result for an input of that size; the aspect is kept."""
        scale = self.scale if self.long_side is None else self.long_side / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (h, w) that an input of that size is restored at, before padding.

        `min_size` enlarges no image beyond 16 times itself along the longer side.
        """
        size = self.output_size(height, width)
        least = self.min_size
        if least == "native":
            least = min(self.size_condition or (0, 0))
        if min(size) >= least:
            return size
        scale = max(1.0, min(least / min(size), MAX_ENLARGED * least / max(size)))
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def described(self) -> dict[str, Any]:
        """Return the options as plain values, for metadata and records."""
        return asdict(self)


OPTION_NAMES = tuple(f.name for f in fields(RestoreOptions) if f.name != "settings")
