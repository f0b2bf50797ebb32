"""A training run that records the keys of every step; also a program, for runs in processes.

python -m tests.data.recorder ROOT LOG STEPS WORLD RANK PORT MICRO WORKERS
"""

import json
import os
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from open_supir.data import CropPolicy, SourceConfig
from open_supir.data.datamodule import RestorationDataModule
from open_supir.data.samples import ImageLimits

GLOBAL_BATCH = 12


def data_module(root: Path, *, micro: int | None = None, workers: int = 0, **options):
    sources = {"main": SourceConfig(weight=3), "neg": SourceConfig(weight=1, is_negative=True)}
    defaults = {
        "crop_size": 32,
        "global_batch": GLOBAL_BATCH,
        "crop": CropPolicy(constant_size=96),
        "image_limits": ImageLimits(min_side=32),
        "cycle": 40,
        "block_shards": 2,
        "heldout": root / "heldout",
        "log_dir": root / "log",
    }
    return RestorationDataModule(
        root, sources, micro_batch=micro, num_workers=workers, **{**defaults, **options}
    )


class Model(LightningModule):
    """One weight; writes the step, the keys and the seeds of every micro-batch to `log`."""

    def __init__(self, log: Path | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.log_path = log
        self.seen: list[tuple[int, str, int, float]] = []

    def training_step(self, batch, batch_idx: int) -> torch.Tensor:
        assert batch["hq"].is_contiguous() and batch["seed"].device.type == "cpu"
        rows = zip(
            batch["key"], batch["seed"].tolist(), batch["hq"].float().mean((1, 2, 3)), strict=True
        )
        new = [(self.global_step, key, seed, float(mean)) for key, seed, mean in rows]
        self.seen += new
        if self.log_path is not None:
            with open(self.log_path, "a") as file:
                file.write("".join(json.dumps(row) + "\n" for row in new))
        return (self.weight * batch["hq"].float().mean()).sum() * 1e-3

    def validation_step(self, batch, batch_idx: int) -> None:
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveEveryStep(Callback):
    """Saves after every optimiser step, whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.fit_loop.epoch_loop._accumulated_batches_reached():
            trainer.save_checkpoint(f"{self.path}.tmp")
            if trainer.is_global_zero:
                os.replace(f"{self.path}.tmp", self.path)
            trainer.strategy.barrier()


def train(root: Path, steps: int, *, log: Path | None = None, save: Path | None = None,
          resume: Path | None = None, micro: int = GLOBAL_BATCH, workers: int = 0,
          world: int = 1, **options) -> Model:  # fmt: skip
    warnings.filterwarnings("ignore")
    accumulate = GLOBAL_BATCH // (world * micro)
    model = Model(log)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        num_nodes=world,
        strategy="ddp" if world > 1 else "auto",
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[SaveEveryStep(save)] if save else [],
        default_root_dir=root / "runs",
    )
    data = data_module(root, micro=micro, workers=workers, **options)
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
    return model


def main() -> None:
    root, log, steps, world, rank, port, micro, workers = sys.argv[1:]
    if int(world) > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world}
        os.environ |= {"NODE_RANK": rank, "LOCAL_RANK": "0", "RANK": rank}
    save = Path(root) / "last.ckpt"
    train(Path(root), int(steps), log=Path(log), save=save, micro=int(micro), world=int(world),
          workers=int(workers), resume=save if save.exists() else None)  # fmt: skip


if __name__ == "__main__":
    main()
