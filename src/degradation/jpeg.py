"""JPEG compression and decompression of image tensors, with the rounding of a real codec.

Shapes: B batch, H W image size, N number of 8 x 8 blocks. Images are in [0, 1].

Why not Kornia's codec: it rounds coefficients softly so that gradients pass, high frequencies leak
through, and its output is 0.1 to 0.9 dB closer to the original than any real JPEG. A restorer
trained on that meets other images later.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from src.degradation.ops import take, to_levels

Ends = tuple[Tensor, Tensor] | None

# ITU-T T.81, tables K.1 and K.2.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# libjpeg's 16-bit fixed point (jccolor.c, jdcolor.c): sums stay below 2^24, exact in float32.
_TO_YCC = ((19595, 38470, 7471), (-11059, -21709, 32768), (32768, -27439, -5329))
_TO_YCC_BIAS = (32768 - (128 << 16), 32767, 32767)  # luma is centred as chroma is
_CHROMA_TO_RGB = ((0, 91881), (-22554, -46802), (116130, 0))


@lru_cache(maxsize=32)
def _constant(name: str, device: torch.device) -> Tensor:
    """Return a constant of the codec as a float32 tensor on `device`."""
    return _constants()[name].to(device, non_blocking=True)


@lru_cache(maxsize=1)
def _constants() -> dict[str, Tensor]:
    k, n = torch.arange(8.0, dtype=torch.float64)[:, None], torch.arange(8.0)
    basis = (math.pi / 16 * (2 * n + 1) * k).cos() * torch.where(k == 0, 0.125**0.5, 0.5)
    return {
        "dct": torch.kron(basis, basis).float(),  # of flattened blocks: (64, 64), orthonormal
        "to_ycc": torch.tensor(_TO_YCC) / 65536,
        "to_ycc_bias": torch.tensor(_TO_YCC_BIAS)[:, None, None] / 65536,
        "to_rgb": torch.tensor(_CHROMA_TO_RGB) / 65536,
        "down_bias": torch.tensor([1, 2]) / 4,  # jcsample.c and jdsample.c: by column in turn,
        "up_bias": torch.tensor([8, 7]) / 16,  # so that the mean does not shift
        "half": torch.tensor(0.5001),
    }


def jpeg_tables(quality: Tensor) -> Tensor:
    """Return libjpeg's (B, 2, 64) quantisation tables, luma and chroma, of (B,) qualities.

    Args:
        quality: In [1, 100], not necessarily whole.
    """
    factor = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).floor()
    return ((_standard(quality) * factor[:, None, None] + 50) / 100).floor().clamp(1, 255)


def diffjpeg_tables(quality: Tensor) -> Tensor:
    """Return DiffJPEG's tables, as `jpeg_tables`: luma transposed, neither integer nor >= 1."""
    factor = torch.where(quality < 50, 50 / quality, 2 - quality / 50)
    factor = factor.clamp_min(1e-3)  # the original divides by zero at quality 100
    luma, chroma = _standard(quality).unflatten(1, (8, 8))
    return torch.stack([luma.T, chroma]).flatten(1) * factor[:, None, None]


def _standard(like: Tensor) -> Tensor:
    return torch.tensor([_LUMA, _CHROMA], dtype=torch.float32, device=like.device).flatten(1)


