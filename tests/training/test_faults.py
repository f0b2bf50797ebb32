"""What happens to a run when its world breaks: real processes, real signals, real files."""

import json
import logging
import random
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import torch

from open_supir.training.checkpoint_io import committed, verify
from open_supir.training.resume import newest_verified
from tests.training import workers
from tests.training.workers import Processes, loss_of, run


def state(folder: Path, step: int) -> dict:
    return torch.load(folder / f"checkpoints/step_{step:07d}.ckpt", weights_only=True)


def assert_same_state(a: dict, b: dict) -> None:
    """Weights, average, optimiser and learning rate, bit for bit."""
    assert a["global_step"] == b["global_step"]
    for part in ("state_dict", "ema"):
        assert a[part].keys() == b[part].keys()
        for name, tensor in a[part].items():
            assert torch.equal(tensor, b[part][name]), (part, name)
    ours, theirs = (c["optimizer_states"][0]["state"] for c in (a, b))
    for index, moments in ours.items():
        for name, tensor in moments.items():
            assert torch.equal(tensor, theirs[index][name]), (index, name)
    assert a["lr_schedulers"] == b["lr_schedulers"]


@pytest.mark.parametrize(
    "kills", [pytest.param(2, id="2"), pytest.param(20, id="20", marks=pytest.mark.slow)]
)
def test_killed_again_and_again_a_run_ends_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    """SIGKILL at random moments of a run that saves after every step; the system's temporary folder
    is on another file system than the checkpoints, where there is one.
    """
    monkeypatch.setenv("TMPDIR", "/dev/shm" if Path("/dev/shm").is_dir() else str(tmp_path))
    width, steps = 60_000, 8 * kills  # a checkpoint of 16 MB takes most of a step
    moments = random.Random(kills)
    broken, folder = tmp_path / "broken", tmp_path / "broken/checkpoints"
    for _ in range(kills):
        before = len(committed(folder)) and committed(folder)[0]
        with Processes(workers.heavy_task, 1, broken, width, steps=steps) as processes:
            processes.wait_for(
                lambda before=before: bool(committed(folder)) and committed(folder)[0] != before
            )
            time.sleep(moments.uniform(0, 0.25))
            processes.kill(0)
        found = committed(folder)
        assert found and verify(found[0]) is None
        assert len(found) >= 2 or found[0].name == "step_0000001.ckpt"
        assert verify((folder / "last.ckpt").resolve()) is None
    assert run(workers.heavy_task, 1, broken, width, steps=steps) == [0]
    assert run(workers.heavy_task, 1, tmp_path / "whole", width, steps=steps) == [0]
    assert_same_state(state(broken, steps), state(tmp_path / "whole", steps))
    names = {path.name for path in folder.iterdir()}
    kept = {f"step_{s:07d}.ckpt{end}" for s in (steps - 1, steps) for end in ("", ".json")}
    assert names == kept | {"last.ckpt"}  # no temporary file is left of the killed ones


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "unfinished"])
def test_a_damaged_newest_checkpoint_is_passed_over(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    workers.fit(tmp_path, steps=3)
    newest = tmp_path / "checkpoints/step_0000003.ckpt"
    content = bytearray(newest.read_bytes())
    if damage == "truncated":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "bit flipped":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    else:
        newest.with_name(newest.name + ".json").unlink()
    caplog.set_level(logging.WARNING)
    assert newest_verified(tmp_path).name == "step_0000002.ckpt"
    assert damage == "unfinished" or f"{newest} is damaged" in caplog.text


def test_nothing_left_to_resume_from_says_why(tmp_path: Path) -> None:
    workers.fit(tmp_path, steps=2)
    for path in committed(tmp_path / "checkpoints"):
        path.write_bytes(b"short")
    with pytest.raises(ValueError, match="step_0000001.ckpt: 5 bytes in place of"):
        newest_verified(tmp_path)


def test_a_write_error_ends_the_run_and_keeps_what_there_is(tmp_path: Path) -> None:
    """The kernel refuses the write midway, as on a full disk (RLIMIT_FSIZE)."""
    codes = run(workers.limited_task, 1, tmp_path / "run", limit=10_000, steps=3)
    assert codes[0] != 0
    assert "OSError" in (tmp_path / "run.rank0.log").read_text()
    names = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert names == {"step_0000001.ckpt", "step_0000001.ckpt.json", "last.ckpt"}
    assert verify(tmp_path / "run/checkpoints/step_0000001.ckpt") is None


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    """A real, small file system; runs where mounting is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        workers.fit(disk / "run", steps=1)
        (disk / "filler").write_bytes(bytes(40 << 20))
        checkpoint = str(disk / "run/checkpoints/step_0000001.ckpt")
        with pytest.raises(OSError, match="GB free"):
            workers.fit(disk / "run", steps=2, ckpt_path=checkpoint)
        assert len(list((disk / "run/checkpoints").iterdir())) == 3
        (disk / "filler").unlink()  # there is room again
        workers.fit(disk / "run", steps=2, ckpt_path=checkpoint)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_unwritable_folder_fails_the_run() -> None:
    """Lightning 2.6's own writer ends such a run with exit code 0 and no file."""
    root = Path(tempfile.mkdtemp())
    try:
        root.chmod(0o755)
        (root / "run/checkpoints").mkdir(parents=True)
        (root / "run").chmod(0o777)
        (root / "run/checkpoints").chmod(0o555)
        codes = run(workers.unwritable_task, 1, root / "run", steps=1)
        assert codes[0] != 0
        assert "Permission denied" in (root / "run.rank0.log").read_text()
        assert not list((root / "run/checkpoints").iterdir())
    finally:
        shutil.rmtree(root)


QUICK = [((1,), 0.0), ((0, 1), 0.05)]
MATRIX = [(who, offset) for who in ((0,), (1,), (0, 1)) for offset in (0.0, 0.05, 0.3, 1.0)]


@pytest.mark.parametrize(
    ("who", "offset"),
    [pytest.param(*c, marks=[] if c in QUICK else pytest.mark.slow) for c in MATRIX],
)
def test_a_signal_to_any_rank_stops_all_after_the_same_step(
    tmp_path: Path, who: tuple[int, ...], offset: float
) -> None:
    folder = tmp_path / "run"
    with Processes(workers.slow_task, 2, folder, 2, steps=10_000, every=10_000) as processes:
        processes.wait_for(lambda: all((folder / f"trace_{r}.jsonl").exists() for r in (0, 1)))
        for number, rank in enumerate(who):
            time.sleep(offset if number or len(who) == 1 else 0)
            if processes.processes[rank].is_alive():
                processes.kill(rank, signal.SIGTERM)
        assert processes.exit_codes() == [143, 143]
    (checkpoint,) = committed(folder / "checkpoints")
    assert verify(checkpoint) is None
    last = [(folder / f"trace_{r}.jsonl").read_text().splitlines()[-1] for r in (0, 1)]
    assert {json.loads(row)["step"] for row in last} == {state_step(checkpoint)}


def state_step(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("step_"))


@pytest.mark.parametrize(
    ("spoils_gradients", "strategy"), [(True, None), (False, None), (True, "sharded")]
)
def test_a_nan_on_one_rank_changes_no_rank(
    tmp_path: Path, spoils_gradients: bool, strategy: str | None
) -> None:
    """Step 2 is left out everywhere, also where only the loss of one rank shows it."""
    folder = tmp_path / "run"
    bad = {"bad_steps": (2,), "rank": 1, "spoils_gradients": spoils_gradients}
    assert run(workers.nan_task, 2, folder, 2, steps=5, strategy=strategy, **bad) == [0, 0]
    last = state(folder, 5)
    assert all(tensor.isfinite().all() for tensor in last["state_dict"].values())
    moments = last["optimizer_states"][0]["state"][0]
    assert moments["step"] == 4  # five steps, one of them without an update
    record = json.loads((folder / "odd_steps/step_0000002_rank1.json").read_text())
    assert record["reason"] == "not finite" and record["micro_batches"][0]["seeds"] == [10, 11]
    assert record["micro_batches"][0]["keys"] == ["k10", "k11"]


def test_nans_in_a_row_stop_all_ranks_before_anything_good_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    codes = run(
        workers.nan_task, 2, folder, 2, bad_steps=(2, 3, 4), rank=0, steps=9, stop_after=3, every=2
    )
    assert 0 not in codes
    assert [path.name for path in committed(folder / "checkpoints")][0] == "step_0000004.ckpt"
    assert all(t.isfinite().all() for t in state(folder, 4)["state_dict"].values())
    for rank in (0, 1):
        said = (tmp_path / f"run.rank{rank}.log").read_text()
        assert "FloatingPointError: loss or gradient not finite in 3 steps in a row" in said


def test_an_exception_on_one_rank_ends_all(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    codes = run(workers.raising_task, 2, folder, 2, rank=1, steps=9)
    assert 0 not in codes
    assert committed(folder / "checkpoints")[0].name == "step_0000002.ckpt"


def test_a_stuck_process_is_ended_and_shows_where_it_stands(tmp_path: Path) -> None:
    """As every test of several processes does after ten minutes without progress."""
    with (
        Processes(workers.stuck_task, 1, tmp_path / "run") as processes,
        pytest.raises(AssertionError, match="(?s)no progress for 0 s.*in stuck_task"),
    ):
        processes.wait_for(lambda: "stuck" in processes.log_text())
        processes.exit_codes(patience=0.1)


def test_killing_one_rank_ends_the_other_and_the_run_goes_on_later(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Processes(workers.slow_task, 2, folder, 2, steps=10_000) as processes:
        processes.wait_for(lambda: len(committed(folder / "checkpoints")) == 2)
        processes.kill(1)
        codes = processes.exit_codes()
    assert codes[1] == -signal.SIGKILL and codes[0] != 0
    start = newest_verified(folder)
    steps = state_step(start) + 2
    assert run(workers.train_task, 2, folder, 2, steps=steps, ckpt_path=str(start)) == [0, 0]


def test_two_ranks_then_one_then_two_see_the_same_samples_and_losses(tmp_path: Path) -> None:
    """Against one process all the way; sums of gradients come in another order."""
    mixed, whole = tmp_path / "mixed", tmp_path / "whole"
    for steps, ranks in ((2, 2), (4, 1), (6, 2)):
        start = str(newest_verified(mixed)) if steps > 2 else None
        codes = run(workers.train_task, ranks, mixed, ranks, steps=steps, ckpt_path=start)
        assert codes == [0] * ranks
    workers.fit(whole, steps=6)
    a, b = loss_of(mixed), loss_of(whole)
    assert sorted(a) == sorted(b) == list(range(24))  # each sample once
    assert a == pytest.approx(b, rel=1e-5)


def test_micro_batches_accumulate_to_the_same_step(tmp_path: Path) -> None:
    workers.fit(tmp_path / "whole", steps=4)
    workers.fit(tmp_path / "parts", steps=4, micro_batch=1)
    a, b = loss_of(tmp_path / "whole"), loss_of(tmp_path / "parts")
    assert sorted(b) == list(range(16)) and a == pytest.approx(b, rel=1e-5)


def test_a_resumed_run_on_two_ranks_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path,
) -> None:
    halted, whole = tmp_path / "halted", tmp_path / "whole"
    assert run(workers.train_task, 2, halted, 2, steps=2) == [0, 0]
    start = str(newest_verified(halted))
    assert run(workers.train_task, 2, halted, 2, steps=4, ckpt_path=start) == [0, 0]
    assert run(workers.train_task, 2, whole, 2, steps=4) == [0, 0]
    assert_same_state(state(halted, 4), state(whole, 4))
    assert loss_of(halted) == loss_of(whole)
