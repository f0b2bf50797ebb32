"""Real processes of a small training run, started warm: one, or several that talk over gloo.

Processes come from a fork server that has imported torch and Lightning once, so that a test may
start many. Everything random about a sample comes from its position, as in the real data.
"""

import contextlib
import faulthandler
import json
import multiprocessing as mp
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from open_supir.data.order import StepSampler
from open_supir.diffusion.training_noise import seeded_randn
from open_supir.training.checkpoint_io import VerifiedCheckpointIO
from open_supir.training.ema import TrainedEMA
from open_supir.training.guard import StepGuard
from open_supir.training.interruption import StopOnSignal
from open_supir.training.optim import OptimSettings
from open_supir.training.saving import SaveCheckpoints
from open_supir.training.sharding import ShardedStrategy
from open_supir.training.topology import keep_global_batch
from open_supir.training.trained_parts import TrainedParts
from open_supir.training.two_optimizers import TwoOptimizers
from tests.waiting import PATIENCE, wait_for

GLOBAL_BATCH = 4
CONTEXT = mp.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.training.workers"])


class Samples(Dataset):
    """Sample of a position: input, and the seed of its noise."""

    def __getitem__(self, position: int) -> dict[str, Any]:
        x = seeded_randn(torch.tensor([position]), (1, 8))[0]
        return {"x": x, "key": f"k{position}", "source": "s", "seed": position}


class Data(pl.LightningDataModule):
    """Endless batches from the consumed samples on; validation on positions that are not trained.

    Args:
        dataset: Position -> sample.
        collate: Samples -> batch.
    """

    sources = ("s",)

    def __init__(self, dataset: Dataset | None = None, collate: Any = None) -> None:
        super().__init__()
        self.dataset, self.collate = dataset or Samples(), collate

    def val_dataloader(self) -> DataLoader:
        positions = [[-1, -2], [-3, -4]]
        return DataLoader(self.dataset, batch_sampler=positions, collate_fn=self.collate)

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        micro = GLOBAL_BATCH // (trainer.world_size * trainer.accumulate_grad_batches)
        sampler = StepSampler(
            trainer.global_step * GLOBAL_BATCH,
            global_batch=GLOBAL_BATCH,
            micro_batch=micro,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )
        return DataLoader(self.dataset, batch_sampler=sampler, collate_fn=self.collate)


class Small(TrainedParts):
    """A frozen layer, then a trained network; its loss depends on noise from each sample's seed.

    Args:
        width: Of the trained network; decides how long a checkpoint takes.
        hook: Called with (module, batch, loss) in every step; its result replaces the loss.
    """

    def __init__(self, width: int = 16, hook: Callable[..., Tensor] | None = None) -> None:
        super().__init__(optim=OptimSettings(lr=1e-2, warmup_steps=3), recipe={"commit": "none"})
        torch.manual_seed(1)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.net = nn.Sequential(nn.Linear(8, width), nn.LayerNorm(width), nn.Linear(width, 8))
        self.hook = hook

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        noise = seeded_randn(batch["seed"], batch["x"].shape, 7)
        out = self.net(self.frozen(batch["x"]) + noise)
        losses = (out - noise).square().mean(dim=1)
        loss = losses.mean()
        if self.hook is not None:
            loss = self.hook(self, batch, loss)
        return {"loss": loss, "losses": losses.detach()}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        loss = self.training_step(batch, batch_idx)["loss"]
        self.log("val/loss", loss, sync_dist=True)