def jpeg(image: Tensor, tables: Tensor, ends: Ends = None) -> Tensor:
    """Compress as libjpeg at 4:2:0: integer colours, smooth chroma upsampling, rounded output.

    Borders are replicated up to whole 16 x 16 units. PSNR agrees with libjpeg-turbo's to .03 dB
    and most pixels are equal; what remains is rounding of the integer DCT.

    Args:
        image: (B, 3, H, W), clipped to [0, 1].
        tables: (B, 2, 64) from `jpeg_tables`.
        ends: Where images fill only a corner of the tensor and repeat their last row and column
            beyond it: (B, H) row and (B, W) column numbers, clamped to those last ones.
    """
    height, width = image.shape[-2:]
    rgb = to_levels(_pad16(image, "replicate"))
    constant = {name: _constant(name, image.device) for name in _constants()}
    ycc = torch.einsum("dc,bchw->bdhw", constant["to_ycc"], rgb)
    ycc = ycc.add_(constant["to_ycc_bias"]).floor_()
    chroma = F.avg_pool2d(ycc[:, 1:], 2)
    chroma.unflatten(-1, (-1, 2)).add_(constant["down_bias"])
    luma, chroma = _quantise(ycc[:, :1], chroma.floor_(), tables, exact=True)
    if ends is None:
        chroma = chroma[..., : (height + 1) // 2, : (width + 1) // 2]
    else:  # decoders do not look past the image's own last chroma sample
        chroma = take(take(chroma, ends[0][:, ::2] // 2, 2), ends[1][:, ::2] // 2, 3)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear")  # (9, 3, 3, 1) / 16
    chroma.unflatten(-1, (-1, 2)).add_(constant["up_bias"])
    shift = torch.einsum("dc,bchw->bdhw", constant["to_rgb"], chroma.floor_())
    shift = shift.add_(128.5).floor_()[..., :height, :width]
    return (luma[..., :height, :width] + shift).clamp_(0, 255).div_(255)


def diffjpeg(image: Tensor, tables: Tensor, ends: Ends = None) -> Tensor:
    """Compress as DiffJPEG, the codec in Real-ESRGAN's training code.

    Borders are padded with zeros (the last rows turn dark), colours are not rounded and chroma is
    repeated. Arguments as `jpeg`, with tables from `diffjpeg_tables`.
    """
    height, width = image.shape[-2:]
    if ends is not None:
        rows, columns = (torch.arange(end.shape[1], device=image.device) == end for end in ends)
        image = image * rows[:, None, :, None] * columns[:, None, None]
    r, g, b = (_pad16(image.clamp(0, 1), "constant") * 255).unbind(1)
    luma = 0.299 * r + 0.587 * g + 0.114 * b - 128
    cb = -0.168736 * r - 0.331264 * g + 0.5 * b
    cr = 0.5 * r - 0.418688 * g - 0.081312 * b
    chroma = F.avg_pool2d(torch.stack([cb, cr], 1), 2)
    luma, chroma = _quantise(luma[:, None], chroma, tables, exact=False)
    luma = luma[:, 0] + 128
    cb, cr = chroma.repeat_interleave(2, 2).repeat_interleave(2, 3).unbind(1)
    rgb = [luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb]
    return torch.stack(rgb, 1).clamp(0, 255).div(255)[..., :height, :width]


def _pad16(image: Tensor, mode: str) -> Tensor:
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % 16, 0, -height % 16), mode=mode)


def _quantise(
    luma: Tensor, chroma: Tensor, tables: Tensor, *, exact: bool
) -> tuple[Tensor, Tensor]:
    """Round the DCT coefficients of centred (B, C, H, W) planes to multiples of (B, 2, 64) steps.

    Args:
        luma, chroma: In [-128, 127].
        tables: Steps of both.
        exact: Round the decoded planes to integers and clip them, as files hold them.
    """
    dct = _constant("dct", luma.device)
    planes = (luma, chroma)
    blocks = [rearrange(plane, "b c (h i) (w j) -> b (c h w) (i j)", i=8, j=8) for plane in planes]
    counts = [block.shape[1] for block in blocks]
    coefficients = torch.cat(blocks, 1) @ dct.T
    steps = tables.unsqueeze(2).unbind(1)
    for part, step in zip(coefficients.split(counts, 1), steps, strict=True):
        part.div_(step)
    # Halves are frequent, DC is a sum of integers over 8: away from zero, as libjpeg.
    half = _constant("half", luma.device)
    coefficients.add_(half.copysign(coefficients)).trunc_()
    for part, step in zip(coefficients.split(counts, 1), steps, strict=True):
        part.mul_(step)
    decoded = coefficients @ dct
    if exact:
        decoded = decoded.add_(half).floor_().clamp_(-128, 127)
    luma, chroma = (
        rearrange(
            part, "b (c h w) (i j) -> b c (h i) (w j)", h=p.shape[2] // 8, w=p.shape[3] // 8, i=8
        )
        for part, p in zip(decoded.split(counts, 1), planes, strict=True)
    )
    return luma, chroma


CODECS = {"libjpeg": (jpeg_tables, jpeg), "diffjpeg": (diffjpeg_tables, diffjpeg)}
