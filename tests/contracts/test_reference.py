"""Our networks against the arithmetic written a second time (reference.py): other weights, sizes
and dtypes than the golden values hold.

Files in the official layouts are written from random networks; ours are loaded from them by the
public loader, the reference reads the same tensors under their official names, in float64.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from open_supir.checkpoints import export_sdxl, export_supir, load_parts
from open_supir.networks import (
    AutoencoderKL,
    Conditioner,
    Conditioning,
    ControlAdaptor,
    ControlledUNet,
    RobustEncoder,
    UNet,
)
from open_supir.networks.conditioner import TextTowerConfig, tokenize
from open_supir.networks.connectors import ZeroSFTConnector
from tests.contracts import reference
from tests.contracts.reference import Names
from tests.networks.test_golden import FIXTURES, TOLERANCE, deviation, sinusoid_bound

UNET, CONTROL = "model.diffusion_model.", "model.control_model."
VAE, ROBUST = "first_stage_model.", "first_stage_model.denoise_encoder."
CLIP_L, CLIP_G = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."

LEVELS: dict[str, Any] = dict(
    model_channels=32, channel_mult=[1, 2, 4], num_res_blocks=2, head_channels=64
)
TRUNK: dict[str, Any] = dict(in_channels=4, context_dim=64 + 128, vector_dim=128 + 96, **LEVELS)
LATENTS = [(40, 56), (4, 52)]


def randomised(module: nn.Module, seed: int) -> nn.Module:
    """Give every parameter a normal value that keeps activations near one; norms about one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                centre = 1.0 if name.endswith("weight") else 0.0
                parameter.copy_(centre + 0.1 * noise)
            else:
                fan_in = parameter[0].numel() if "embedding" not in name else 100
                parameter.copy_(noise / fan_in**0.5)
    return module


def build() -> dict[str, nn.Module]:
    """Build all parts: toy widths; the adaptor is trimmed, as in the paper."""
    vae = AutoencoderKL(
        ch=32, ch_mult=[1, 2, 4, 4], num_res_blocks=2, z_channels=4, scale_factor=0.13025
    )
    conditioner = Conditioner(
        clip_l=TextTowerConfig(width=64, layers=3, heads=2, quick_gelu=True),
        clip_g=TextTowerConfig(width=128, layers=4, heads=4),
        size_channels=16,
    )
    return {
        "unet": UNet(out_channels=4, transformer_depth=[0, 2, 3], **TRUNK),
        "control": ControlAdaptor(transformer_depth=[0, 1, 2], **TRUNK),
        "connector": ZeroSFTConnector(cross_attention=True, **LEVELS),
        "vae": vae,
        "robust_encoder": RobustEncoder(vae),
        "conditioner": conditioner,
    }


class Pair:
    """Our networks, and the tensors of the files they were loaded from, in float64."""

    def __init__(self, folder: Path, seed: int) -> None:
        parts = {part: randomised(module, seed) for part, module in build().items()}
        towers: Any = parts.pop("conditioner")
        parts |= {"clip_l": towers.clip_l, "clip_g": towers.clip_g}
        # random numbers that float16 holds are the same in every type of the tests
        sdxl = {part: parts[part] for part in ("unet", "vae", "clip_l", "clip_g")}
        supir = {part: parts[part] for part in ("control", "connector", "robust_encoder")}
        export_sdxl(folder / "sdxl.safetensors", sdxl, {}, dtype=torch.float16)
        export_supir(folder / "supir.safetensors", supir, {}, dtype=torch.float16)
        self.folder = folder
        self.tensors: dict[str, Tensor] = {}
        for name in ("sdxl", "supir"):
            held = load_file(folder / f"{name}.safetensors")
            self.tensors |= {key: tensor.double() for key, tensor in held.items()}

    def ours(self, dtype: torch.dtype) -> dict[str, Any]:
        """Build without memory, load from the files in `dtype`."""
        with torch.device("meta"):
            parts: dict[str, Any] = build()
        conditioner = parts["conditioner"]
        base = {
            "unet": parts["unet"],
            "vae": parts["vae"],
            "robust_encoder": parts["robust_encoder"],
            "clip_l": conditioner.clip_l,
            "clip_g": conditioner.clip_g,
        }
        load_parts(
            self.folder / "sdxl.safetensors",
            base,
            taken_from={"robust_encoder": "vae"},
            dtype=dtype,
        )
        trained = {part: parts[part] for part in ("control", "connector", "robust_encoder")}
        load_parts(self.folder / "supir.safetensors", trained, dtype=dtype)
        return parts

    def names(self, prefix: str, dtype: torch.dtype = torch.float64) -> Names:
        return Names({key: t.to(dtype) for key, t in self.tensors.items()}, prefix)