class Trace(pl.Callback):
    """Appends step, samples and loss of every micro-batch to a JSONL file of this rank."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any):
        row = {
            "step": trainer.global_step,
            "seeds": batch["seed"].tolist(),
            "losses": outputs["losses"].tolist(),
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def fit(
    folder: Path,
    *,
    steps: int,
    ranks: int = 1,
    micro_batch: int | None = None,
    ckpt_path: str | None = None,
    every: int = 1,
    stop_after: int = 10,
    val_every: int | None = None,
    module: TrainedParts | None = None,
    strategy: Any = None,
    data: Any = None,
) -> tuple[pl.Trainer, int]:
    """Train in this process; returns the trainer and the exit code that the command would have."""
    torch.set_num_threads(1)
    stop = StopOnSignal()
    if strategy is None:
        strategy = "auto" if ranks == 1 else DDPStrategy()
    if strategy == "sharded":
        strategy = ShardedStrategy()
    rank = int(os.environ.get("RANK", 0))
    folder.mkdir(parents=True, exist_ok=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy,
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        default_root_dir=folder,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        limit_val_batches=2 if val_every else 0,
        val_check_interval=val_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        plugins=[VerifiedCheckpointIO()],
        callbacks=[
            stop,
            StepGuard(str(folder / "odd_steps"), stop_after=stop_after),
            TrainedEMA(0.9),
            Trace(folder / f"trace_{rank}.jsonl"),
            SaveCheckpoints(str(folder / "checkpoints"), every=every),
        ],
    )
    keep_global_batch(trainer, global_batch=GLOBAL_BATCH, micro_batch=micro_batch)
    if isinstance(module, TwoOptimizers):
        module.take_over(trainer)
    trainer.fit(module or Small(), data or Data(), ckpt_path=ckpt_path, weights_only=True)
    if val_every:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        (folder / f"metrics_{rank}.json").write_text(json.dumps(metrics))
    if stop.exit_code is not None:
        trainer.strategy.barrier("end")
    return trainer, stop.exit_code or 0


class Processes:
    """Ranks of one run; leaves none behind.

    Args:
        task: What each rank does; takes the run's folder first, returns an exit code.
        ranks: How many there are.
        folder: Of the run; logs go to files beside it.
    """

    def __init__(
        self, task: Callable[..., int], ranks: int, folder: Path, *args: Any, **kwargs: Any
    ) -> None:
        port = _free_port()
        self.folder = folder
        self.logs = [folder.with_suffix(f".rank{rank}.log") for rank in range(ranks)]
        self.processes = [
            CONTEXT.Process(target=_enter, args=(task, rank, ranks, port, (folder, *args), kwargs))
            for rank in range(ranks)
        ]

    def __enter__(self) -> "Processes":
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a rank."""
        os.kill(self.processes[rank].pid, number)  # type: ignore[arg-type]

    def wait_for(self, condition: Callable[[], Any], *, patience: float = PATIENCE) -> None:
        """Wait until something has happened, for as long as the run writes files or a log.

        Raises:
            AssertionError: It did not happen before all ranks ended, or the run is stuck; with the
                ends of the logs, in which stuck ranks have written where they are.
        """
        try:
            wait_for(
                condition, progress=self._written, alive=self._any_alive, patience=patience,
                what=f"a run of {len(self.processes)} processes",
            )  # fmt: skip
        except AssertionError as error:
            for process in self.processes:
                if process.is_alive():
                    os.kill(process.pid, signal.SIGABRT)  # faulthandler writes the stacks
                    process.join(60)
            raise AssertionError(f"{error}\n{self.log_text()}") from None

    def exit_codes(self, *, patience: float = PATIENCE) -> list[int]:
        """Wait for the ends of all ranks, as `wait_for` does; returns their exit codes."""
        self.wait_for(lambda: not self._any_alive(), patience=patience)
        return [process.exitcode for process in self.processes]  # type: ignore[misc]

    def log_text(self) -> str:
        """Return the last 60 lines of each rank's log."""
        lines = ((log, log.read_text().splitlines()[-60:]) for log in self._existing_logs())
        return "\n".join(f"{log.name}:\n" + "\n".join(last) for log, last in lines)

    def _any_alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def _existing_logs(self) -> list[Path]:
        return [path for path in self.logs if path.exists()]

    def _written(self) -> set[tuple[Path, int]]:
        """Return each file of the run and its size."""
        found = set()
        for path in (*self._existing_logs(), *self.folder.rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                found.add((path, path.stat().st_size))
        return found


def run(task: Callable[..., int], ranks: int, *args: Any, **kwargs: Any) -> list[int]:
    """Run all ranks to their end; returns their exit codes."""
    with Processes(task, ranks, *args, **kwargs) as processes:
        return processes.exit_codes()


def _enter(task: Callable[..., int], rank: int, ranks: int, port: int, args: Any, kwargs: Any):
    os.setpgrp()
    faulthandler.enable()
    if ranks > 1:
        os.environ.update(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank),
            LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), NODE_RANK="0", GROUP_RANK="0",
            LOCAL_WORLD_SIZE=str(ranks), TORCHELASTIC_RUN_ID="test",
        )  # fmt: skip
    log = open(Path(args[0]).with_suffix(f".rank{rank}.log"), "a")  # noqa: SIM115
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    code = task(*args, **kwargs)
    sys.stdout.flush()
    os._exit(code)  # gloo's threads may outlive the run


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


