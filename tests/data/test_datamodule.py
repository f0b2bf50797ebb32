"""RestorationDataModule: exact resume, a fingerprint that names changes, clear errors."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from open_supir.data import SourceConfig
from open_supir.data.captions import approximate_tokens
from open_supir.data.datamodule import RestorationDataModule
from open_supir.data.shards import StorageError
from tests.data.made import pixels, shard_folder
from tests.data.recorder import GLOBAL_BATCH, data_module, train
from tests.test_configs import CONF
from tests.waiting import PATIENCE, wait_for


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shard_folder(tmp_path / "main", [7, 12, 3, 9, 20], prefix="m")
    shard_folder(tmp_path / "neg", [4, 5], prefix="n")
    (tmp_path / "heldout").mkdir()
    for i in range(3):
        Image.fromarray(pixels(i)).save(tmp_path / "heldout" / f"{i}.png")
    return tmp_path


def steps(rows) -> dict[int, list]:
    """Step -> its samples, whatever rank and micro-batch they came in."""
    by_step: dict[int, list] = {}
    for step, *sample in rows:
        by_step.setdefault(step, []).append(tuple(sample))
    return {step: sorted(samples) for step, samples in by_step.items()}


def test_resumed_run_sees_what_a_straight_run_sees(root: Path) -> None:
    """Another micro-batch and worker count, reading ahead, several resumes."""
    straight = steps(train(root, 9).seen)
    assert {len(samples) for samples in straight.values()} == {GLOBAL_BATCH}
    save = root / "a.ckpt"
    parts = steps(train(root, 3, save=save, workers=2, micro=4).seen)
    parts |= steps(train(root, 5, save=save, resume=save, micro=6).seen)
    parts |= steps(train(root, 9, save=save, resume=save, micro=2, workers=1).seen)
    assert parts == straight


def test_checkpoint_holds_the_integer_and_the_plan(root: Path) -> None:
    train(root, 3, save=root / "a.ckpt", workers=2, micro=4)
    saved = torch.load(root / "a.ckpt", weights_only=True)["RestorationDataModule"]
    assert saved["consumed"] == 3 * GLOBAL_BATCH  # not what the workers have read ahead
    assert saved["plan"]["sources.main.samples"] == 51


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"cycle": 20}, "cycle: 40 -> 20"),
        ({"block_shards": 3}, "block_shards: 2 -> 3"),
        ({"fraction": 0.5}, "fraction: 1.0 -> 0.5"),
        ({"global_batch": 24}, "global_batch: 12 -> 24"),
    ],
)
def test_changed_plan_is_refused_by_name(root: Path, change: dict, named: str) -> None:
    old, new = data_module(root), data_module(root, **change)
    old.setup("fit")
    new.setup("fit")
    with pytest.raises(ValueError, match=f"plan has changed: .*{named}"):
        new.load_state_dict(old.state_dict())


def test_changed_shards_and_weights_are_refused_by_name(root: Path) -> None:
    old = data_module(root)
    old.setup("fit")
    state = old.state_dict()
    shard_folder(root / "neg", [4, 6], prefix="n")
    new = data_module(root)
    new.sources["main"] = SourceConfig(weight=9)
    new.setup("fit")
    with pytest.raises(ValueError) as caught:
        new.load_state_dict(state)
    for name in ("sources.neg.samples: 9 -> 10", "sources.neg.shards", "sources.main.quota"):
        assert name in str(caught.value)


def test_state_loads_without_training_data(tmp_path: Path, root: Path) -> None:
    """Validation and test of a checkpoint need no shards."""
    old = data_module(root)
    old.setup("fit")
    idle = data_module(root)
    idle.setup("test")
    idle.load_state_dict(old.state_dict())
    assert idle.state_dict() == {}


def test_fraction_uses_fewer_shards(root: Path) -> None:
    small, whole = data_module(root, fraction=0.4), data_module(root)
    small.setup("fit")
    whole.setup("fit")
    assert small.plan is not None and whole.plan is not None
    assert [len(s) for s in small.plan.shards] == [2, 1]
    keys = {key for batch, _ in zip(small.train_dataloader(), range(9), strict=False)
            for key in batch["key"]}  # fmt: skip
    names = {small.plan.folders[0].entries[i].name[2:5] for i in small.plan.shards[0]}
    assert {key[1:4] for key in keys if key.startswith("m")} == names


def test_validation_is_the_same_every_time(root: Path) -> None:
    data = data_module(root, val_size=5, val_batch=2)
    first, again = list(data.val_dataloader()), list(data.val_dataloader())
    assert [len(b["key"]) for b in first] == [2, 2, 1]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a["hq"], b["hq"]) and torch.equal(a["seed"], b["seed"])


def test_validation_does_not_depend_on_the_seed_of_the_run(root: Path) -> None:
    runs = (data_module(root, val_size=5, val_batch=5, seed=seed) for seed in (0, 1))
    first, second = (next(iter(data.val_dataloader())) for data in runs)
    assert torch.equal(first["hq"], second["hq"]) and torch.equal(first["seed"], second["seed"])


def test_moving_a_batch_leaves_the_seed_behind(root: Path) -> None:
    data = data_module(root)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["hq"].device.type == moved["sizes"].device.type == "meta"
    assert moved["seed"].device.type == "cpu" and moved["caption"] == batch["caption"]
    assert moved["hq"].is_contiguous()


def test_topology_that_does_not_make_the_global_batch_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="global_batch 12 must equal 1 ranks x 2 .* 5"):
        train(root, 1, micro=5)


def test_missing_and_broken_data_are_named(tmp_path: Path, root: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data_module(tmp_path / "nowhere").prepare_data()
    (root / "main" / "manifest.json").rename(root / "main" / "m.json")
    with pytest.raises(FileNotFoundError, match="src.check"):
        data_module(root).setup("fit")
    (root / "main" / "m.json").rename(root / "main" / "manifest.json")
    os.truncate(root / "main" / "m-003.tar", 100)
    with pytest.raises(StorageError, match="m-003.tar has 100 bytes"):
        data_module(root).setup("fit")
    with pytest.raises(ValueError, match="reader"):
        data_module(root, reader="random")


def test_prepare_makes_missing_data_once(tmp_path: Path) -> None:
    made = []

    def prepare(path: Path) -> None:
        made.append(path)
        path.mkdir()

    data = data_module(tmp_path / "new", prepare=prepare, prepare_at=str(tmp_path / "new"))
    data.prepare_data()
    data.prepare_data()
    assert made == [tmp_path / "new"]


def test_a_mistyped_root_is_refused_and_not_made(tmp_path: Path) -> None:
    data = data_module(tmp_path / "nwe", prepare=Path.mkdir, prepare_at=tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="data.root=.*nwe: no such folder of shards, or"):
        data.prepare_data()
    assert not list(tmp_path.iterdir())


def test_the_demo_is_made_only_where_it_is_asked_for() -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        own = compose("train", ["experiment=zerosft", "data.root=mine"]).data
        there = compose("train", ["experiment=zerosft", "data.prepare_at=there"]).data
        usual = compose("train", ["experiment=zerosft"]).data
    assert (own.root, own.prepare_at) == ("mine", "data/shards/demo")
    assert there.root == "there" and usual.root == "data/shards/demo"


def test_stream_reader_trains_and_resumes_with_a_warning(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save = root / "s.ckpt"
    train(root, 2, save=save, reader="stream")
    model = train(root, 4, save=save, resume=save, reader="stream")
    assert [step for step in steps(model.seen)] == [2, 3]
    assert "cannot resume exactly" in caplog.text


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def start(root: Path, log: Path, count: int, *, world: int, micro: int, workers: int) -> list:
    port = free_port()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.data.recorder", str(root), f"{log}.{rank}", str(count),
             str(world), str(rank), port, str(micro), str(workers)],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for rank in range(world)
    ]  # fmt: skip


def recorded(log: Path) -> list[list]:
    """All rows written so far; a line cut by the kill is left out."""
    rows = []
    for path in sorted(log.parent.glob(f"{log.name}.*")):
        lines = path.read_text().split("\n")[:-1]
        rows += [json.loads(line) for line in lines]
    return rows


def wait(processes: list) -> None:
    for process in processes:
        _, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, error.decode()[-2000:]


def wait_for_steps(log: Path, goal: int, processes: list) -> None:
    """Wait for the first `goal` steps, or the end of the run."""

    def reached() -> bool:
        ended = all(process.poll() is not None for process in processes)
        return ended or len(steps(recorded(log))) >= goal

    wait_for(reached, progress=lambda: len(recorded(log)), what=f"step {goal}")


@pytest.mark.slow
def test_killed_processes_resume_exactly_on_one_and_back_on_two(root: Path) -> None:
    """Two gloo ranks, SIGKILLed five times at random, resumed on one rank and back on two."""
    rng, total = random.Random(0), 60
    straight = steps(tuple(row) for row in train(root, total).seen)
    seen: dict[int, list] = {}
    for kill in range(6):
        world = 2 if kill % 2 == 0 else 1
        log = root / f"log{kill}"
        last = kill == 5
        processes = start(
            root, log, total, world=2 if last else world, micro=rng.choice([2, 3, 6]),
            workers=rng.choice([0, 1, 2]),
        )  # fmt: skip
        if last:
            wait(processes)
        else:
            goal = rng.randint(2, 7)
            wait_for_steps(log, goal, processes)
            for process in processes:
                process.send_signal(signal.SIGKILL)
                process.communicate()
        got = steps(recorded(log))
        for step, samples in got.items():
            if len(samples) == GLOBAL_BATCH:
                assert samples == straight[step]
                seen[step] = samples
            else:  # killed in the middle of a step: what was read belongs to it
                assert set(samples) <= set(straight[step])
    assert seen == straight


def test_without_a_counter_tokens_are_estimated(tmp_path: Path) -> None:
    sources = {"a": SourceConfig(weight=1)}
    data = RestorationDataModule(tmp_path, sources, crop_size=64, global_batch=4, count_tokens=None)
    assert data.sample_reader.count_tokens is approximate_tokens
