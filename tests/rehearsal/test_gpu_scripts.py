"""The GPU scripts of benchmarks/: the first run's parts, and all of them without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_first_run as first
from tests.test_configs import ROOT

# Run at the start of a process: optional packages are not there.
ABSENT = """
import importlib.machinery, importlib.metadata
optional = "bitsandbytes diffusers gradio peft ray spandrel submitit torchao transformers".split()
finder, found = importlib.machinery.PathFinder, importlib.machinery.PathFinder.find_spec
finder.find_spec = lambda name, *rest: None if name in optional else found(name, *rest)
told = importlib.metadata.distribution

def distribution(name):
    if name in optional:
        raise importlib.metadata.PackageNotFoundError(name)
    return told(name)

importlib.metadata.distribution = distribution
"""


def run(script: str, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script where there is no GPU."""
    paths = [*([str(folder)] if folder else []), str(ROOT / "src")]
    places = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *words]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | places, capture_output=True, text=True
    )


def part(folder: Path, code: str, limit: float) -> tuple[str, str]:
    """Run code as a part; returns how it ended, and the results file."""
    results = first.Results(folder / "results.md", "# head\n")
    state = first.run_part("waits", [sys.executable, "-c", code], limit, results)
    return state, (folder / "results.md").read_text()


def test_part_that_fails_is_reported_with_its_error(tmp_path: Path) -> None:
    state, text = part(tmp_path, "print('a row'); raise ValueError('no such kernel')", 60)
    assert state == "failed (exit status 1)"
    assert text.startswith("# head\n\n## waits\n")
    assert text.index("a row") < text.index("ValueError: no such kernel") < text.index(state)


def test_part_out_of_time_keeps_its_rows_and_ends_with_its_children(tmp_path: Path) -> None:
    child = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '600']);"
    state, text = part(tmp_path, f"{child} print(p.pid, flush=True); time.sleep(600)", 5)
    assert state == "stopped after its 5 s"
    pid = next(line for line in text.splitlines() if line.isdigit())
    status = Path(f"/proc/{pid}/stat")
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_part_that_ends_is_ok_and_leaves_only_the_results(tmp_path: Path) -> None:
    state, text = part(tmp_path, "print('a row')", 60)
    assert state == "ok" and "a row" in text and "```" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["results.md"]


def test_parts_take_thirty_minutes_and_compile_after_the_training_rows() -> None:
    assert sum(first.PARTS.values()) <= 60 * first.MINUTES
    names = list(first.NAMES)
    compiled = [names.index(name) for name in ("canvas_compiled", "train_regional")]
    assert max(map(names.index, ("train_channels_last", "train_contiguous"))) < min(compiled)


def test_first_run_needs_a_gpu_and_known_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for words, message in (([], "rehearse=true"), (["parts=wait"], "part wait;")):
        monkeypatch.setattr(sys, "argv", ["gpu_first_run.py", *words])
        with pytest.raises(SystemExit, match=message):
            first.main()


@pytest.mark.slow
def test_first_run_is_rehearsed_whole_without_optional_packages(tmp_path: Path) -> None:
    blocked, results = tmp_path / "blocked", tmp_path / "results.md"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(ABSENT)
    done = run("gpu_first_run.py", "rehearse=true", "scale=tiny", f"results={results}",
               folder=blocked)  # fmt: skip
    text = results.read_text()
    assert done.returncode == 0, done.stdout + done.stderr + text
    assert "all rows are open" in text
    assert text.count("\nok, ") == len(first.PARTS)
    assert text.count("| channels_last=true |") == text.count("| channels_last=false |") == 3
    assert "without a trainer: 0" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "bench_train_step.py full scale=tiny batches=2 repeats=1 "
            "variants=configured,contiguous,regional,compiled,transformer,checkpointed",
            "| naive | 2 |",
        ),
        (
            "memory=0.6 bench_train_step.py full scale=tiny batches=2,256 repeats=1 "
            "variants=contiguous",
            "| 256 | out of memory",
        ),
        ("bench_restore.py full scale=tiny steps=2,2", "| channels_last, distilled | 64 | 2 |"),
        ("bench_degradation.py batches=0 usm=0 canvas=0 cuda=1", "| 1024 | inductor |"),
        (
            "memory=0.06 gpu_first_run.py part=restore_whole scale=tiny rehearse=true",
            "| sequential_cfg=true",
        ),
    ],
)
def test_gpu_scripts_run_from_start_to_end(command: str, said: str) -> None:
    """All but 8-bit AdamW, whose library has kernels of its own."""
    done = run("rehearsed.py", *command.split())
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
