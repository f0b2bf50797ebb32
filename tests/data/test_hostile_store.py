"""One store with every kind of bad sample: trained on, checked, and written down."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from open_supir.data import CaptionPolicy, CropPolicy, SourceConfig
from open_supir.data.counters import LoaderCounters, SkipLimits
from open_supir.data.dataset import SampleReader, ShardDataset
from open_supir.data.inspection import InspectSettings, inspect_folder
from open_supir.data.order import StepSampler
from open_supir.data.plan import make_plan
from open_supir.data.samples import ImageLimits, collate
from open_supir.data.storage import StorageError
from tests.data.made import encoded, jpeg, pixels, tar_bytes

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

LIMITS = ImageLimits(min_side=32)
GOOD = 40


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(pixels(0)), "JPEG", exif=exif)


def bomb() -> bytes:
    data = bytearray(jpeg())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    return bytes(data)


def flipped() -> bytes:
    data = bytearray(jpeg(0, 256, 256))
    for i in range(len(data) // 2, len(data) // 2 + 40):
        data[i] ^= 0x5A
    return bytes(data)


def grey16() -> bytes:
    return encoded(Image.fromarray(np.zeros((64, 64), np.uint16)), "PNG")


PHOTO = Image.fromarray(pixels(0, 128, 128))
# key -> (members beside the key's, reason)
BAD: dict[str, tuple[dict[str, bytes], str]] = {
    "truncated": ({"jpg": jpeg()[:900], "txt": b"c"}, "damaged image"),
    "flipped": ({"jpg": flipped(), "txt": b"c"}, "damaged image"),
    "html": ({"jpg": b"<html>404</html>", "txt": b"c"}, "not a JPEG, PNG or WebP image"),
    "gif": ({"jpg": encoded(PHOTO, "GIF"), "txt": b"c"}, "not a JPEG, PNG or WebP image"),
    "cmyk": ({"jpg": encoded(PHOTO.convert("CMYK"), "JPEG"), "txt": b"c"}, "not normalised"),
    "alpha": ({"png": encoded(PHOTO.convert("RGBA"), "PNG"), "txt": b"c"}, "not normalised"),
    "deep": ({"png": grey16(), "txt": b"c"}, "not normalised"),
    "rotated": ({"jpg": rotated(), "txt": b"c"}, "not normalised"),
    "bomb": ({"jpg": bomb(), "txt": b"c"}, "too large"),
    "small": ({"jpg": jpeg(0, 24, 24), "txt": b"c"}, "too small"),
    "latin": ({"jpg": jpeg(), "txt": "caf\u00e9".encode("latin-1")}, "caption not UTF-8"),
    "silent": ({"jpg": jpeg(), "txt": b"  "}, "caption missing"),
    "wordless": ({"jpg": jpeg()}, "caption missing"),
    "nested": ({"jpg": jpeg(), "txt": b"c", "json": b"[" * 60_000}, "json damaged"),
    "notjson": ({"jpg": jpeg(), "txt": b"c", "json": b"{"}, "json damaged"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tar of others: good samples with the bad ones between them; checked, so with index."""
    members = []
    for i in range(GOOD):
        members += [(f"good{i:02d}.jpg", jpeg(i)), (f"good{i:02d}.txt", b"a photograph")]
        if i < len(BAD):
            key, (parts, _) = list(BAD.items())[i]
            members += [(f"{key}.{suffix}", data) for suffix, data in parts.items()]
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "x.tar").write_bytes(tar_bytes(members))
    return tmp_path


def loader(root: Path, *, workers: int, limits: SkipLimits, steps: int) -> LoaderCounters:
    """Read `steps` batches; fails if a bad sample comes through."""
    sources = {"main": SourceConfig(weight=1)}
    plan = make_plan(root, sources, seed=0, global_batch=5, cycle=10)
    reader = SampleReader(
        crop_size=32, crop=CropPolicy(), captions=CaptionPolicy(), seed=0, limits=LIMITS
    )
    counters = LoaderCounters(["main"], path=root / "bad_samples.jsonl", limits=limits)
    dataset = ShardDataset(
        plan.mixture, plan.folders, list(sources.values()), reader, counters, shards=plan.shards
    )
    batches = DataLoader(
        dataset, batch_sampler=StepSampler(0, global_batch=5, micro_batch=5), num_workers=workers,
        collate_fn=collate,
    )  # fmt: skip
    for batch, _ in zip(batches, range(steps), strict=False):
        assert all(key.startswith("good") for key in batch["key"])
    return counters


def test_check_names_every_bad_sample_with_its_reason(root: Path) -> None:
    report = inspect_folder(root / "main", InspectSettings(samples_per_shard=-1, limits=LIMITS))
    assert not report.faults and report.bad == len(BAD) and report.samples == GOOD + len(BAD)
    for reason in {reason for _, reason in BAD.values()}:
        assert report.skipped[reason] == sum(r == reason for _, r in BAD.values())


def test_training_passes_over_every_bad_sample_and_writes_each_down(root: Path) -> None:
    """One epoch by two workers: every bad sample met, none delivered, all in the log."""
    inspect_folder(root / "main", InspectSettings(limits=LIMITS))  # builds index and manifest
    steps = (GOOD + len(BAD)) // 5
    counters = loader(root, workers=2, limits=SkipLimits(rate=1.0), steps=steps)
    lines = [json.loads(line) for line in io.StringIO((root / "bad_samples.jsonl").read_text())]
    found = {line["key"]: line["reason"] for line in lines}
    assert found == {key: reason for key, (_, reason) in BAD.items()}
    assert {(line["source"], line["shard"]) for line in lines} == {("main", "x.tar")}
    assert sum(counters.skipped().values()) >= len(BAD)


@pytest.mark.parametrize("workers", [0, 2])
def test_limit_stops_the_run_with_one_clear_line(root: Path, workers: int) -> None:
    """From a worker too, whose error DataLoader wraps in a traceback."""
    inspect_folder(root / "main", InspectSettings(limits=LIMITS))
    with pytest.raises(StorageError) as caught:
        loader(root, workers=workers, limits=SkipLimits(rate=0.05, window=40), steps=30)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("3 of the last ")
    assert "samples were bad, more than 5.00% of 40: {'main/" in message
