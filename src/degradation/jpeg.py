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

from .ops import take, to_levels

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
_TO_YCC_BIAS = (32768, (128 << 16) + 32767, (128 << 16) + 32767)
_CHROMA_TO_RGB = ((0, 91881), (-22554, -46802), (116130, 0))


@lru_cache(maxsize=16)
def _constant(name: str, device: torch.device) -> Tensor:
    """Return a constant of the codec as a float32 tensor on `device`."""
    if name == "dct":  # on flattened blocks: (64, 64), orthonormal
        k, n = torch.arange(8.0, dtype=torch.float64)[:, None], torch.arange(8.0)
        basis = (math.pi / 16 * (2 * n + 1) * k).cos() * torch.where(k == 0, 0.125**0.5, 0.5)
        return torch.kron(basis, basis).float().to(device, non_blocking=True)
    values = {
        "luma": _LUMA,
        "chroma": _CHROMA,
        "to_ycc": _TO_YCC,
        "to_ycc_bias": _TO_YCC_BIAS,
        "to_rgb": _CHROMA_TO_RGB,
    }
    return torch.tensor(values[name], dtype=torch.float32).to(device, non_blocking=True)


def jpeg(image: Tensor, quality: Tensor, ends: Ends = None) -> Tensor:
    """Compress as libjpeg at 4:2:0: integer tables and colours, smooth chroma, rounded output.

    Borders are replicated up to whole 16 x 16 units. PSNR agrees with libjpeg-turbo's to a few
    hundredths of a dB; what remains is rounding of the integer DCT.

    Args:
        image: (B, 3, H, W) in [0, 1].
        quality: (B,) in [1, 100], not necessarily whole.
        ends: Where images fill only a corner of the tensor and repeat their last row and column
            beyond it: (B, H) row and (B, W) column numbers, clamped to those last ones.
    """
    height, width = image.shape[-2:]
    rgb = to_levels(_pad16(image, "replicate"))
    to_ycc, bias = (_constant(name, image.device) for name in ("to_ycc", "to_ycc_bias"))
    ycc = torch.einsum("dc,bchw->bdhw", to_ycc, rgb).add_(bias[:, None, None]).div_(65536).floor_()
    columns = torch.arange(rgb.shape[-1], device=image.device)
    # jcsample.c rounds up on every other column, jdsample.c likewise: no mean shift
    chroma = (F.avg_pool2d(ycc[:, 1:], 2) + (1 + columns[::2] // 2 % 2) / 4).floor_()
    factor = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).floor()[:, None, None]
    luma_table, chroma_table = (
        ((_constant(name, image.device) * factor + 50) / 100).floor().clamp(1, 255)
        for name in ("luma", "chroma")
    )
    luma = _quantise(ycc[:, :1], luma_table).add_(0.501).floor_().clamp_(0, 255)
    chroma = _quantise(chroma, chroma_table).add_(0.501).floor_().clamp_(0, 255)
    if ends is None:
        chroma = chroma[..., : (height + 1) // 2, : (width + 1) // 2]
    else:  # decoders do not look past the image's own last chroma sample
        chroma = take(take(chroma, ends[0][:, ::2] // 2, 2), ends[1][:, ::2] // 2, 3)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear")  # (9, 3, 3, 1) / 16
    chroma = chroma.add_((8 - columns[: chroma.shape[-1]] % 2) / 16).floor_().sub_(128)
    luma, chroma = luma[..., :height, :width], chroma[..., :height, :width]
    shift = torch.einsum("dc,bchw->bdhw", _constant("to_rgb", image.device), chroma)
    rgb = luma + shift.add_(32768).div_(65536).floor_()
    return rgb.clamp_(0, 255).div_(255)


def diffjpeg(image: Tensor, quality: Tensor, ends: Ends = None) -> Tensor:
    """Compress as DiffJPEG, the codec in Real-ESRGAN's training code.

    Its luma table is transposed, tables are neither integer nor at least 1, borders are padded
    with zeros (the last rows turn dark), colours are not rounded and chroma is repeated. Arguments
    as `jpeg`.
    """
    height, width = image.shape[-2:]
    if ends is not None:
        rows, columns = (torch.arange(end.shape[1], device=image.device) == end for end in ends)
        image = image * rows[:, None, :, None] * columns[:, None, None]
    r, g, b = (_pad16(image, "constant") * 255).unbind(1)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    cb = -0.168736 * r - 0.331264 * g + 0.5 * b + 128
    cr = 0.5 * r - 0.418688 * g - 0.081312 * b + 128
    chroma = F.avg_pool2d(torch.stack([cb, cr], 1), 2)
    factor = torch.where(quality < 50, 50 / quality, 2 - quality / 50)[:, None, None]
    factor = factor.clamp_min(1e-3)  # the original divides by zero at quality 100
    luma = _quantise(luma[:, None], _constant("luma", image.device).T * factor)[:, 0]
    chroma = _quantise(chroma, _constant("chroma", image.device) * factor)
    cb, cr = chroma.repeat_interleave(2, 2).repeat_interleave(2, 3).sub(128).unbind(1)
    rgb = [luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb]
    return torch.stack(rgb, 1).clamp(0, 255).div(255)[..., :height, :width]


def _pad16(image: Tensor, mode: str) -> Tensor:
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % 16, 0, -height % 16), mode=mode)


def _quantise(planes: Tensor, table: Tensor) -> Tensor:
    """Round DCT coefficients of (B, C, H, W) planes in [0, 255] to steps of (B, 8, 8) tables."""
    dct = _constant("dct", planes.device)
    step = table.reshape(-1, 1, 64)
    blocks = rearrange(planes - 128, "b c (h i) (w j) -> b (c h w) (i j)", i=8, j=8)
    blocks = (blocks @ dct.T).div_(step)
    blocks = blocks.add_(blocks.sign().mul_(1e-3)).round_()  # halves are frequent: away from zero
    blocks = blocks.mul_(step) @ dct
    height, width = planes.shape[-2] // 8, planes.shape[-1] // 8
    return rearrange(blocks, "b (c h w) (i j) -> b c (h i) (w j)", h=height, w=width, i=8, j=8).add(
        128
    )
