"""What one-step training costs at SDXL's size: FLOPs and memory, counted without a GPU.

As training_cost.py: the networks of conf/experiment/one_step.yaml run forward and backward on meta
tensors. LPIPS is counted as VGG-16 up to relu5_3 of both pictures, of which one has a graph. Hours
are operations at a share of a device's rate: estimates, to be replaced by measurements.

Run:  python benchmarks/one_step_cost.py         minutes
      ... crop=512 batch=24 pairs=5000 depth=half
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.training_cost import MFU, RATES, networks  # noqa: E402
from open_supir.networks.conditioner import Conditioning  # noqa: E402
from open_supir.rehearsal.counted import FusedAttention  # noqa: E402
from open_supir.training.discriminators import spatial_head  # noqa: E402

CONVNEXT = "convnext_xxlarge"
CHANNELS = (384, 768, 1536)


def counted(run: Callable[[], Tensor], parameters: set[int]) -> tuple[float, float]:
    """Return TFLOP and GB kept for gradients of one forward and, if it has a graph, backward."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        whole = tensor if tensor._base is None else tensor._base
        if id(whole) not in parameters:
            kept[id(whole)] = whole
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = run()
        if out.requires_grad:
            out.sum().backward()
    size = sum(t.numel() * t.element_size() for t in kept.values())
    return counter.get_total_flops() / 1e12, size / 1e9


def convnext() -> nn.Module:
    """Return the frozen features of the `convnext` discriminator, on meta."""
    import open_clip

    from open_supir.networks.convnext import ConvNeXtFeatures

    with torch.device("meta"):
        visual = open_clip.create_model(CONVNEXT, device="meta").visual
        return ConvNeXtFeatures(visual).bfloat16().requires_grad_(False).eval()  # type: ignore[arg-type]


def heads() -> nn.Module:
    """Return the heads of three stages, on meta; the pooled one's operations are negligible."""
    with torch.device("meta"):
        return nn.ModuleList(spatial_head(channels, 512) for channels in CHANNELS)


def vgg() -> nn.Module:
    """Return VGG-16's convolutions up to relu5_3, on meta."""
    from torchvision.models import vgg16

    with torch.device("meta"):
        return vgg16().features[:30].bfloat16().requires_grad_(False)  # type: ignore[index]


def main() -> None:
    """Print counts by part, then by micro-batch, then hours."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    crop, batch = int(options.get("crop", "512")), int(options.get("batch", "24"))
    pairs, latent = int(options.get("pairs", "5000")), int(options.get("crop", "512")) // 8
    F.scaled_dot_product_attention = FusedAttention.apply  # type: ignore[assignment]
    network, vae = networks(options.get("depth", "half"))
    features, perceptual, judges = convnext(), vgg(), heads()
    every = (network, vae, features, perceptual, judges)
    own = {id(p) for module in every for p in module.parameters()}
    with torch.device("meta"):
        z = torch.empty(1, 4, latent, latent)
        t = torch.zeros(1, dtype=torch.long)
        cond = Conditioning(torch.empty(1, 77, 2048), torch.empty(1, 2816))
        image = torch.empty(1, 3, crop, crop, dtype=torch.bfloat16)
    seen = image.clone().requires_grad_()
    code = z.clone().requires_grad_()

    scorers: Any = judges

    def judge(picture: Tensor) -> Tensor:
        maps = features(picture)
        return torch.stack(
            [head(m.float()).mean() for head, m in zip(scorers, maps, strict=False)]
        ).sum()

    def prior(latent_of: Tensor) -> Tensor:
        middle, skips = network.unet.encode(
            latent_of.bfloat16(), network.unet.embed(t, cond.vector), cond.context.bfloat16()
        )
        return middle.float().sum() + torch.stack([s.float().sum() for s in skips]).sum()

    parts: dict[str, Callable[[], Tensor]] = {
        "robust encoder (lq), no graph": lambda: vae.encode(image),
        "UNet, adaptor, connector": lambda: network(z, t, cond, z),
        "decoder": lambda: vae.decode(code),
        "LPIPS": lambda: perceptual(seen).sum() + perceptual(image).sum(),
        "ConvNeXt and heads, on x": lambda: judge(seen),
        "ConvNeXt and heads, on hq or x": lambda: judge(image),
        "prior's encoder, on z": lambda: prior(code),
        "prior's encoder, on z or E(hq)": lambda: prior(z).detach(),
    }
    print(f"crops of {crop}, one sample\n\n| part | TFLOP | kept, GB |\n|---|---|---|")
    found = {}
    for name, run in parts.items():
        judges.requires_grad_(name != "ConvNeXt and heads, on x")
        found[name] = counted(run, own)
        network.zero_grad()
        print(f"| {name} | {found[name][0]:.2f} | {found[name][1]:.2f} |", flush=True)
    encode, unet, decode, lpips, fooled, told, prior_fooled, prior_told = found.values()
    kinds = {
        "convnext": (fooled, told, 0.0),
        "prior": (prior_fooled, prior_told, encode[0]),  # E(hq)
    }
    print("\n| discriminator | micro-batch | generator: TFLOP, GB kept | discriminator | pairs |")
    print("|---|---|---|---|---|")
    for kind, (graph, plain, more) in kinds.items():
        generator = [
            encode[i] * (i == 0) + unet[i] + decode[i] + lpips[i] + graph[i] for i in (0, 1)
        ]
        second = [2 * plain[0] + more, 2 * plain[1]]
        hours = (generator[0] + second[0]) * batch * pairs / (RATES["H200"] * MFU) / 3600
        for micro in (4, 8):
            row = [f"{micro * value:.1f}" for value in (*generator, *second)]
            print(f"| {kind} | {micro} | {row[0]}, {row[1]} | {row[2]}, {row[3]} | {hours:.1f} h |")
    frozen = {name: sum(p.numel() for p in m.parameters()) / 1e9 for name, m in
              (("UNet", network.unet), ("autoencoder", vae), ("ConvNeXt", features))}  # fmt: skip
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad) / 1e9
    print(f"\nparameters, G: {frozen}, trained {trained:.3f}")


if __name__ == "__main__":
    main()
