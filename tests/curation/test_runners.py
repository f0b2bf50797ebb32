"""Runners with real processes: here, on a real local Ray, and through submitit's local executor."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from open_supir.curation.ray_runner import RayRunner
from open_supir.curation.runners import LocalRunner, OpenError, Runner
from open_supir.curation.slurm_runner import SlurmRunner
from open_supir.curation.work import is_done
from tests.curation.toy import ToyStep, toy_units
from tests.waiting import lives, wait_for

ROOT = Path(__file__).parents[2]
FAULTS = {"u1": "once", "u2": "dies once", "u3": "always", "u4": "dies", "u5": "out of memory once"}


def _check_faults(runner: Runner, tmp_path: Path, *, death: str) -> None:
    """Every unit has one outcome; faults cost attempts, and no other unit anything."""
    step, units = ToyStep(str(tmp_path)), toy_units(7, **FAULTS)
    outcomes = {outcome.unit: outcome for outcome in runner.run(step, units, tmp_path)}
    assert sorted(outcomes) == [unit.name for unit in units]
    errors = {name: outcome.error for name, outcome in outcomes.items() if outcome.error}
    assert sorted(errors) == ["3", "4"]
    assert "disk on fire" in str(errors["3"]) and death in str(errors["4"])
    assert outcomes["3"].attempts == outcomes["4"].attempts == 3
    for unit in units:
        assert is_done(tmp_path, step, unit) == (unit.name not in errors)
    starts = {n: len((tmp_path / f"{n}.starts").read_text().split()) for n in sorted(outcomes)}
    assert list(starts.values()) == [1, 2, 2, 3, 3, 2, 1]


def test_local_faults_and_killed_workers_cost_their_unit_a_retry(tmp_path: Path) -> None:
    _check_faults(LocalRunner(num_workers=2), tmp_path, death="signal 9")


def test_local_worker_loads_a_step_once(tmp_path: Path) -> None:
    runner = LocalRunner(num_workers=1)
    assert len(list(runner.run(ToyStep(str(tmp_path)), toy_units(4), tmp_path))) == 4
    pids = {(tmp_path / f"{n}.starts").read_text() for n in range(4)}
    assert len(pids) == 1 and str(os.getpid()) not in pids.pop()


@pytest.mark.parametrize("workers", [0, 1])
def test_step_that_cannot_load_ends_the_run_with_its_reason(tmp_path: Path, workers: int) -> None:
    step = ToyStep(str(tmp_path), broken="no weights at x.safetensors")
    with pytest.raises(OpenError, match="step toy: .*no weights at x.safetensors"):
        list(LocalRunner(num_workers=workers).run(step, toy_units(3), tmp_path))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="num_workers >= -1"):
        LocalRunner(num_workers=-2)


@pytest.mark.parametrize("make", [
    lambda: RayRunner(num_workers=0),
    lambda: RayRunner(attempts=0),
    lambda: SlurmRunner(logs="x", jobs=0),
])  # fmt: skip
def test_clusters_without_workers_are_refused(make) -> None:
    with pytest.raises(ValueError, match="runner needs .* got"):
        make()


def test_workers_end_with_a_killed_starter(tmp_path: Path) -> None:
    code = f"""
        from pathlib import Path
        from open_supir.curation import runners
        from tests.curation.toy import ToyStep, toy_units
        if __name__ == "__main__":
            runners.HEAVY.clear()
            faults = {{f"u{{n}}": "slow" for n in range(99)}}
            root = Path({str(tmp_path)!r})
            run = runners.LocalRunner(num_workers=2).run
            list(run(ToyStep(str(root)), toy_units(99, **faults), root))
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    run = subprocess.Popen(
        [sys.executable, str(script)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )

    def pids() -> set[int]:
        paths = tmp_path.glob("*.starts")
        return {int(line) for path in paths for line in path.read_text().split()}

    try:
        wait_for(lambda: len(pids()) == 2, alive=lambda: run.poll() is None, what="two workers")
    finally:
        run.kill()
        run.wait()
    _await_end(pids())


def _await_end(pids: set[int]) -> None:
    wait_for(lambda: not any(lives(pid) for pid in pids), what="the end of the workers")


@pytest.mark.slow
def test_ray_faults_and_killed_actors_cost_their_unit_a_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real local Ray of one actor."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    try:
        _check_faults(RayRunner(num_workers=1), tmp_path, death="the worker died")
        with pytest.raises(ValueError, match="too few for a worker with runner.num_cpus=1 and"):
            list(RayRunner(num_gpus=99).run(ToyStep(str(tmp_path)), toy_units(1), tmp_path))
        alone = RayRunner(num_workers=3, num_cpus=ray.cluster_resources()["CPU"])
        done = alone.run(ToyStep(str(tmp_path)), toy_units(2), tmp_path / "more")
        assert {outcome.error for outcome in done} == {None}  # no unit waits for a second worker
    finally:
        ray.shutdown()


def test_slurm_jobs_do_their_shares_and_the_next_array_does_what_is_left(tmp_path: Path) -> None:
    """submitit's local executor: each job is a process of its own, and a dead one a lost share."""
    pytest.importorskip("submitit")
    runner = SlurmRunner(
        logs=str(tmp_path / "logs"), jobs=2, cluster="local", attempts=2, poll_s=0.05
    )
    step, units = ToyStep(str(tmp_path)), toy_units(4, u0="dies once", u3="always")
    outcomes = {outcome.unit: outcome for outcome in runner.run(step, units, tmp_path)}
    assert {name: outcome.attempts for name, outcome in outcomes.items()} == {
        "0": 2, "1": 1, "2": 2, "3": 2
    }  # fmt: skip
    errors = {name: outcome.error for name, outcome in outcomes.items() if outcome.error}
    assert sorted(errors) == ["3"] and "disk on fire" in errors["3"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Children take ctrl-C, even where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_slurm_jobs_of_an_interrupted_run_are_cancelled(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    runner = SlurmRunner(logs=str(tmp_path / "logs"), jobs=2, cluster="local", poll_s=0.05)
    run = runner.run(ToyStep(str(tmp_path)), toy_units(2, u1="sleeps"), tmp_path)
    assert next(run).unit == "0"
    started = tmp_path / "1.starts"
    wait_for(lambda: started.is_file() and started.read_text(), what="the start of unit 1")
    run.close()  # type: ignore[attr-defined]
    _await_end({int(started.read_text())})


@pytest.mark.parametrize("runner, library", [
    (RayRunner(), "ray"), (SlurmRunner(logs="x"), "submitit"),
])  # fmt: skip
def test_missing_extra_is_named(
    runner: Runner, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[curation\]'"):
        list(runner.run(ToyStep(str(tmp_path)), toy_units(1), tmp_path))
