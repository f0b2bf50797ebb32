"""Peak memory, seams and time of restoring large images at tiny scale.

    python benchmarks/large_image.py [2048 8192 ...] [checkpoint=FILE] [steps=2] [cfg=1.2]

One process per size. The networks are those of a stage-2 checkpoint, or the demo's prior with an
untrained adaptor. Everything is tiled, with the same tiles at all sizes, and the autoencoder's
attention sees small windows, as it must where an image is too large for it.

The image is made of overlapping discs of photographs at random places, so that all pixels are
statistically alike: differences at tile borders are caused by the tiles.

Memory: the resident set that the kernel reports at each stage's peak, minus that before the call
and minus the image's own buffers, which the stage holds by design (`OWN`); the highest of these is
the work space.

Seams: the mean absolute difference of neighbouring pixels across the borders of tiles (the
autoencoder's and the sampler's), in percent above that across all other borders of latent pixels,
with its standard error, from the scatter of the means of the other lines.
"""

import dataclasses
import json
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from bench_restore import tiny_restorer
from skimage import data
from torch import Tensor

from open_supir.diffusion.tiling import spread_windows
from open_supir.inference import Restorer
from open_supir.inference.result import Call
from open_supir.networks.tile_spans import spans as tile_spans

VAE_TILE, TILE, WINDOW = 512, 64, 32  # pixels; latent pixels; side of the attention's windows
DISC = 160  # pixels; mean diameter of the pieces of the image
OWN = {  # images and latents in float32 that a stage holds besides the input
    "encode": (
        1,
        5,
    ),  # the image in [-1, 1] or the cleaned one; both latents, the new one's moments
    "decode": (2, 4),  # the cleaned and the restored one; the three latents, one unscaled
    "caption": (1, 1),  # the cleaned one; the degraded one's latent
    "sample": (1, 9),  # the cleaned one; those three and the sampler's six
    "finish": (3, 3),  # besides, the one with its colours put right
}


