"""`python -m src.evaluate` as a whole: captions, resume, outputs of others, tables from records."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from open_supir.base.images import list_images, read_image
from open_supir.base.images.write import write_image
from open_supir.commands.evaluate import evaluate
from open_supir.evaluation import read_records
from tests.integration.conftest import Compose

METRICS = "metrics.names=[psnr,ssim]"


def _values(folder: Path, method: str) -> list[float | None]:
    records = read_records(folder / "records.jsonl")
    return [r["value"] for r in records if r["method"] == method]


@pytest.fixture
def arguments(stage_2: Path, workplace: Path) -> list[str]:
    return [
        f"checkpoint={stage_2}",
        f"data_root={workplace / 'shards'}",
        "degradation=supir_q_x2",
        "protocol.repeats=1",
        "protocol.limit=2",
        "device=cpu",
        METRICS,
    ]


def test_captions_reach_the_restorer_and_change_nothing_else(
    composed_in: Compose, arguments: list[str], tmp_path: Path
) -> None:
    without, with_captions = tmp_path / "without", tmp_path / "with"
    evaluate(composed_in("evaluate", *arguments, f"output={without}"))
    evaluate(composed_in("evaluate", *arguments, f"output={with_captions}", "captioner=file"))
    for method in ("lq", "ordinary_encoder", "robust_encoder"):
        assert _values(without, method) == _values(with_captions, method)
    assert _values(without, "restored") != _values(with_captions, "restored")
    page = (without / "report.html").read_text()
    assert "jpeg" in page and json.loads((without / "environment.json").read_text())["versions"]


def test_further_checkpoints_are_rows_of_their_own(
    composed_in: Compose, arguments: list[str], stage_2: Path, tmp_path: Path
) -> None:
    again = shutil.copy(stage_2, tmp_path / "again.ckpt")
    row = f"checkpoints={{again: {again}}}"
    out = f"output={tmp_path / 'eval'}"
    evaluate(composed_in("evaluate", *arguments, row, out))
    assert _values(tmp_path / "eval", "again") == _values(tmp_path / "eval", "restored")
    with pytest.raises(ValueError, match="checkpoints: row 'restored' already exists"):
        evaluate(composed_in("evaluate", *arguments, f"checkpoints={{restored: {again}}}", out))


def test_without_a_run_the_shipped_checkpoint_is_measured_on_the_default_data(
    composed_in: Compose, workplace: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    data = f"data_root={workplace / 'shards'}"
    limits = ["protocol.limit=1", "protocol.repeats=1", "device=cpu", METRICS]
    evaluate(composed_in("evaluate", data, *limits))
    assert "checkpoint: the shipped one" in caplog.text
    (record,) = [
        r
        for r in read_records(tmp_path / "shipped/eval/records.jsonl")
        if r["method"] == "restored" and r["metric"] == "psnr"
    ]
    assert record["value"] is not None and record["value"] > 15
    assert (tmp_path / "shipped/eval/sheet.png").is_file()


def test_second_evaluation_computes_only_what_is_new(
    composed_in: Compose, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"output={tmp_path / 'eval'}"
    evaluate(composed_in("evaluate", *arguments, out))
    first = read_records(tmp_path / "eval/records.jsonl")
    monkeypatch.setattr(
        "open_supir.inference.Restorer.__call__", lambda *a, **k: pytest.fail("restored")
    )
    evaluate(composed_in("evaluate", *arguments, out, "metrics.names=[psnr,ssim,sharpness]"))
    second = read_records(tmp_path / "eval/records.jsonl")
    assert [r for r in second if r["metric"] != "sharpness"] == first
    assert all(r["value"] is not None for r in second)


def test_outputs_of_another_system_need_no_checkpoint(
    composed_in: Compose, workplace: Path, tmp_path: Path
) -> None:
    data, made = tmp_path / "data", tmp_path / "theirs"
    for index, path in enumerate(list_images(workplace / "shards/heldout")[:3]):
        image = read_image(path)
        write_image(data / f"hq/i{index}.png", image)
        write_image(data / f"lq/i{index}.png", image // 2)
        if index < 2:
            write_image(made / f"i{index}.png", (image.float() * 0.9).to(torch.uint8))
    arguments = [
        "protocol=folder_pairs", "protocol.hq_folder=hq", "protocol.lq_folder=lq", METRICS,
        f"outputs={made}", f"data_root={data}", f"output={tmp_path / 'eval'}", "device=cpu",
    ]  # fmt: skip
    table = evaluate(composed_in("evaluate", *arguments))
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row.strip("-")] == ["method", "lq", "theirs"]
    assert "(n=2/3)" in table and "no output i2.*" in table
    with pytest.raises(ValueError, match="without a checkpoint there is no run folder.*output="):
        evaluate(composed_in("evaluate", *arguments[:5]))

    with pytest.raises(ValueError, match="row 'lq' already exists"):
        evaluate(composed_in("evaluate", *arguments, f"outputs={{lq: {made}}}"))
    write_image(made / "i1.png", torch.zeros(3, 128, 128))
    assert evaluate(composed_in("evaluate", *arguments)) != table  # its pictures have changed
    table = evaluate(composed_in("evaluate", *arguments))

    folder = tmp_path / "eval"
    before = {name: (folder / name).read_bytes() for name in ("table.md", "report.html")}
    again = evaluate(composed_in("evaluate", f"report={folder}", f"output={tmp_path / 'again'}"))
    assert again == table
    for name, content in before.items():
        assert (tmp_path / "again" / name).read_bytes() == content
    with pytest.raises(FileNotFoundError, match=r"no records\.jsonl"):
        evaluate(composed_in("evaluate", f"report={data}"))


def test_required_metric_without_weights_ends_before_any_model_work(
    composed_in: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="required metrics lack weights: musiq"):
        evaluate(composed_in("evaluate", "metrics.require=[musiq]", "checkpoint=nowhere"))
    fetched = []
    monkeypatch.setattr(
        "open_supir.evaluation.evaluate.fetch", lambda files: fetched.extend(f.file for f in files)
    )
    asked = ["metrics.names=[musiq,lpips,dists,lpips_vgg]", "metrics.require=[musiq]"]
    with pytest.raises(FileNotFoundError, match="required metrics lack weights"):
        evaluate(composed_in("evaluate", *asked, "metrics.download=true"))
    assert len(fetched) == len(set(fetched)) == 3  # DISTS and LPIPS share the VGG file


def test_metrics_that_are_asked_for_take_the_place_of_the_protocols(
    composed_in: Compose, tmp_path: Path
) -> None:
    for folder in ("DIV2K_valid_HR", "made"):
        write_image(tmp_path / folder / "a.png", torch.rand(3, 16, 16))
    arguments = [
        "protocol=supir_x4", "protocol.short_side=null", "protocol.crop=null", METRICS,
        f"data_root={tmp_path}", f"outputs={tmp_path / 'made'}", f"output={tmp_path / 'eval'}",
    ]  # fmt: skip
    evaluate(composed_in("evaluate", *arguments))
    records = read_records(tmp_path / "eval/records.jsonl")
    assert {r["metric"] for r in records} == {"psnr", "ssim"}
    with pytest.raises(ValueError, match=r"metrics\.require=\['fid'\] is not measured"):
        evaluate(composed_in("evaluate", *arguments, "metrics.require=[fid]"))


def test_study_is_made_and_read_by_the_command(composed_in: Compose, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / name / "x.png", torch.rand(3, 8, 8))
    folders = f"preference.folders={{a: {tmp_path / 'a'}, b: {tmp_path / 'b'}}}"
    said = evaluate(composed_in("evaluate", f"study={tmp_path / 'study'}", folders))
    assert said.startswith("2 questions") and (tmp_path / "study/preference.html").is_file()
    with pytest.raises(FileNotFoundError, match="no votes_"):
        evaluate(composed_in("evaluate", f"study={tmp_path / 'study'}"))


def test_several_samples_add_their_disagreement_and_their_mean(
    composed_in: Compose, arguments: list[str], tmp_path: Path
) -> None:
    """One number a picture, of the row that is sampled; the mean is a row of its own."""
    several = ["options.num_samples=3", "options.average=true", f"output={tmp_path}"]
    table = evaluate(composed_in("evaluate", *arguments, *several))
    records = read_records(tmp_path / "records.jsonl")
    values = {(r["image"], r["method"], r["metric"]): r["value"] for r in records}
    for name in {record["image"] for record in records} - {"*"}:
        assert (values[name, "restored", "disagreement"] or 0) > 0
        assert values[name, "average", "psnr"] != values[name, "restored", "psnr"]
    assert "disagreement" in table and "| average " in table


def test_a_mask_for_restoring_is_refused_and_the_one_for_measuring_named(
    composed_in: Compose, arguments: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"options.mask=m.png: .*metrics.mask="):
        evaluate(composed_in("evaluate", *arguments, "options.mask=m.png"))
