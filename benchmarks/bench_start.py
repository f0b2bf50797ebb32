"""How long commands take to start: importing `restore`, its help, and its first sampling step.

Run: python benchmarks/bench_start.py [--repeats 5] [--checkout DIR]
Prints the best wall and processor time of several runs with a warm cache. `--checkout` measures
another checkout with this environment's packages.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORT = "import open_supir.commands.restore"
# The command itself, which ends where the networks are called for the first time
FIRST_STEP = """
import os, runpy, sys
from open_supir.networks import ControlledUNet
ControlledUNet.forward = lambda *_, **__: os._exit(0)
sys.argv[0] = "src/restore.py"
runpy.run_module("src.restore", run_name="__main__", alter_sys=True)
os._exit(1)
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--checkout", type=Path, default=ROOT)
    parser.add_argument("--checkpoint", type=Path, help="a stage-2 checkpoint; default: shipped")
    given = parser.parse_args()
    root = given.checkout.resolve()
    python = [sys.executable]
    commands = {
        "import torch": [*python, "-c", "import torch"],
        IMPORT: [*python, "-c", IMPORT],
        "restore --help": [*python, "-m", "src.restore", "--help"],
    }
    versions = [f"{name} {version(name)}" for name in ("torch", "hydra-core")]
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"{machine}; Python {platform.python_version()}, {', '.join(versions)}")
    print(f"\n| start | wall s | processor s |\n|{'---|' * 3}")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "in").mkdir()
        write_photo(Path(folder) / "in/photo.png")
        first = [*python, "-c", FIRST_STEP, f"input={folder}/in", f"output={folder}/out"]
        first += [f"checkpoint={given.checkpoint.resolve()}"] if given.checkpoint else []
        commands["restore, to the first sampling step"] = [*first, "device=cpu"]
        for name, command in commands.items():
            runs = [measured(command, root) for _ in range(given.repeats + 1)][1:]
            wall, processor = (min(values) for values in zip(*runs, strict=True))
            print(f"| `{name}` | {wall:.2f} | {processor:.2f} |", flush=True)


def measured(command: list[str], root: Path) -> tuple[float, float]:
    """Run a command in a checkout; returns its wall and processor seconds."""
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def write_photo(path: Path) -> None:
    """Write a small photograph-like PNG."""
    from PIL import Image

    Image.linear_gradient("L").convert("RGB").save(path)


if __name__ == "__main__":
    main()
