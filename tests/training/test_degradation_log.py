"""Parameters of the degradation in TensorBoard, in the metrics, and beside pictures."""

import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from open_supir.degradation import DegradationPipeline
from open_supir.training.callbacks import ValidationPictures
from open_supir.training.degradation_log import DegradationLog
from tests.degradation.samples import preset
from tests.training.modules import batch, darken


def trainer_with(folder: Path) -> Any:
    loggers = [TensorBoardLogger(folder, name="", version="tb"), CSVLogger(folder, "", "csv")]
    return SimpleNamespace(
        is_global_zero=True,
        global_step=7,
        loggers=loggers,
        sanity_checking=False,
        precision_plugin=SimpleNamespace(val_step_context=nullcontext),
    )


def events(folder: Path, trainer: Any) -> EventAccumulator:
    trainer.loggers[0].experiment.flush()
    trainer.loggers[1].save()
    accumulator = EventAccumulator(str(folder / "tb"))
    accumulator.Reload()
    return accumulator


@pytest.mark.parametrize("name", ["supir_q", "realesrgan_x4"])
def test_histograms_hold_what_was_drawn_since_the_last_ones(name: str, tmp_path: Path) -> None:
    """Three batches of four, drawn again in one go; PSNR where LQ has the size of HQ."""
    module, trainer = SimpleNamespace(degradation=preset(name)), trainer_with(tmp_path)
    log, given = DegradationLog(every=3), batch(4)
    seeds = torch.arange(12)
    for index in range(3):
        given["seed"] = seeds[4 * index : 4 * index + 4]
        log.on_train_batch_end(trainer, module, None, given, index)
    written = events(tmp_path, trainer)
    quality = module.degradation.draw(seeds, size=(32, 32)).first.quality
    [event] = written.Histograms("degradation/first.quality")
    assert event.step == 7 and event.histogram_value.num == 12
    assert abs(event.histogram_value.sum - float(quality.sum())) < 1e-6
    assert "gaussian" in str(written.Tensors("degradation/shares/text_summary")[0])
    metrics = (tmp_path / "csv/metrics.csv").read_text()
    assert "degradation/not_finite" in metrics
    assert ("degradation/psnr" in metrics) == (name == "supir_q")
    if name == "supir_q":
        assert written.Histograms("degradation/psnr")[0].histogram_value.num == 4


def test_training_steps_between_only_keep_seeds(tmp_path: Path) -> None:
    """No draw, no LQ: the degradation here fails when it is asked for either."""

    class Forbidden(DegradationPipeline):
        draw = apply = None  # type: ignore[assignment]

    module = SimpleNamespace(degradation=Forbidden(preset("supir_q").config))
    log, trainer = DegradationLog(every=100), trainer_with(tmp_path)
    for index in range(99):
        log.on_train_batch_end(trainer, module, None, batch(), index)
    assert len(log.seeds) == 99


@pytest.mark.parametrize("module", [SimpleNamespace(), SimpleNamespace(degradation=darken)])
def test_modules_without_a_pipeline_log_nothing(module: Any, tmp_path: Path) -> None:
    log, trainer = DegradationLog(every=1), trainer_with(tmp_path)
    log.on_train_batch_end(trainer, module, None, batch(), 0)
    assert not (tmp_path / "csv").exists()


def test_a_line_a_row_stands_beside_validation_pictures(tmp_path: Path) -> None:
    module = SimpleNamespace(
        degradation=preset("supir_q"),
        pictures=lambda given: {"HQ": given["hq"].float() / 255},
    )
    trainer, given = trainer_with(tmp_path), batch(4)
    pictures = ValidationPictures(str(tmp_path / "pictures"), num_images=3)
    pictures.on_validation_batch_end(trainer, module, None, given, 0)
    assert Image.open(tmp_path / "pictures/step_0000007.png").height > 3 * 32
    lines = (tmp_path / "pictures/step_0000007.txt").read_text().splitlines()
    expected = module.degradation.draw(given["seed"][:3], size=(32, 32)).summaries()
    assert lines == [f"{i}: {line} | a cat" for i, line in enumerate(expected, start=1)]
    assert all(re.search(r"jpeg \d\d", line) for line in lines)
    text = events(tmp_path, trainer).Tensors("val/degradation/text_summary")[0]
    assert lines[2] in text.tensor_proto.string_val[0].decode()