def picture(side: int, seed: int = 0) -> Tensor:
    """Return (3, side, side) in [0, 1]: discs of photographs, later ones on top."""
    random = np.random.default_rng(seed)
    photos = [data.coffee(), data.chelsea(), data.astronaut()]
    canvas = np.zeros((side, side, 3), np.uint8)
    for _ in range(16 * (side // DISC + 1) ** 2):
        photo = photos[random.integers(len(photos))]
        size = random.integers(DISC // 2, DISC * 3 // 2)
        top, left = (random.integers(0, length - size) for length in photo.shape[:2])
        y, x = random.integers(-size + 1, side, 2)
        rows, columns = slice(max(y, 0), y + size), slice(max(x, 0), x + size)
        place = canvas[rows, columns]
        own = slice(max(-y, 0), None), slice(max(-x, 0), None)
        centred = np.arange(size) - (size - 1) / 2
        disc = centred[:, None] ** 2 + centred**2 < (size / 2) ** 2
        shape = place.shape[0], place.shape[1]
        disc = disc[own][: shape[0], : shape[1]]
        piece = photo[top : top + size, left : left + size][own][: shape[0], : shape[1]]
        place[disc] = piece[disc]
    return torch.from_numpy(canvas).permute(2, 0, 1).float().div_(255)


def resident() -> int:
    """Return the resident set in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class Peaks:
    """The highest resident set of each stage within a block, sampled every 20 ms."""

    def __enter__(self) -> "Peaks":
        self.before, self.stage = resident(), ""
        self.highest: dict[str, int] = {}
        self.running = True
        self.thread = threading.Thread(target=self._watch)
        self.timed = Call.timed

        @contextmanager
        def timed(run: Call, stage: str) -> Iterator[None]:
            self.stage = stage
            with self.timed(run, stage):
                yield
            self.stage = ""

        Call.timed = timed  # type: ignore[method-assign]
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.running = False
        self.thread.join()
        Call.timed = self.timed  # type: ignore[method-assign]

    def _watch(self) -> None:
        while self.running:
            stage, now = self.stage, resident()
            self.highest[stage] = max(self.highest.get(stage, 0), now)
            time.sleep(0.02)


def seams(image: Tensor, factor: int) -> dict[str, list[float]]:
    """Return the gradient's excess at tile borders in percent and its error, by kind of tile."""
    side = image.shape[-1]
    lines = torch.stack([_line_means(image), _line_means(image.mT)])  # (2, side - 1)
    spans = tile_spans(side // factor, VAE_TILE // factor, halo=0, ramp=0, multiple=1)
    windows = spread_windows(side // factor, side // factor, tile=TILE)
    borders = {
        "autoencoder": {span.core_start * factor for span in spans[1:]},
        "sampler": {at * factor for w in windows for at in (w.left, w.right)} - {0, side},
    }
    others = torch.arange(1, side) % factor == 0  # as borders lie between latent pixels
    others[[at - 1 for places in borders.values() for at in places]] = False
    mean, scatter = lines[:, others].mean(), lines[:, others].std()
    found = {}
    for kind, places in borders.items():
        at = lines[:, [place - 1 for place in places]]
        excess, error = at.mean() / mean - 1, scatter / mean / max(1, at.numel()) ** 0.5
        found[kind] = [at.numel(), *(round(100 * value.item(), 2) for value in (excess, error))]
    return found


def _line_means(image: Tensor) -> Tensor:
    """Return the mean absolute difference across each border of columns (W - 1,), float64."""
    total = torch.zeros(image.shape[-1] - 1, dtype=torch.float64)
    for rows in image.split(256, dim=-2):
        total += rows.diff(dim=-1).abs().sum(dim=(0, 1), dtype=torch.float64)
    return total / (image.shape[0] * image.shape[-2])


def measure(side: int, steps: int, cfg: float, checkpoint: str | None) -> dict:
    """Restore one image in this process; returns what was measured."""
    torch.set_num_threads(1)
    restorer = Restorer.from_checkpoint(checkpoint) if checkpoint else tiny_restorer()
    settings = dataclasses.replace(
        restorer.options.sampler, num_steps=steps, cfg_scale=cfg, tile=TILE
    )
    options = dataclasses.replace(
        restorer.options, sampler=settings, vae_tile=VAE_TILE, attention_tokens=WINDOW**2
    )
    restorer(picture(256), options=options)  # warms up
    image = picture(side)
    cpu = time.process_time()
    with Peaks() as peaks:
        result = restorer(image, options=options)
    cpu = time.process_time() - cpu
    factor = restorer.vae.downsampling
    latent = (side // factor) ** 2 * 4 * restorer.vae.post_quant_conv.in_channels
    above = {stage: highest - peaks.before for stage, highest in peaks.highest.items()}
    rest = {
        stage: above[stage] - images * image.nbytes - latents * latent
        for stage, (images, latents) in OWN.items()
        if stage in above  # else it was over at once
    }
    return {
        "side": side,
        "peak_mb": {stage: round(value / 1e6) for stage, value in above.items() if stage},
        "rest_mb": {stage: round(value / 1e6) for stage, value in rest.items()},
        "seams_percent": seams(result.restored, factor),
        "seams_of_input_percent": seams(image, factor),
        "cpu_s": round(cpu, 1),
        "seconds": {stage: round(value, 1) for stage, value in result.seconds.items()},
        "is_exact": result.is_exact,
        "settings": repr(settings),
    }


def main() -> None:
    """Measure each size in its own process."""
    sides = [int(word) for word in sys.argv[1:] if word.isdecimal()] or [2048]
    given = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    arguments = int(given.get("steps", 2)), float(given.get("cfg", 1.2)), given.get("checkpoint")
    if "--one" in sys.argv:
        print(json.dumps(measure(sides[0], *arguments)))
        return
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, 1 thread")
    for side in sides:
        words = [str(side), *(f"{key}={value}" for key, value in given.items())]
        command = [sys.executable, __file__, "--one", *words]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        print(json.dumps(json.loads(out.strip().splitlines()[-1]), indent=1), flush=True)


if __name__ == "__main__":
    main()
