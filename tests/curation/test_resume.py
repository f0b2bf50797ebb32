"""SIGKILL at random moments of every step, in real processes: nothing lost, nothing twice."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from src.curation.pipeline import STEPS, Pipeline
from src.curation.runners import LocalRunner
from tests.curation.test_pipeline import shards
from tests.curation.toy import settings
from tests.data.made import jpeg

ROOT = Path(__file__).parents[2]
KILLS = 5
DONE_STEPS = [step for step in STEPS if step != "score"]


def _in_a_process(work: Callable[[], None]) -> int:
    """Fork a process that does some work; returns its id. It starts with what is loaded here."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def _contents(output: Path) -> dict[str, str]:
    """Digest of every file that is a result: not of the times in markers."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in output.rglob("*")
        if path.is_file() and path.name != "done.json"
    }


def _finished(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_ino for path in (output / "work").rglob("done.json")
            if ".tmp" not in str(path)}  # fmt: skip


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for number in range(48):
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(number, 64, 80))
    return folder


def test_killed_at_random_moments_of_every_step_the_result_is_the_same(
    many: Path, tmp_path: Path
) -> None:
    """Five kills a step, at moments drawn over the step's duration; then it runs to its end."""
    rng, whole, killed = random.Random(0), tmp_path / "whole", tmp_path / "killed"
    kills = 0

    def work(output: Path, step: str) -> Callable[[], None]:
        return lambda: Pipeline(
            settings(many, output), LocalRunner(num_workers=0)
        ).run([step])  # fmt: skip

    for step in DONE_STEPS:
        start = time.monotonic()
        assert os.waitpid(_in_a_process(work(whole, step)), 0)[1] == 0
        duration = time.monotonic() - start
        for _ in range(KILLS):
            before = _finished(killed)
            pid = _in_a_process(work(killed, step))
            time.sleep(rng.uniform(0, duration))
            os.kill(pid, signal.SIGKILL)
            kills += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            after = _finished(killed)
            assert {path: after.get(path) for path in before} == before  # nothing done twice
        assert os.waitpid(_in_a_process(work(killed, step)), 0)[1] == 0
    assert kills >= len(DONE_STEPS) * 2  # the others came after the end
    assert _contents(killed) == _contents(whole)
    keys = [sample.key for sample in shards(killed, "positive")]
    assert len(keys) == len(set(keys)) == 48
    assert not [path for path in killed.rglob("*.tmp")]


@pytest.mark.slow  # each start of the workers takes as long as torch takes to load
def test_killed_command_goes_on_and_ends_at_once_when_finished(many: Path, tmp_path: Path) -> None:
    """The command itself with two worker processes, killed five times."""
    output, rng = tmp_path / "out", random.Random(1)
    command = [
        sys.executable, "-m", "src.curate", f"input={many}", f"output={output}", "unit_size=3",
        "filter.size=48", "runner.num_workers=2", "shards.shard_size=6", "negatives.count=2",
        "thresholds.bounds.sharpness=null", "thresholds.bounds.flat=null",
    ]  # fmt: skip
    for _ in range(KILLS):
        run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(2, 25))
        run.kill()
        run.wait()
    time.sleep(1)  # workers look for their starter five times a second
    subprocess.run(command, cwd=ROOT, check=True)
    keys = [sample.key for sample in shards(output, "positive")]
    assert len(keys) == len(set(keys)) == 48
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    subprocess.run(command, cwd=ROOT, check=True)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_finished_work_is_recognised_without_torch(tmp_path: Path) -> None:
    """What lets a second run end within two seconds: nothing heavy is imported until needed."""
    code = "import sys, src.curate; print(sorted({'torch', 'lightning', 'PIL'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"