# --- tasks: what a process does; the first argument is the run's folder ---


def train_task(folder: Path, ranks: int, **options: Any) -> int:
    """Train to the end."""
    return fit(folder, ranks=ranks, **options)[1]


def stuck_task(folder: Path) -> int:
    """Do nothing for ever."""
    print("stuck", flush=True)
    threading.Event().wait()
    return 0


def slow_task(folder: Path, ranks: int, **options: Any) -> int:
    """Train with steps of at least 20 ms, and differently fast ranks."""

    def hook(module: Small, batch: Any, loss: Tensor) -> Tensor:
        time.sleep(0.02 + 0.01 * module.global_rank)
        return loss

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one that comes after training ends nothing

    return fit(folder, ranks=ranks, module=Small(hook=hook), **options)[1]


def heavy_task(folder: Path, width: int, **options: Any) -> int:
    """Train a wide network, whose checkpoints take a while, from the newest that verifies."""
    from open_supir.training.checkpoint_io import committed
    from open_supir.training.resume import newest_verified

    found = committed(folder / "checkpoints")
    start = str(newest_verified(folder)) if found else None
    return fit(folder, ckpt_path=start, module=Small(width), **options)[1]


def nan_task(
    folder: Path,
    ranks: int,
    *,
    bad_steps: tuple[int, ...],
    rank: int,
    spoils_gradients: bool = True,
    **options: Any,
) -> int:
    """Train; one rank's loss is not finite at some steps."""

    def hook(module: Small, batch: Any, loss: Tensor) -> Tensor:
        wrong = module.global_step in bad_steps and module.global_rank == rank
        if not wrong:
            return loss
        return loss * float("nan") if spoils_gradients else loss + float("inf")

    return fit(folder, ranks=ranks, module=Small(hook=hook), **options)[1]


def raising_task(folder: Path, ranks: int, *, rank: int, **options: Any) -> int:
    """Train; one rank raises at step 2."""

    def hook(module: Small, batch: Any, loss: Tensor) -> Tensor:
        if module.global_step == 2 and module.global_rank == rank:
            raise RuntimeError("a fault of this rank")
        return loss

    return fit(folder, ranks=ranks, module=Small(hook=hook), **options)[1]


def unwritable_task(folder: Path, **options: Any) -> int:
    """Train as a user who may not write where checkpoints go."""
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    trace = Path("/tmp") / f"trace_{os.getpid()}"
    try:
        options["every"] = 1
        fit(folder, **options)
    finally:
        trace.unlink(missing_ok=True)
    return 0


def limited_task(folder: Path, limit: int, **options: Any) -> int:
    """Train where no file may grow beyond `limit` bytes."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fit(folder, steps=1, module=Small(256))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    checkpoint = str(folder / "checkpoints/step_0000001.ckpt")
    return fit(folder, ckpt_path=checkpoint, module=Small(256), **options)[1]


def loss_of(folder: Path) -> dict[int, float]:
    """Return the loss of each sample by its seed, over all ranks."""
    rows = [
        json.loads(line)
        for path in sorted(folder.glob("trace_*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return {s: v for row in rows for s, v in zip(row["seeds"], row["losses"], strict=True)}
