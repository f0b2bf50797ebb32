"""Every file of conf/trainer, built as the command builds it, trains on two ranks as on one."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from open_supir.training.saving import SaveCheckpoints
from open_supir.training.topology import keep_global_batch
from tests.test_configs import CONF
from tests.training.test_faults import state
from tests.training.workers import GLOBAL_BATCH, Data, Small, Trace, loss_of, run

TRAINERS = sorted(path.stem for path in (Path(CONF) / "trainer").glob("*.yaml"))
# Float32 sums in another order; the gradients of gpu_compressed travel in bfloat16, 8 bits of them.
TOLERANCES = {"gpu_compressed": 1e-3}


def shipped_task(folder: Path, ranks: int, name: str) -> int:
    """Train two steps of two accumulated micro-batches or more, on CPUs and in float32."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    overrides = [
        "experiment=zerosft", f"trainer={name}", f"trainer.devices={ranks}",
        "trainer.accelerator=cpu", "trainer.precision=32-true", "max_steps=2", "val_every=2",
        f"run_dir={folder}",
    ]  # fmt: skip
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", overrides=overrides)
    module: Any = Small()
    trainer: pl.Trainer = instantiate(
        cfg.trainer, logger=False, limit_val_batches=0, enable_progress_bar=False, _convert_="all",
        callbacks=[SaveCheckpoints(str(folder / "checkpoints"), every=1)],
    )  # fmt: skip
    trainer.callbacks.append(Trace(folder / f"trace_{trainer.global_rank}.jsonl"))  # type: ignore[attr-defined]
    keep_global_batch(trainer, global_batch=GLOBAL_BATCH, micro_batch=1)
    assert trainer.world_size == ranks and trainer.accumulate_grad_batches == GLOBAL_BATCH // ranks
    trainer.fit(module, Data())
    return 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert run(shipped_task, 1, folder, 1, "auto") == [0]
    return folder


@pytest.mark.parametrize("name", TRAINERS)
def test_a_shipped_trainer_on_two_ranks_with_accumulation_equals_one_process(
    tmp_path: Path, alone: Path, name: str
) -> None:
    folder, tolerance = tmp_path / "run", TOLERANCES.get(name, 1e-6)
    codes = run(shipped_task, 2, folder, 2, name)
    assert codes == [0, 0], (tmp_path / "run.rank0.log").read_text()[-3000:]
    assert loss_of(folder) == pytest.approx(loss_of(alone), rel=tolerance)
    ours, expected = state(folder, 2)["state_dict"], state(alone, 2)["state_dict"]
    assert list(ours) == list(expected)
    for weight, tensor in expected.items():
        torch.testing.assert_close(ours[weight], tensor, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["gpu", "gpu_compressed"])
def test_ddp_sends_no_buffers_at_each_step(name: str) -> None:
    """They are constants, such as the text towers' masks; DDP's default sends them every time."""
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", overrides=["experiment=zerosft", f"trainer={name}"])
    strategy = instantiate(cfg.trainer.strategy, _convert_="all")
    assert strategy._ddp_kwargs["broadcast_buffers"] is False
