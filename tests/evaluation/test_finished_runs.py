"""Finding, reading and naming run folders."""

import json
import os
from pathlib import Path

import pytest

from open_supir.base.run_folders import flatten
from open_supir.evaluation.finished_runs import (
    FinishedRun,
    config_differences,
    final_values,
    find_runs,
    label_runs,
    newest_sweep,
    read_run,
)
from tests.evaluation.fake_runs import make_run


def test_find_runs_descends_and_does_not_enter_a_run(tmp_path: Path) -> None:
    first = make_run(tmp_path / "zerosft" / "2026-01-01_00-00-00")
    second = make_run(tmp_path / "zerosft" / "multirun" / "2026-01-02_00-00-00" / "seed=1")
    make_run(first / "eval" / "inner")
    (tmp_path / "ablation" / "2026" / ".hydra").mkdir(parents=True)
    (tmp_path / "ablation" / "2026" / ".hydra" / "config.yaml").write_text("a: 1\n")
    assert find_runs([tmp_path]) == [first, second]
    assert find_runs([first]) == [first]
    assert find_runs([tmp_path / "zero*" / "multirun" / "*", tmp_path]) == [second, first]


def test_find_runs_takes_brackets_in_folder_names(tmp_path: Path) -> None:
    run = make_run(tmp_path / "crop=[64,64]")
    assert find_runs([run]) == [run]


def test_find_runs_names_the_place_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such run or folder: .*nowhere"):
        find_runs([tmp_path / "nowhere"])


def test_newest_sweep_is_the_one_with_the_latest_name_and_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "b" / "multirun" / "2026-01-01_00-00-00" / "seed=1")
    newest = tmp_path / "a" / "multirun" / "2026-01-02_00-00-00"
    make_run(newest / "seed=1")
    (tmp_path / "a" / "multirun" / "2026-01-03_00-00-00").mkdir()
    assert newest_sweep(tmp_path) == [newest]
    assert newest_sweep(tmp_path / "b") == []


def test_newest_sweep_over_experiments_lies_in_several_folders(tmp_path: Path) -> None:
    folders = [tmp_path / name / "multirun/2026-01-01_00-00-00" for name in ("a", "b")]
    for folder in folders:
        make_run(folder / "experiment")
    assert newest_sweep(tmp_path) == folders


def test_read_run_reads_config_curves_summary_and_pictures(tmp_path: Path) -> None:
    path = make_run(tmp_path / "r", seed=3, connector="residual", pictures=("step_10.png",))
    run = read_run(path)
    assert run.config["connector.name"] == "residual" and run.config["seed"] == 3
    assert run.overrides == ("experiment=zerosft", "connector=residual", "seed=3")
    assert run.finished and run.summary["experiment"] == "zerosft"
    assert [step for step, _ in run.curves["val/loss"]] == [10, 20]
    assert list(run.pictures) == ["step_10.png"]


def test_read_run_joins_the_logs_of_a_resumed_run(tmp_path: Path) -> None:
    path = make_run(tmp_path / "r")
    for version, text in enumerate(("step,val/loss\n10,5\n20,4\n", "step,val/loss\n20,3\n30,2\n")):
        log = path / "csv" / f"version_{version}" / "metrics.csv"
        log.parent.mkdir(parents=True)
        log.write_text(text)
        os.utime(log, (2e9 + version, 2e9 + version))
    assert read_run(path).curves["val/loss"] == [(10, 5.0), (20, 3.0), (30, 2.0)]


def test_read_run_drops_what_a_resumed_run_took_back(tmp_path: Path) -> None:
    path = make_run(tmp_path / "r")
    logs = {"metrics_until_step_0000020": "step,val/loss,lr\n10,5,1\n20,4,\n25,9,\n"}
    logs["metrics"] = "step,val/loss,lr\n22,3,\n30,2,2\n"
    for number, (name, text) in enumerate(logs.items()):
        (path / "csv" / f"{name}.csv").write_text(text)
        os.utime(path / "csv" / f"{name}.csv", (2e9 + number, 2e9 + number))
    curves = read_run(path).curves
    assert curves["val/loss"] == [(10, 5.0), (20, 4.0), (22, 3.0), (30, 2.0)]
    assert curves["lr"] == [(10, 1.0), (30, 2.0)]


def test_read_run_skips_empty_cells_and_a_line_cut_off(tmp_path: Path) -> None:
    path = make_run(tmp_path / "r")
    (path / "csv" / "metrics.csv").write_text(
        "epoch,step,train/loss,val/loss\n0,1,0.5,\n0,2,,0.25\n0,3,nan,\n0,4,0.4"
    )
    run = read_run(path)
    assert run.curves == {"train/loss": [(1, 0.5), (4, 0.4)], "val/loss": [(2, 0.25)]}


def test_read_run_names_a_damaged_file(tmp_path: Path) -> None:
    path = make_run(tmp_path / "r")
    (path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match="summary.json: not JSON"):
        read_run(path)


def test_labels_are_the_overrides_that_are_not_shared(tmp_path: Path) -> None:
    runs = [
        FinishedRun(path=tmp_path / "a", label="", overrides=("experiment=x", "connector=zerosft")),
        FinishedRun(
            path=tmp_path / "b", label="", overrides=("experiment=x", "+connector=residual")
        ),
        FinishedRun(path=tmp_path / "c", label="", overrides=("experiment=x", "connector=zerosft")),
        FinishedRun(path=tmp_path / "d", label="", overrides=("experiment=x", "vae='a b'")),
    ]
    labels = [run.label for run in label_runs(runs)]
    assert labels == [
        "connector=zerosft (1)",
        "connector=residual",
        "connector=zerosft (2)",
        "vae=a b",
    ]


def test_label_of_a_single_run_is_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "zerosft" / "2026-01-01_00-00-00"
    (run,) = label_runs([FinishedRun(path=path, label="", overrides=("experiment=zerosft",))])
    assert run.label == "zerosft/2026-01-01_00-00-00"


def test_config_differences_lists_changed_and_absent_keys_only() -> None:
    runs = [
        FinishedRun(path=Path("a"), label="a", config=flatten({"lr": 1e-4, "net": {"kind": "x"}})),
        FinishedRun(
            path=Path("b"), label="b",
            config=flatten({"lr": 1e-4, "net": {"kind": "y", "depth": 2}, "paths": {"out": "b"}}),
        ),
    ]  # fmt: skip
    assert config_differences(runs, ignore=["paths"]) == {
        "net.kind": ["x", "y"],
        "net.depth": ["-", "2"],
    }


def test_final_values_average_the_tail_of_training_losses() -> None:
    curve = [(step, float(step)) for step in range(1, 21)]
    run = FinishedRun(
        path=Path("a"), label="a", curves={"train/loss": curve, "val/loss": curve, "lr": curve},
        summary={"val/loss": 99.0, "step": 20, "experiment": "x", "done": True},
    )  # fmt: skip
    assert final_values(run) == {"train/loss": 19.5, "val/loss": 20.0, "step": 20.0}


def test_summary_may_hold_anything_json_holds(tmp_path: Path) -> None:
    path = make_run(tmp_path / "r")
    (path / "summary.json").write_text(json.dumps(["unexpected"]))
    assert not read_run(path).finished
