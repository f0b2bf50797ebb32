"""Commands: help, and what they say and keep when something fails."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from open_supir.base.cli import command, pick_device
from open_supir.base.failures import message
from open_supir.base.help import help_text
from open_supir.data.storage import StorageError
from tests.test_configs import COMMANDS

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a task as a command and returns what it ends with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    handlers = logging.getLogger().handlers[:]

    def run(task: Callable[[DictConfig], Any], *arguments: str, config: str = "degrade") -> str:
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "")
        try:
            with pytest.raises(SystemExit) as ended:
                command(config)(task)()
        finally:
            logging.getLogger().handlers[:] = handlers
        assert "Error executing job" not in capfd.readouterr().err
        return str(ended.value)

    return run


def fails_deep_inside(cfg: DictConfig) -> None:
    {"text": ""}["caption"]


def refuses(cfg: DictConfig) -> None:
    pick_device("gpu")


def test_an_unexpected_error_is_one_line_that_names_the_traceback(run: Run, tmp_path: Path) -> None:
    said = run(fails_deep_inside, "input=a", "output=b")
    assert re.fullmatch(r"error: KeyError: caption; the traceback is in \S+\.log", said)
    kept = Path(said.rpartition(" ")[2])
    assert kept.parent == tmp_path and "in fails_deep_inside" in kept.read_text()


def test_a_mistake_of_the_user_is_one_line_and_leaves_no_file(run: Run, tmp_path: Path) -> None:
    said = run(refuses, "input=a", "output=b")
    assert said == "error: device=gpu: known are auto, cuda, xpu, mps, cpu, and cuda:NUMBER"
    assert not list(tmp_path.iterdir())


def test_a_run_keeps_the_traceback_of_every_error_in_its_log(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for task, line in ((fails_deep_inside, "in fails_deep_inside"), (refuses, "in pick_device")):
        said = run(task, "experiment=zerosft", f"hydra.run.dir={tmp_path}/run", config="train")
        (log,) = (tmp_path / "run").glob("*.log")
        assert line in log.read_text()
        assert (str(log) in said) == (task is fails_deep_inside)
        assert "Traceback" not in said


def test_a_sweep_goes_on_after_a_failed_job(run: Run, tmp_path: Path) -> None:
    seen = []

    def task(cfg: DictConfig) -> None:
        seen.append(cfg.seed)
        if cfg.seed == 1:
            pick_device("gpu")

    said = run(task, "-m", "input=a", "output=b", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep")
    assert seen == [1, 2]
    table = (tmp_path / "sweep/jobs.txt").read_text()
    assert table == "0\tinput=a output=b seed=1\n1\tinput=a output=b seed=2\n"
    assert said.startswith("error: 1 jobs of the sweep failed:\njob 0: device=gpu: known are")


def test_a_sweeps_runs_lie_in_numbered_folders(run: Run, tmp_path: Path) -> None:
    def task(cfg: DictConfig) -> None:
        raise ValueError(cfg.weights.vae)

    run(task, "-m", "experiment=zerosft", "seed=0,1", "weights.vae=a/b,null", "weights.sdxl=x",
        "runs_dir=own runs", config="train")  # fmt: skip
    (sweep,) = (tmp_path / "own runs/zerosft/multirun").iterdir()
    folders = ["0_seed=0", "1_seed=0", "2_seed=1", "3_seed=1"]
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == folders
    (line, *_) = (sweep / "jobs.txt").read_text().splitlines()
    assert line.startswith("0_seed=0\texperiment=zerosft seed=0 weights.vae=")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sed=1"], "unknown key 'sed'; known at the top level: degradation, device, input"),
        (["degradation=foo"], "degradation=foo: no such choice; known: bicubic, blur2_x4"),
        (["input=Family,", "1980"], "cannot read the argument '1980': expected key=value"),
        (["seed=(1"], "cannot read the argument 'seed=(1': expected key=value"),
        (["input="], "input= is empty: give a path"),
        (["--input", "a"], "--input: settings are written key=value, without dashes: input=...;"),
        (["--input=a", "--output=b"], "--input: settings are written key=value"),
    ],
)
def test_mistyped_arguments_are_one_line(run: Run, arguments: list[str], line: str) -> None:
    said = run(refuses, *arguments)
    assert said.startswith(f"error: {line}") and "\n" not in said


@pytest.mark.parametrize(
    ("config", "argument", "line"),
    [
        ("restore", "overwrite=no", "overwrite=no: must be true or false"),
        ("restore", "options.average=off", "options.average=off: must be true or false"),
        ("evaluate", "resume=maybe", "resume=maybe: must be true or false"),
        ("convert", "overwrite='yes'", "overwrite=yes: must be true or false"),
        ("degrade", "seed=x", "seed=x: must be a number, such as 0"),
        ("train", "data.global_batch=big", "data.global_batch=big: must be a number, such as 8"),
        ("restore", "max_pixels=100MP", "max_pixels=100MP: must be a number, such as 100000000"),
    ],
)
def test_text_for_a_switch_or_a_number_is_refused(
    run: Run, config: str, argument: str, line: str
) -> None:
    """`overwrite=no` would be the text "no", which Python takes for true."""
    more = ["experiment=zerosft"] if config == "train" else []
    assert run(refuses, *more, argument, config=config) == f"error: {line}"


@pytest.mark.parametrize(
    "arguments",
    [["overwrite=true"], ["max_pixels=1e8"], ["options.min_size=native"], ["device=cuda"],
     ["output=no"], ["preset=quality", "quantize=int8"]],
)  # fmt: skip
def test_values_of_the_right_kind_reach_the_command(run: Run, arguments: list[str]) -> None:
    said = run(refuses, *arguments, config="restore")
    assert said.startswith("error: device=gpu")  # what the task says


def test_unknown_key_of_a_swept_choice_names_its_keys(run: Run) -> None:
    said = run(refuses, "-m", "degradation=x4,x8", "degradation.nosuch=1")
    assert said.startswith(
        "error: unknown key 'degradation.nosuch' with degradation=x4; known under"
    )


def test_unknown_key_of_one_job_names_the_job(run: Run) -> None:
    said = run(refuses, "-m", "experiment=zerosft", "connector=zerosft,residual",
               "connector.hidden=16", config="train")  # fmt: skip
    assert said.startswith("error: unknown key 'connector.hidden' with connector=residual; known ")
    assert "under 'connector': channel_mult, head_channels" in said


def test_a_message_of_several_lines_becomes_one() -> None:
    assert message(StorageError("s3://a: read failed (first\n  second)")) == (
        "s3://a: read failed (first second)"
    )
    worker = (
        "Caught StorageError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        'last):\n  File "x", line 1\nopen_supir.data.storage.StorageError: shard: read failed (a\n'
        "b)\n"
    )
    assert message(StorageError(worker)) == "shard: read failed (a b)"
    other = worker.replace("open_supir.data.storage.StorageError: shard: read failed (a\nb)",
                           "ValueError: no sample")  # fmt: skip
    assert message(ValueError(other)) == "ValueError: no sample"


def test_an_absent_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match="device=cuda:1: this machine has 1 CUDA devices"):
        pick_device("cuda:1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match="device=cuda: this machine has 0 CUDA devices"):
        pick_device("cuda")


def test_help_lists_a_commands_own_settings_one_a_line() -> None:
    lines = help_text("restore", "Restore.").splitlines()
    for start, words in (
        ("  input=??? ", "an image, or a folder"),
        ("  weights.vae=null ", "base files; null: those that the checkpoint names"),
        ("  captioner=none ", "file, local, none, server"),
        ("  options.strength=null ", "0 returns the input untouched"),
        ("  sampler.tau=??? ", "restoration guidance"),
    ):
        (line,) = [line for line in lines if line.startswith(start)]
        assert words in line
    assert not any(line.lstrip().startswith(("unet", "trainer", "experiment")) for line in lines)


@pytest.mark.parametrize("name", [*COMMANDS, "train"])
def test_every_command_has_help(name: str) -> None:
    text = help_text(name, "What it does.")
    assert text.startswith("What it does.\n\nexamples:\n  python -m src.")
    settings = re.findall(r"^  (\w[\w.]*)=", text, re.M)
    assert len(settings) == len(set(settings)) > 3


def test_log_is_in_the_run_folder_that_is_named(run: Run, tmp_path: Path) -> None:
    words = ("experiment=zerosft", "run_dir=my run=1/a_b", f"runs_dir={tmp_path / 'runs'}")
    run(refuses, *words, config="train")
    assert len(list((tmp_path / "my run=1/a_b").glob("*.log"))) == 1
    assert not (tmp_path / "runs").exists()


def test_help_into_a_closed_pipe_ends_without_a_traceback() -> None:
    """As `--help | head` does when head is done first."""
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "src.restore", "--help"]
    done = subprocess.run(
        words, cwd=Path(__file__).parents[2], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_of_the_page_has_no_settings_that_it_does_not_use() -> None:
    """It shares a file with `src.restore`, which takes these."""
    settings = re.findall(r"^  (\w[\w.]*)=", help_text("webui", "The page."), re.M)
    assert settings[0] == "host" and {"checkpoint", "weights.sdxl", "options.scale"} < {*settings}
    assert not {"input", "output", "overwrite", "dry_run", "sizes", "report"} & {*settings}