SEEDS = [1, pytest.param(2, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=SEEDS, ids=["weights 1", "weights 2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("reference"), request.param)


def network_inputs(size: tuple[int, int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, z_lq = torch.randn(2, 1, 4, *size, generator=generator)
    return {
        "x": x,
        "t": torch.tensor([400]),
        "context": torch.randn(1, 77, TRUNK["context_dim"], generator=generator),
        "vector": torch.randn(1, TRUNK["vector_dim"], generator=generator),
        "z_lq": z_lq,
    }


def reference_output(
    pair: Pair, given: dict[str, Tensor], scale: float, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], Tensor]:
    """Return the control features and the joint output."""
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}
    z_lq = cast.pop("z_lq")
    control = reference.control_features(pair.names(CONTROL, dtype), **cast, z_lq=z_lq)
    unet = pair.names(UNET, dtype)
    return control, reference.controlled_unet(unet, unet, control, **cast, scale=scale)


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "scale"), [(LATENTS[0], 1.0), (LATENTS[0], 0.6), (LATENTS[1], 0.6)]
)
def test_joint_forward_equals_the_reference(
    pair: Pair, size: tuple[int, int], scale: float
) -> None:
    given, parts = network_inputs(size), pair.ours(torch.float32)
    features, expected = reference_output(pair, given, scale)
    cond = Conditioning(given["context"], given["vector"])
    own = parts["control"](given["x"], given["t"], cond, given["z_lq"])
    assert max(deviation(f, e) for f, e in zip(own, features, strict=True)) < TOLERANCE
    network = ControlledUNet(parts["unet"], parts["control"], parts["connector"])
    out = network(given["x"], given["t"], cond, given["z_lq"], scale)
    assert deviation(out, expected) < TOLERANCE


@torch.no_grad()
def test_joint_forward_in_bfloat16_is_as_near_as_bfloat16_gets(pair: Pair) -> None:
    """Measured against the reference's own error when it computes in bfloat16 throughout."""
    given, parts = network_inputs(LATENTS[0]), pair.ours(torch.bfloat16)
    expected = reference_output(pair, given, 1.0)[1]
    rounded = reference_output(pair, given, 1.0, torch.bfloat16)[1]
    cond = Conditioning(given["context"].bfloat16(), given["vector"].bfloat16())
    network = ControlledUNet(parts["unet"], parts["control"], parts["connector"])
    out = network(given["x"].bfloat16(), given["t"], cond, given["z_lq"].bfloat16(), 1.0)
    assert distance(out, expected) <= distance(rounded, expected)
    assert distance(out, expected) < 0.05


def distance(out: Tensor, expected: Tensor) -> float:
    """Root mean square difference, relative to the root mean square expected."""
    return ((out - expected).norm() / expected.norm()).item()


IMAGES = [(72, 104), (24, 88)]


@torch.no_grad()
@pytest.mark.parametrize("size", IMAGES)
def test_autoencoder_and_robust_encoder_equal_the_reference(
    pair: Pair, size: tuple[int, int]
) -> None:
    parts, w = pair.ours(torch.float32), pair.names(VAE)
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(4)) * 2 - 1
    for encoder, ours in (("encoder", parts["vae"].encode), ("denoise_encoder", None)):
        ours = ours or parts["robust_encoder"]
        moments = reference.vae_encode(w.at(encoder), image.double())
        mean = reference.conv(w.at("quant_conv"), moments)[:, :4]
        assert deviation(ours(image), 0.13025 * mean) < TOLERANCE
    z = torch.randn(1, 4, size[0] // 8, size[1] // 8)
    unscaled = reference.conv(w.at("post_quant_conv"), z.double() / 0.13025)
    expected = reference.vae_decode(w.at("decoder"), unscaled)
    assert deviation(parts["vae"].decode(z), expected) < TOLERANCE


@torch.no_grad()
def test_autoencoder_in_bfloat16_is_as_near_as_bfloat16_gets(pair: Pair) -> None:
    parts, image = pair.ours(torch.bfloat16), torch.rand(1, 3, *IMAGES[0]) * 2 - 1
    means = {}
    for dtype in (torch.float64, torch.bfloat16):
        w = pair.names(VAE, dtype)
        moments = reference.vae_encode(w.at("encoder"), image.to(dtype))
        means[dtype] = 0.13025 * reference.conv(w.at("quant_conv"), moments)[:, :4]
    expected, rounded = means.values()
    ours = distance(parts["vae"].encode(image), expected)
    assert ours <= distance(rounded, expected) and ours < 0.05


CAPTIONS = ["a photo of a cat", "", "sharp, 8k, " * 60]  # short, empty, cut at 77


@torch.no_grad()
def test_text_towers_equal_the_reference(pair: Pair) -> None:
    """CLIP-L is fed with 49407 after its end mark, bigG with 0; all 77 positions count."""
    sizes = torch.tensor([[1024.0, 768, 0, 8, 512, 512]]).repeat(3, 1)
    out = pair.ours(torch.float32)["conditioner"](CAPTIONS, sizes)
    tokens = tokenize(CAPTIONS)
    for_l = tokens.clone()
    for row, end in zip(for_l, tokens.argmax(1), strict=True):
        row[end:] = 49407
    l_context = reference.clip_l_penultimate(pair.names(CLIP_L), for_l, heads=2)
    g_context, pooled = reference.clip_g_outputs(pair.names(CLIP_G), tokens, heads=4)
    assert out.context.shape == (3, 77, 64 + 128)
    assert deviation(out.context[..., :64], l_context) < TOLERANCE
    assert deviation(out.context[..., 64:], g_context) < TOLERANCE
    embedded = reference.sinusoids(sizes.double().flatten(), 16).reshape(3, -1)
    assert deviation(out.vector[:, : pooled.shape[1]], pooled) < TOLERANCE
    error = (out.vector[:, pooled.shape[1] :] - embedded).abs()
    assert (error <= sinusoid_bound(sizes, 16)).all()
    wrong = reference.clip_l_penultimate(pair.names(CLIP_L), tokens, heads=2)
    assert deviation(wrong, l_context) > 100 * TOLERANCE  # the padding does matter


golden_only = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"golden values are not at {FIXTURES}"
)


