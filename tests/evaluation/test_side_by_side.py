"""The report over several runs, and its command line."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from open_supir.base.images import read_image
from open_supir.base.images.write import write_image
from open_supir.commands.ablation import compare
from open_supir.evaluation.finished_runs import label_runs, read_run
from open_supir.evaluation.side_by_side import (
    ComparisonSettings,
    _without_seed,
    write_comparison,
)
from tests.evaluation.fake_runs import make_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two connectors with two seeds each, evaluated, with pictures of two steps."""
    folder = tmp_path / "runs" / "zerosft" / "multirun" / "2026-01-01_00-00-00"
    for connector, gain in (("zerosft", 1.0), ("residual", 0.0)):
        for seed in (0, 1):
            make_run(
                folder / f"connector={connector},seed={seed}", seed=seed, connector=connector,
                loss=1.0 - 0.1 * gain + 0.01 * seed, psnr={"a": 20.0 + gain, "b": 22.0 + gain},
                pictures=("step_9.png", "step_10.png"),
            )  # fmt: skip
    return folder


def _config(tmp_path: Path, *overrides: str):
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return compose(
            "ablation",
            [f"runs_dir={tmp_path / 'runs'}", f"output={tmp_path / 'report'}", *overrides],
        )


def test_ablation_lays_the_newest_sweep_side_by_side(sweep: Path, tmp_path: Path) -> None:
    text = compare(_config(tmp_path))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| setting | connector=residual seed=0 | connector=residual seed=1 " in lines[2]
    assert any(
        line.startswith("| connector.name | residual | residual | zerosft ") for line in lines
    )
    assert not any(line.startswith("| run_dir") for line in lines)
    assert "| connector=zerosft seed=0 | **22.00** (+1.00) |" in lines
    assert "| connector=zerosft | 22.00 ± 0.00 (2) |" in lines
    report = tmp_path / "report"
    for name in ("report.md", "report.html", "values.csv", "curves/val_loss.svg"):
        assert (report / name).stat().st_size > 0
    # the last picture of each run comes first to hand: step 10, not step 9 as text would sort
    shown = [p.name for p in (report / "pictures").iterdir()]
    assert any(name.startswith("val_connector=zerosft_seed=1_step_10-") for name in shown)


def test_ablation_takes_differences_from_the_baseline(sweep: Path, tmp_path: Path) -> None:
    text = compare(_config(tmp_path, "baseline=zerosft"))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| connector=residual seed=0 | 21.00 (-1.00) |" in lines
    with pytest.raises(ValueError, match="no run is labelled 'plain'; labels: connector=residual"):
        compare(_config(tmp_path, "baseline=plain"))


def test_report_pages_hold_their_pictures(sweep: Path, tmp_path: Path) -> None:
    runs = label_runs([read_run(path) for path in sorted(sweep.iterdir())])
    out = tmp_path / "report"
    write_comparison(runs, out, ComparisonSettings(pictures=1))
    page = (out / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 4 and page.count("<svg") == 2
    assert 'src="http' not in page and "<link" not in page and "<script" not in page
    links = [part.split(")")[0] for part in (out / "report.md").read_text().split("](")[1:]]
    for link in links:
        if link.endswith(".svg"):
            ElementTree.parse(out / link)
            continue
        with Image.open(out / link) as image:
            image.load()


def test_curves_are_losses_and_validation_and_no_counts(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    rows = "".join(f"{step},1,{step // 9},2,3\n" for step in range(1, 21))
    names = "step,train/pixel_loss,guard/loss_spikes,val/psnr,lr\n"
    (path / "csv/metrics.csv").write_text(names + rows)
    write_comparison([read_run(path)], tmp_path / "report", ComparisonSettings())
    drawn = {p.stem for p in (tmp_path / "report/curves").iterdir()}
    assert drawn == {"train_pixel_loss", "val_psnr"}


def test_report_of_runs_without_evaluation_or_pictures_says_so(tmp_path: Path) -> None:
    runs = label_runs([read_run(make_run(tmp_path / name)) for name in ("a", "b")])
    text = write_comparison(runs, tmp_path / "report", ComparisonSettings())
    assert "The configurations are the same." not in text  # run_dir differs
    assert "No run has evaluation records of restored." in text


def test_large_pictures_are_carried_smaller(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", pictures=("grid.png",))
    Image.effect_noise((1600, 800), 80).convert("RGB").save(path / "pictures" / "grid.png")
    write_comparison([read_run(path)], tmp_path / "report", ComparisonSettings())
    (copy,) = (tmp_path / "report" / "pictures").iterdir()
    with Image.open(copy) as image:
        assert image.size == (768, 384)


def test_ablation_without_runs_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="^no runs: there is no folder .*; train first"):
        compare(_config(tmp_path))
    (tmp_path / "runs").mkdir()
    with pytest.raises(FileNotFoundError, match="^no runs below .*: a run folder holds"):
        compare(_config(tmp_path))


@pytest.mark.slow
def test_ablation_command_prints_the_table_and_leaves_no_other_files(
    sweep: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "src.ablation"]
    places = [f"runs_dir={tmp_path / 'runs'}", f"output={tmp_path / 'report'}"]
    done = subprocess.run([*command, *places], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "**22.00** (+1.00)" in done.stdout
    failed = subprocess.run(
        [*command, f"runs_dir={tmp_path / 'none'}"], cwd=ROOT, capture_output=True, text=True
    )
    assert failed.returncode != 0
    assert "Traceback" not in failed.stderr
    assert failed.stderr.strip().splitlines()[-1].endswith("train first, or set runs=")


def test_pictures_of_runs_whose_labels_hold_points_stand_apart(tmp_path: Path) -> None:
    """`sampler.tau=0.5` ends in no suffix; each run and image has a file of its own."""
    for index, tau in enumerate(("0.5", "0.75")):
        path = make_run(tmp_path / tau, psnr={"a": 20.0})
        (path / ".hydra" / "overrides.yaml").write_text(f"- sampler.tau={tau}\n- x={'y' * 300}\n")
        for name in ("img.1", "img.2", "deep/er"):
            image = torch.full((3, 4, 4), (index + len(name)) / 20)
            write_image(path / "eval/images/restored" / f"{name}.png", image)
    runs = label_runs([read_run(tmp_path / tau) for tau in ("0.5", "0.75")])
    write_comparison(runs, tmp_path / "report", ComparisonSettings())
    pictures = list((tmp_path / "report/pictures").glob("sampler.tau=*.png"))
    assert len(pictures) == 2 * 3
    assert {read_image(path)[0, 0, 0].item() for path in pictures} == {64, 76, 89, 102}


def test_seed_is_left_out_of_labels_and_of_paths_in_them() -> None:
    assert _without_seed("connector=plain seed=12") == "connector=plain"
    path = "checkpoint=runs/multirun/t/connector=plain,seed=0/checkpoints/last.ckpt"
    assert _without_seed(path) == path.replace(",seed=0", "")
    jobs = [f"checkpoint=runs/t/{n}_connector=plain-seed={n}/last.ckpt" for n in (3, 14)]
    assert {_without_seed(job) for job in jobs} == {"checkpoint=runs/t/connector=plain/last.ckpt"}
    other = "checkpoint=runs/5/3_connector=plain/last.ckpt"
    assert _without_seed(other) == other
    assert _without_seed("seed=1") == "all" and _without_seed("data.seed=1") == "data.seed=1"
