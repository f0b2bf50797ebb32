"""Peak memory, seams and time of restoring large images at tiny scale.

    python benchmarks/large_image.py [2048 8192 ...] [steps=2] [cfg=1.2]

One process a size. The networks are the demo's, with an untrained adaptor: what is measured does
not depend on its weights. The image is a photograph of scikit-image, mirrored until it fills the
square. Everything is tiled, with the same tiles at all sizes.

Memory: resident set, by the kernel, at its peak over the call less before the call. Of it the
image's own buffers are what a restoration of that size holds by design: three float32 images (the
cleaned one, the restored one before and after the colour fix; the input is there before) and eight
latents. The rest is work space.

Seams: the mean absolute difference of neighbouring pixels across the borders of tiles (the
autoencoder's and the sampler's) against that at all other borders of latent pixels.
"""

import dataclasses
import json
import platform
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
from bench_restore import tiny_restorer
from skimage import data
from torch import Tensor

from src.diffusion import RestoreSettings
from src.diffusion.tiling import spread_windows
from src.networks import tiled_vae

VAE_TILE, TILE, WINDOW = 1024, 64, 16  # pixels; latent pixels; side of the attention's windows


def picture(side: int) -> Tensor:
    """Return (3, side, side) in [0, 1]: a photograph, mirrored to fill the square."""
    photo = torch.from_numpy(data.coffee()).permute(2, 0, 1)
    mirrored = torch.cat([photo, photo.flip(1)], dim=1)
    mirrored = torch.cat([mirrored, mirrored.flip(2)], dim=2)
    rows, columns = (torch.arange(side) % length for length in mirrored.shape[1:])
    return mirrored[:, rows][:, :, columns].float().div_(255)


def resident() -> int:
    """Return the resident set in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class Peak:
    """The highest resident set within a block, sampled every 20 ms."""

    def __enter__(self) -> "Peak":
        self.before = self.highest = resident()
        self.running = True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.running = False
        self.thread.join()

    def _watch(self) -> None:
        while self.running:
            self.highest = max(self.highest, resident())
            time.sleep(0.02)


def seam(image: Tensor, factor: int) -> dict[str, float]:
    """Return the gradient across tile borders relative to elsewhere, by kind of tile."""
    side = image.shape[-1]
    steps = torch.stack([(image[:, :, 1:] - image[:, :, :-1]).abs().mean(dim=(0, 1)),
                         (image[:, 1:] - image[:, :-1]).abs().mean(dim=(0, 2))])  # fmt: skip
    spans = tiled_vae._spans(side // factor, VAE_TILE // factor, halo=0, ramp=0, multiple=1)
    windows = spread_windows(side // factor, side // factor, tile=TILE)
    borders = {
        "autoencoder": [span.core_start * factor for span in spans[1:]],
        "sampler": sorted({w.left * factor for w in windows if w.left}
                          | {w.right * factor for w in windows if w.right * factor < side}),
    }  # fmt: skip
    everywhere = torch.arange(1, side) % factor == 0  # as borders lie between latent pixels
    for places in borders.values():
        everywhere[np.array(places) - 1] = False
    rest = steps[:, everywhere].mean().item()
    return {
        kind: steps[:, np.array(places) - 1].mean().item() / rest
        for kind, places in borders.items()
    }


def measure(side: int, steps: int, cfg: float) -> dict:
    """Restore one image in this process; returns what was measured."""
    torch.set_num_threads(2)
    restorer = tiny_restorer()
    settings = RestoreSettings(num_steps=steps, cfg_scale=cfg, s_churn=0, tile=TILE)
    options = dataclasses.replace(
        restorer.options, settings=settings, vae_tile=VAE_TILE, attention_tokens=WINDOW**2
    )
    restorer(picture(256), options=options)  # warms up
    image = picture(side)
    cpu = time.process_time()
    with Peak() as peak:
        result = restorer(image, options=options)
    cpu = time.process_time() - cpu
    latent = (side // restorer.vae.downsampling) ** 2 * 4 * restorer.vae.post_quant_conv.in_channels
    own = 3 * image.numel() * 4 + 8 * latent
    return {
        "side": side,
        "peak_mb": (peak.highest - peak.before) / 1e6,
        "own_mb": own / 1e6,
        "rest_mb": (peak.highest - peak.before - own) / 1e6,
        "seam": seam(result.restored, restorer.vae.downsampling),
        "seam_of_input": seam(image, restorer.vae.downsampling),
        "cpu_s": cpu,
        "seconds": dict(result.seconds),
        "is_exact": result.is_exact,
    }


def main() -> None:
    """Measure each size in a process of its own."""
    words = sys.argv[1:]
    steps = next((int(w.partition("=")[2]) for w in words if w.startswith("steps=")), 2)
    cfg = next((float(w.partition("=")[2]) for w in words if w.startswith("cfg=")), 1.2)
    if words[:1] == ["--one"]:
        print(json.dumps(measure(int(words[1]), steps, cfg)))
        return
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, 2 threads")
    for side in [int(word) for word in words if word.isdecimal()] or [2048]:
        command = [sys.executable, __file__, "--one", str(side), f"steps={steps}",
                   f"cfg={cfg}"]  # fmt: skip
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(json.dumps(json.loads(out.strip().splitlines()[-1]), indent=1), flush=True)


if __name__ == "__main__":
    main()