@golden_only
@torch.no_grad()
def test_reference_equals_the_released_implementation() -> None:
    """What the tests above lean on, against the golden values themselves."""
    golden = torch.load(FIXTURES / "golden.pt", weights_only=True)
    tensors: dict[str, Tensor] = {}
    for name in ("sdxl", "supir"):
        held = load_file(FIXTURES / f"{name}_tiny.safetensors")
        tensors |= {key: tensor.double() for key, tensor in held.items()}
    given = {k: v.double() if v.is_floating_point() else v for k, v in golden["net"]["in"].items()}
    shared = (given["xt"], given["t"], given["ctx"], given["y"])
    control = reference.control_features(Names(tensors, CONTROL), *shared, given["lq"])
    for feature, expected in zip(control, golden["net"]["control_out"], strict=True):
        assert deviation(feature, expected) < TOLERANCE
    unet = Names(tensors, UNET)
    for scale, expected in golden["net"]["unet_out"].items():
        out = reference.controlled_unet(unet, unet, control, *shared, float(scale))
        assert deviation(out, expected) < TOLERANCE
    w, held = Names(tensors, VAE), golden["vae"]
    image, z = held["img"].double(), held["z_denoise_mode"].double()
    moments = reference.conv(w.at("quant_conv"), reference.vae_encode(w.at("encoder"), image))
    assert deviation(moments, held["moments"]) < TOLERANCE
    robust = reference.conv(
        w.at("quant_conv"), reference.vae_encode(w.at("denoise_encoder"), image)
    )
    assert deviation(0.13025 * robust[:, :4], held["z_denoise_mode"]) < TOLERANCE
    unscaled = reference.conv(w.at("post_quant_conv"), z / 0.13025)
    assert deviation(reference.vae_decode(w.at("decoder"), unscaled), held["dec"]) < TOLERANCE
