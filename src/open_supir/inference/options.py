"""All options of a restoration, for library, command and page alike."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from open_supir.base.images.colour import Intent
from open_supir.diffusion import SamplerSettings
from open_supir.inference.color_fix import COLOR_FIXES
from open_supir.inference.prompts import NEGATIVE_PROMPT, POSITIVE_PROMPT, PromptMode
from open_supir.networks.tiled_vae import TileNorms

FileFormat = Literal["png", "jpg", "webp", "tiff"]
Reference = Literal["cleaned", "input"]
Greyness = Literal["file", "auto"]
Profile = Literal["keep", "srgb"]
GrainMode = Literal["none", "keep"]
MAX_SAMPLES = 64
MAX_ENLARGED = 16  # limit of the longer side, as a multiple of `min_size`


@dataclass(frozen=True, kw_only=True)
class RestoreOptions:
    """The options of a restoration.

    Raises:
        ValueError: A value is out of range; the message names it.
    """

    sampler: SamplerSettings = field(default_factory=SamplerSettings)  # sampler settings
    seed: int = 0  # different seeds give different restorations
    num_samples: int = 1  # restorations per image, each from its own noise
    average: bool = False  # also write the mean of the samples: less invented, nearer to the truth
    # 0 returns the input untouched, 1 the full restoration; values between blend them
    strength: float = 1.0
    # File whose grey says where to restore: black leaves the input as it is, white restores fully.
    # None looks for NAME.mask.png beside each image.
    mask: str | None = None
    scale: float = 1.0  # factor by which the result is enlarged
    long_side: int | None = None  # longer side of the result in pixels, instead of `scale`
    # Images whose shorter side would be below this are restored enlarged and reduced afterwards.
    # "native" is the training size, given by `size_condition`.
    min_size: int | Literal["native"] = 0
    color_fix: str = "wavelet"  # "wavelet", "adain" or "none"
    # colours of the cleaned image (as released) or of the input
    color_reference: Reference = "cleaned"
    positive_prompt: str = POSITIVE_PROMPT  # quality words added to every caption
    negative_prompt: str = NEGATIVE_PROMPT  # description of unwanted qualities
    # how caption and quality words share CLIP's 77 tokens; see `prompts`
    prompt_mode: PromptMode = "budget"
    # (h, w) given to the conditioner as original and target size, regardless of the real one; None
    # is the padded working size. SUPIR always uses 1024x1024.
    size_condition: tuple[int, int] | None = None
    # side of the autoencoder's tiles in pixels; None processes whole images as long as they fit in
    # memory
    vae_tile: int | None = None
    # statistics of the tiled autoencoder's norms: "exact" or "estimated"; see `VaeTiles`
    vae_tile_norms: TileNorms = "exact"
    # latent pixels up to which the autoencoder's attention sees the whole image; None chooses by
    # device
    attention_tokens: int | None = None
    offload: bool = False  # keep only the active part on the device: text, autoencoder or networks
    # When the result is grey: "file" if the input's file has no colour, "auto" also if its red,
    # green and blue are equal but for noise, as in scans; see `Photo.looks_grey`.
    grey: Greyness = "file"
    # colour space of the result: "keep" is the input's own, "srgb" sRGB
    profile: Profile = "keep"
    # how colours that a profile cannot hold are converted: "perceptual" or "relative" colorimetric
    intent: Intent = "perceptual"
    # "keep" adds noise like the input's to the result; see `grain`
    grain: GrainMode = "none"
    format: FileFormat = "png"  # format of the written files
    # bits per channel of PNG and TIFF files, 8 or 16; None keeps the input's
    bits: int | None = None
    quality: int = 95  # quality of JPEG and WebP files, 1..100; WebP at 100 is lossless

    def __post_init__(self) -> None:
        choices = {
            "color_fix": tuple(COLOR_FIXES),
            "color_reference": get_args(Reference),
            "prompt_mode": get_args(PromptMode),
            "vae_tile_norms": get_args(TileNorms),
            "grey": get_args(Greyness),
            "profile": get_args(Profile),
            "intent": get_args(Intent),
            "grain": get_args(GrainMode),
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
            raise ValueError(f"set scale or long_side, not both: {self.scale}, {self.long_side}")
        if self.average and self.num_samples == 1:
            raise ValueError("average=true needs num_samples of 2 or more, got 1")
        if self.bits == 16 and self.format not in ("png", "tiff"):
            raise ValueError(f"bits=16 needs format png or tiff, got {self.format}")
        if self.size_condition is not None:  # checkpoints and configs give a list
            object.__setattr__(self, "size_condition", tuple(self.size_condition))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the result's (h, w) for an input of this size; the aspect ratio is kept."""
        scale = self.scale if self.long_side is None else self.long_side / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (h, w) at which an input of this size is restored, before padding.

        Enlarging to `min_size` stops where the longer side reaches 16 times `min_size`.
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
        """Return the options as plain values, for metadata and records.

        Files name the sampler's settings `settings`, so that older records still match.
        """
        values = asdict(self)
        del values["mask"]  # a path; records hold the hash of the file that was used
        return {"settings": values.pop("sampler"), **values}
