"""Processor time of a picture: one step, the teacher as it ships, and 50 steps with guidance.

The shipped tiny models; every picture is restored by each in turn, with one thread. Processor time
hardly depends on what else the machine does.

Run:  python benchmarks/one_step_time.py lq=DIR [count=5]
"""

import sys
import time

import torch

from open_supir.base.images import list_images, read_image, to_unit
from open_supir.base.places import SHIPPED_MODEL
from open_supir.inference.captioner import NoCaptioner
from open_supir.inference.model import Model

MODELS = {
    "one step": ("shipped:one_step.safetensors", {}),
    "teacher, 4 steps": (SHIPPED_MODEL, {}),
    "teacher, 50 steps with guidance": (
        SHIPPED_MODEL, {"num_steps": 50, "cfg_scale": 4.0, "cfg_scale_start": 1.0}),
}  # fmt: skip


def main() -> None:
    """Print the table as Markdown."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    torch.set_num_threads(1)
    restorers = {}
    for name, (file, sampler) in MODELS.items():
        model = Model.find(file, weights={}, runs_dir="runs")
        wanted = model.options(sampler, {})
        restorers[name] = model.load(wanted, captioner=NoCaptioner(), device=torch.device("cpu"))
    seconds: dict[str, list[float]] = {name: [] for name in MODELS}
    paths = list_images(options["lq"])[: int(options.get("count", "5"))]
    for path in paths:
        lq = to_unit(read_image(path))[None]
        for name, restorer in restorers.items():
            start = time.process_time()
            restorer(lq)
            seconds[name].append(time.process_time() - start)
    print(f"{len(paths)} pictures; seconds of processor time, mean\n")
    print("| | seconds | times one step |\n|---|---|---|")
    least = sum(seconds["one step"])
    for name, values in seconds.items():
        print(f"| {name} | {sum(values) / len(values):.2f} | {sum(values) / least:.1f} |")


if __name__ == "__main__":
    main()
