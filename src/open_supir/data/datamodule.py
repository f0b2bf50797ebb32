"""RestorationDataModule: training from shards, validation from folders of photographs."""

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from open_supir.data.captions import CaptionPolicy, approximate_tokens
from open_supir.data.counters import LoaderCounters, SkipLimits
from open_supir.data.dataset import SampleReader, ShardDataset, SourceConfig, check_source
from open_supir.data.order import BLOCK_SHARDS, CYCLE, StepSampler
from open_supir.data.pair_source import PAIRS, PairSource, check_pairs
from open_supir.data.pairs import FolderDataset, PairDataset
from open_supir.data.plan import DataPlan, make_plan, plan_changes
from open_supir.data.precomputed import Precomputed, check_policies
from open_supir.data.samples import Batch, CropPolicy, ImageLimits, collate
from open_supir.data.storage import is_remote
from open_supir.data.stream import StreamDataset, source_urls

log = logging.getLogger(__name__)

STATE_VERSION = 1
HELDOUT_SEED = 0  # of held-out crops, so that runs with any seed are measured on the same LQ images


class RestorationDataModule(LightningDataModule):
    """Batches for training and validation; the state of the data is one integer.

    The trainer must use `use_distributed_sampler=False`, because the order already accounts for
    ranks.

    Args:
        root: Folder with one subfolder of shards per source, or an fsspec address (s3://...).
        sources: Name -> weight, folder and rules of each source.
        crop_size: Side of a training crop in pixels.
        global_batch: Samples per optimiser step, over all ranks and accumulation steps.
        micro_batch: Samples per rank and batch; by default `global_batch` divided by ranks and
            accumulation steps.
        num_workers: Loader processes per rank; 0 loads in the process itself.
        seed: Determines the order and all randomness of each sample.
        captions: How captions are chosen, unless a source has its own policy.
        count_tokens: Counts CLIP tokens; by default an estimate.
        precomputed: Which features from `src.precompute` to read: "latents", "text", or both.
        reader: "index" has random access and resumes exactly; "stream" reads tars without an index.
        prepare: Called with `root` to make the shards if it does not exist and is `prepare_at`.
        prepare_at: The one root that may be made; a mistyped one must not be.
        heldout: Folder of validation photographs, never trained on.
        heldout_lq: Folder of their low-quality partners, which add `lq` to held-out batches.
        pairs: Folder of real pairs, hq/ and lq/, that are trained on as they are.
        pairs_share: Share of all training samples that are pairs, in (0, 1).
        pairs_max_shift: Displacement in pixels above which a pair is left out.
        val_size: Number of validation samples; by default one per photograph.
        val_crop_size: Side of a validation crop in pixels; by default `crop_size`.
        val_batch: Samples per validation batch.
        fraction: Share of each source's shards to use; smaller shares are subsets of larger ones.
        cycle: Number of positions in which every source has its exact share.
        block_shards: Number of shards whose samples are shuffled together.
        image_limits: Bounds on stored images, checked before decoding.
        skip_limits: How many skipped samples stop the run.
        worker_timeout: Seconds after which a silent worker counts as stuck.
        log_dir: Folder for `bad_samples.jsonl`; by default the trainer's.
    """

    def __init__(
        self,
        root: str | Path,
        sources: Mapping[str, SourceConfig],
        *,
        crop_size: int,
        global_batch: int,
        micro_batch: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        crop: CropPolicy | None = None,
        captions: CaptionPolicy | None = None,
        count_tokens: Callable[[str], int] | None = None,
        precomputed: Sequence[str] = (),
        reader: str = "index",
        prepare: Callable[[Path], None] | None = None,
        prepare_at: str | Path | None = None,
        heldout: str | Path | None = None,
        heldout_lq: str | Path | None = None,
        pairs: str | Path | None = None,
        pairs_share: float = 0.5,
        pairs_max_shift: float = 2.0,
        val_size: int | None = None,
        val_crop_size: int | None = None,
        val_batch: int = 4,
        fraction: float = 1.0,
        cycle: int = CYCLE,
        block_shards: int = BLOCK_SHARDS,
        image_limits: ImageLimits | None = None,
        skip_limits: SkipLimits | None = None,
        worker_timeout: float = 600.0,
        log_dir: str | Path | None = None,
    ) -> None:
        super().__init__()
        counts = {
            "global_batch": global_batch,
            "micro_batch": micro_batch,
            "crop_size": crop_size,
            "val_size": val_size,
            "val_crop_size": val_crop_size,
            "val_batch": val_batch,
        }
        _check(sources, counts, reader, precomputed)
        if num_workers < 0:
            raise ValueError(f"data.num_workers must be at least 0, got {num_workers}")
        self.root = str(root) if is_remote(root) else Path(root)
        self.sources = {name: source for name, source in sources.items() if source is not None}
        self.global_batch, self.micro_batch = global_batch, micro_batch
        self.num_workers, self.seed, self.worker_timeout = num_workers, seed, worker_timeout
        self.sample_reader = SampleReader(
            crop_size=crop_size,
            crop=crop or CropPolicy(),
            captions=captions or CaptionPolicy(),
            seed=seed,
            limits=image_limits or ImageLimits(),
            count_tokens=count_tokens or approximate_tokens,
        )
        self.precomputed = list(precomputed)
        self.made_by: Mapping[str, str] = {}  # kind -> fingerprint of this run's network
        self.collate: Callable[..., Batch] = collate  # of batches for training
        check_policies(self.precomputed, self.sample_reader.crop, self.caption_policies())
        self.reader, self.skip_limits = reader, skip_limits
        self.prepare, self.prepare_at, self.consumed = prepare, prepare_at, 0
        self.fraction, self.cycle, self.block_shards = fraction, cycle, block_shards
        self.heldout = Path(heldout) if heldout else None
        self.heldout_lq = Path(heldout_lq) if heldout_lq else None
        self.pairs: PairSource | None = None
        if pairs is not None:
            check_pairs(Path(pairs), heldout, [*self.sources, reader, *precomputed])
            self.pairs = PairSource(
                folder=Path(pairs),
                share=pairs_share,
                max_shift=pairs_max_shift,
                min_side=crop_size,
            )
        self.val_size, self.val_batch = val_size, val_batch
        self.val_crop_size = val_crop_size or crop_size
        self.log_dir = Path(log_dir) if log_dir else None
        self._saved_accumulation: int | None = None
        self.plan: DataPlan | None = None
        self.counters: LoaderCounters | None = None
        self.chosen: dict[str, str] = {}  # settings that the module chose where none was given

    def caption_policies(self) -> list[CaptionPolicy]:
        """Return the policy of each source."""
        common = self.sample_reader.captions
        return [source.captions or common for source in self.sources.values()]

    def all_sources(self) -> dict[str, SourceConfig]:
        """Return the sources, including that of real pairs if there are any."""
        if self.pairs is None:
            return self.sources
        weight = self.pairs.weight(sum(source.weight for source in self.sources.values()))
        return {**self.sources, PAIRS: SourceConfig(weight=weight, missing_caption="empty")}

    def prepare_data(self) -> None:
        """Make the shards if `root` does not exist; runs in one process per node.

        Raises:
            FileNotFoundError: `root` does not exist, and is not the one to be made.
        """
        if isinstance(self.root, str) or self.root.is_dir():
            return
        if self.prepare is None or self.prepare_at is None or self.root != Path(self.prepare_at):
            how = "" if self.prepare is None else f", or make them: data.prepare_at={self.root}"
            raise FileNotFoundError(f"data.root={self.root}: no such folder of shards{how}")
        self.prepare(self.root)

    def setup(self, stage: str | None = None) -> None:
        """Read the manifests and plan the order, for training."""
        if stage not in (None, "fit") or self.counters is not None:
            return
        if self.reader == "index":
            self.plan = self._make_plan(check=self._rank == 0)
            for order, shards in zip(self.plan.mixture.sources, self.plan.shards, strict=True):
                log.info("source %s: %d samples in %d shards", order.name, order.size, len(shards))
        name = f"bad_samples_rank{self._rank}.jsonl" if self._rank else "bad_samples.jsonl"
        path = self._log_folder() / name
        self.counters = LoaderCounters(list(self.all_sources()), path=path, limits=self.skip_limits)

    def _make_plan(self, *, check: bool) -> DataPlan:
        return make_plan(
            self.root,
            self.all_sources(),
            seed=self.seed,
            global_batch=self.global_batch,
            fraction=self.fraction,
            cycle=self.cycle,
            block_shards=self.block_shards,
            check=check,
            pairs=self.pairs.open() if self.pairs else None,
        )

    def check(self) -> None:
        """Look for faults before anything expensive is loaded: shards, first samples, held-out.

        Raises:
            FileNotFoundError, ValueError, StorageError: One was found; the message names the
                source, or the key.
        """
        if self.reader == "index":
            plan = self._make_plan(check=True)
            sources = self.all_sources()
            for (name, config), folder in zip(sources.items(), plan.folders, strict=True):
                check_source(name, config, folder, self.sample_reader)
                folder.close()
        self._heldout_images().check()

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def _log_folder(self) -> Path:
        if self.log_dir is not None:
            return self.log_dir
        return Path(self.trainer.default_root_dir) if self.trainer else Path(".")

    def train_dataloader(self) -> DataLoader:
        """Return the endless loader of this rank, starting after the consumed samples."""
        if self.counters is None:
            raise RuntimeError("call setup('fit') before asking for training data")
        world = self.trainer.world_size if self.trainer else 1
        micro = self._micro_batch(world)
        if self.trainer:
            self.consumed = self.trainer.global_step * self.global_batch
            if self._saved_accumulation is not None:
                align_batch_count(self.trainer, self._saved_accumulation)
                self._saved_accumulation = None
        configs = list(self.all_sources().values())
        if self.plan is None:
            stream = StreamDataset(
                [source_urls(self.root, name, config) for name, config in self.sources.items()],
                list(self.sources),
                configs,
                self.sample_reader,
                self.counters,
                start=self.consumed,
                rank=self._rank,
                world=world,
            )
            return self._loader(stream, batch_size=micro, collate_fn=self.collate)
        dataset = ShardDataset(
            self.plan.mixture,
            self.plan.folders,
            configs,
            self.sample_reader,
            self.counters,
            shards=self.plan.shards,
            precomputed=self._stored(self.plan) if self.precomputed else (),
        )
        sampler = StepSampler(
            self.consumed,
            global_batch=self.global_batch,
            micro_batch=micro,
            rank=self._rank,
            world=world,
        )
        return self._loader(dataset, batch_sampler=sampler, collate_fn=self.collate)

    def _stored(self, plan: DataPlan) -> list[Precomputed]:
        """Open the precomputed features of each source; the first rank checks them."""
        stored = []
        for folder, shards in zip(plan.folders, plan.shards, strict=True):
            stored.append(Precomputed(folder.folder, folder.entries, self.precomputed))
            if self._rank == 0:
                stored[-1].check(shards.tolist(), self.made_by)
        return stored

    def _micro_batch(self, world: int) -> int:
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        micro = self.micro_batch or max(1, self.global_batch // (world * accumulate))
        if self.trainer and world * accumulate * micro != self.global_batch:
            raise ValueError(
                f"global_batch {self.global_batch} must equal {world} ranks x {accumulate} "
                f"accumulation steps x micro_batch {micro}"
            )
        return micro

    def val_dataloader(self) -> DataLoader:
        """Return the held-out photographs: fixed crops, fixed seeds, the same on every rank."""
        images = self._heldout_images()
        return self._loader(images, batch_size=self.val_batch, collate_fn=collate)

    def _heldout_images(self) -> FolderDataset | PairDataset:
        if self.heldout is None:
            raise ValueError("no folder of validation photographs; set data.heldout")
        options = {"size": self.val_crop_size, "seed": HELDOUT_SEED, "count": self.val_size}
        try:
            if self.heldout_lq is not None:
                return PairDataset(self.heldout, self.heldout_lq, **options)
            return FolderDataset(self.heldout, **options)
        except FileNotFoundError as error:
            key = "data.heldout" if self.heldout_lq is None else "data.heldout or data.heldout_lq"
            raise FileNotFoundError(f"{key}: {error}") from error

    def _loader(self, dataset: Any, **options: Any) -> DataLoader:
        return DataLoader(
            dataset,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=prepare_worker,
            timeout=self.worker_timeout if self.num_workers else 0,
            **options,
        )

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move a batch to the device, except `seed`: parameters are drawn on the CPU."""
        moved = super().transfer_batch_to_device(
            {k: v for k, v in batch.items() if k != "seed"}, device, dataloader_idx
        )
        images = {k: moved[k].contiguous() for k in ("hq", "lq") if k in moved}
        return {**moved, **images, "seed": batch["seed"]}  # type: ignore[typeddict-item]

    def state_dict(self) -> dict[str, Any]:
        """Return the number of samples consumed by finished optimiser steps, and their data plan.

        Samples that workers have read ahead do not count, so a resumed run neither repeats nor
        loses any. Empty if nothing is trained.
        """
        if self.counters is None:
            return {}
        if self.trainer:
            self.consumed = self.trainer.global_step * self.global_batch
        plan = self.plan.fingerprint() if self.plan else {"reader": "stream"}
        return {
            "version": STATE_VERSION,
            "consumed": self.consumed,
            "accumulation": self.trainer.accumulate_grad_batches if self.trainer else 1,
            "plan": plan,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after `consumed` samples; does nothing if nothing is trained.

        Raises:
            ValueError: The data plan has changed; the message lists the differences.
        """
        if self.counters is None or not state_dict:
            return
        plan = self.plan.fingerprint() if self.plan else {"reader": "stream"}
        changed = plan_changes(state_dict["plan"], plan)
        if changed:
            raise ValueError(
                f"cannot resume: the data plan has changed: {'; '.join(changed)}. Restore these "
                f"settings, or start a new run from the weights"
            )
        if self.plan is None:
            log.warning("data.reader=stream cannot resume exactly: it draws new shards")
        self.consumed = int(state_dict["consumed"])
        self._saved_accumulation = int(state_dict["accumulation"])


def prepare_worker(number: int) -> None:
    """Keep the garbage collector of a forked worker away from memory shared with its parent.

    A collection writes to every object it visits, and so copies its page.
    """
    gc.freeze()


def align_batch_count(trainer: Trainer, saved_accumulation: int) -> None:
    """Convert a resumed run's batch count to its own number of accumulation steps.

    Lightning makes an optimiser step when its count of micro-batches is a multiple of the
    accumulation steps. The count comes from the checkpoint: with another accumulation, or if it was
    saved within a step, the first optimiser step would see only part of its global batch.
    """
    count = trainer.fit_loop.epoch_loop.batch_progress.current
    shift = count.ready // saved_accumulation * trainer.accumulate_grad_batches - count.ready
    for name in ("ready", "started", "processed", "completed"):
        setattr(count, name, getattr(count, name) + shift)


def _check(
    sources: Mapping[str, SourceConfig],
    counts: Mapping[str, int | None],
    reader: str,
    precomputed: Sequence[str],
) -> None:
    if not sources:
        raise ValueError("the data module needs at least one source")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"data.{name} must be at least 1, got {count}")
    if reader not in ("index", "stream"):
        raise ValueError(f"reader must be index or stream, got {reader!r}")
    if precomputed and reader == "stream":
        raise ValueError("reader=stream cannot read precomputed features; use reader=index")
