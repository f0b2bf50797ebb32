"""SIGKILL at random moments of every step, in real processes: nothing lost, nothing twice."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from open_supir.curation.pipeline import STEPS, Pipeline
from open_supir.curation.runners import LocalRunner
from tests.curation.test_pipeline import shards
from tests.curation.toy import settings
from tests.data.made import jpeg
from tests.waiting import lives, wait_for

ROOT = Path(__file__).parents[2]
KILLS = 5
DONE_STEPS = [step for step in STEPS if step != "score"]


def _in_a_process(work: Callable[[], None]) -> int:
    """Fork a process that does some work; returns its id. It starts with what is loaded here."""
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)  # the parent's threads of arithmetic do not exist here
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


@pytest.mark.parametrize("step", DONE_STEPS)
def test_killed_at_random_moments_of_a_step_the_result_is_the_same(
    many: Path, tmp_path: Path, step: str
) -> None:
    """Five kills that hit, each from a fresh start of the step, each followed by one whole run."""
    rng, before, whole = random.Random(step), tmp_path / "before", tmp_path / "whole"

    def work(output: Path, steps: list[str]) -> Callable[[], None]:
        pipeline = Pipeline(settings(many, output), LocalRunner(num_workers=0))
        return lambda: pipeline.run(steps)

    def ended(pid: int) -> int:
        status = []

        def reaped() -> bool:
            found, code = os.waitpid(pid, os.WNOHANG)
            status.append(code)
            return found == pid

        try:
            wait_for(reaped, what=f"the end of step {step}")
        except AssertionError:
            os.kill(pid, signal.SIGKILL)
            raise
        return status[-1]

    earlier = DONE_STEPS[: DONE_STEPS.index(step)]
    assert ended(_in_a_process(work(before, earlier))) == 0
    shutil.copytree(before, whole)
    start = time.monotonic()
    assert ended(_in_a_process(work(whole, [step]))) == 0
    duration, expected, hits = time.monotonic() - start, _contents(whole), 0
    for attempt in range(20 * KILLS):
        killed = tmp_path / f"killed {attempt}"
        shutil.copytree(before, killed)
        pid = _in_a_process(work(killed, [step]))
        moment = rng.uniform(0, duration)
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
        hit = os.WIFSIGNALED(ended(pid))
        hits, duration = hits + hit, duration if hit else moment  # it takes less by now
        finished = _finished(killed)
        assert ended(_in_a_process(work(killed, [step]))) == 0
        after = _finished(killed)
        assert {path: after.get(path) for path in finished} == finished  # nothing done twice
        assert _contents(killed) == expected
        assert not list(killed.rglob("*.tmp"))
        shutil.rmtree(killed)
        if hits == KILLS:
            break
    assert hits == KILLS


@pytest.mark.slow  # each start of the workers takes as long as torch takes to load
def test_killed_command_goes_on_and_ends_at_once_when_finished(many: Path, tmp_path: Path) -> None:
    """The command itself with two worker processes, killed five times."""
    output, rng = tmp_path / "out", random.Random(1)
    command = [
        sys.executable, "-m", "src.curate", f"input={many}", f"output={output}", "unit_size=3",
        "filter.size=48", "runner.num_workers=2", "shards.shard_size=6", "negatives.count=2",
        "thresholds.bounds.sharpness=null", "thresholds.bounds.focus=null",
        "thresholds.bounds.flat=null",
    ]  # fmt: skip
    for _ in range(KILLS):
        run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(2, 25))
        workers = psutil.Process(run.pid).children(recursive=True)
        run.kill()
        run.wait()
        wait_for(
            lambda workers=workers: not any(lives(worker.pid) for worker in workers),
            what="the end of the workers",
        )
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
