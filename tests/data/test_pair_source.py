"""data.pairs: which pairs are used, what a batch holds, and the order of the data."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from skimage.data import astronaut
from skimage.registration import phase_cross_correlation

from open_supir.base.images import resize
from open_supir.data import CropPolicy
from open_supir.data.alignment import measure_offset
from open_supir.data.own_photos import OwnPhotos
from tests.data.made import pixels, shard_folder
from tests.data.recorder import GLOBAL_BATCH, data_module, train

SHARE = 0.25


def scene() -> np.ndarray:
    return np.asarray(Image.fromarray(astronaut()).resize((256, 256), Image.Resampling.LANCZOS))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards, and pairs, of which one is half as large, and four do not fit."""
    monkeypatch.chdir(tmp_path)
    shard_folder(tmp_path / "main", [7, 12], prefix="m")
    shard_folder(tmp_path / "neg", [4, 5], prefix="n")
    high, low = tmp_path / "pairs/hq/sub", tmp_path / "pairs/lq/sub"
    for folder in (high, low, tmp_path / "heldout"):
        folder.mkdir(parents=True)
    for i, name in enumerate(("a", "b", "c", "odd", "moved", "torn", "alone")):
        hq = scene()[i * 8 : i * 8 + 96, i * 8 : i * 8 + 120]
        Image.fromarray(hq).save(high / f"{name}.png")
        lq = Image.fromarray(hq).filter(ImageFilter.GaussianBlur(1))
        if name == "c":
            lq = lq.resize((60, 48), Image.Resampling.BICUBIC)
        elif name == "odd":
            lq = lq.resize((100, 96))
        elif name == "moved":
            lq = Image.fromarray(scene()[i * 8 + 5 : i * 8 + 101, i * 8 : i * 8 + 120])
        if name != "alone":
            lq.save(low / f"{name}.png")
    (low / "torn.png").write_bytes((high / "torn.png").read_bytes()[:900])
    (high / "a.txt").write_text("an astronaut", encoding="utf-8")
    Image.fromarray(pixels(1)).save(tmp_path / "heldout/0.png")
    return tmp_path


def module(root: Path, **options):
    data = data_module(root, pairs=root / "pairs", pairs_share=SHARE, **options)
    data.check()
    data.setup("fit")
    return data


def moved_pair(down: int, right: int, *, blur: float, noise: float) -> list[np.ndarray]:
    """Return a picture, and one that is displaced, blurred and noisy."""
    one = scene()[20:-20, 20:-20]
    two = np.roll(scene(), (down, right), (0, 1))[20:-20, 20:-20]
    two = np.asarray(Image.fromarray(two).filter(ImageFilter.GaussianBlur(blur)), dtype=float)
    return [one, two + np.random.default_rng(0).normal(0, noise, two.shape)]


@pytest.mark.parametrize("move", [(0, 0), (3, -2), (-7, 11)])
def test_offset_is_found_as_by_scikit_image(move: tuple[int, int]) -> None:
    one, two = moved_pair(*move, blur=1.2, noise=10)
    offset = measure_offset(*(torch.from_numpy(i.copy()).permute(2, 0, 1) for i in (one, two)))
    known, _, _ = phase_cross_correlation(two.mean(2), one.mean(2), normalization=None)
    assert known.tolist() == list(move)
    assert np.hypot(offset.down - move[0], offset.right - move[1]) < 0.5 and offset.peak > 0.25


@pytest.mark.parametrize("move", [(3, -2), (-7, 11)])
def test_offset_is_found_under_strong_blur_and_noise(move: tuple[int, int]) -> None:
    """Where scikit-image errs by a pixel, with whitening and without."""
    pair = moved_pair(*move, blur=4, noise=60)
    offset = measure_offset(*(torch.from_numpy(i.copy()).permute(2, 0, 1) for i in pair))
    assert np.hypot(offset.down - move[0], offset.right - move[1]) < 0.5


def test_pictures_of_different_things_have_no_peak() -> None:
    one, two = (torch.from_numpy(scene()[i : i + 128, i : i + 128].copy()) for i in (0, 128))
    assert measure_offset(one.permute(2, 0, 1), two.permute(2, 0, 1)).peak < 0.25


def test_pairs_that_do_not_fit_are_left_out_each_with_its_reason(root: Path) -> None:
    data = module(root)
    [table] = (root / "data/shards/pairs").glob("pairs-*.csv")
    with table.open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    reasons = {name: row["reason"].partition(":")[0] for name, row in rows.items()}
    assert reasons == {
        "sub/a": "",
        "sub/b": "",
        "sub/c": "",
        "sub/odd": "sizes differ",
        "sub/moved": "displaced",
        "sub/torn": "damaged image",
        "sub/alone": "no partner in lq/",
    }
    assert abs(float(rows["sub/moved"]["down"]) + 5) < 0.5 and rows["sub/c"]["factor"] == "2"
    assert data.plan.fingerprint()["sources.pairs.samples"] == 3


def test_a_batch_holds_pairs_in_their_share_and_the_same_place_of_both(root: Path) -> None:
    """Whatever the crop policy, pairs are cut at native size; their LQ is the file's."""
    data = module(root, crop=CropPolicy(native=0, area=0, whole=1, size_condition="actual"))
    loader, batches = iter(data.train_dataloader()), []
    for _ in range(10):  # three cycles of 40 positions
        batches.append(next(loader))
    paired = torch.cat([batch["paired"] for batch in batches])
    assert len(paired) == 10 * GLOBAL_BATCH and paired.sum() == SHARE * len(paired)
    for batch in batches:
        assert batch["hq"].shape == batch["lq"].shape == (GLOBAL_BATCH, 3, 32, 32)
        assert [source == "pairs" for source in batch["source"]] == batch["paired"].tolist()
        assert not batch["lq"][~batch["paired"]].any()
        for i in batch["paired"].nonzero().flatten().tolist():
            assert_same_place(root, batch, i)


def assert_same_place(root: Path, batch, i: int) -> None:
    """Find the HQ crop in its file, flipped or not; the LQ crop is the same place of the other."""
    key = batch["key"][i]
    files = [np.asarray(Image.open(root / "pairs" / part / f"{key}.png")) for part in ("hq", "lq")]
    high, low = (torch.from_numpy(file.copy()).permute(2, 0, 1) for file in files)
    low = resize(low, (96, 120))
    top, left = (int(value) for value in batch["sizes"][i, 2:4])
    places = [(high, low), (high.flip(2), low.flip(2))]
    crops = [[side[:, top : top + 32, left : left + 32] for side in pair] for pair in places]
    mine = batch["hq"][i], batch["lq"][i]
    assert any(torch.equal(mine[0], hq) and torch.equal(mine[1], lq) for hq, lq in crops)


def test_resumed_run_sees_the_same_pairs_with_any_workers(root: Path) -> None:
    options = {"pairs": root / "pairs", "pairs_share": SHARE}
    straight = sorted(train(root, 6, **options).seen)
    save = root / "a.ckpt"
    first = train(root, 2, save=save, workers=2, micro=4, **options).seen
    second = train(root, 6, resume=save, micro=6, workers=1, **options).seen
    assert sorted([*first, *second]) == straight
    assert sum(key.startswith("sub/") for _, key, _, _ in straight) > 6
    with pytest.raises(ValueError, match="sources.pairs.quota"):
        train(root, 6, resume=save, pairs=root / "pairs", pairs_share=0.5)


def test_the_order_of_other_sources_does_not_hang_on_the_files_of_pairs(root: Path) -> None:
    """A damaged pair found while training is replaced by another one; no position moves."""
    before = next(iter(module(root).train_dataloader()))
    data = module(root)
    (root / "pairs/lq/sub/a.png").write_bytes(b"torn")
    after = next(iter(data.train_dataloader()))
    mine, seeds = before["paired"], before["seed"]
    assert torch.equal(after["paired"], mine) and torch.equal(after["seed"], seeds)
    assert torch.equal(after["hq"][~mine], before["hq"][~mine])
    assert "sub/a" in before["key"] and "sub/a" not in after["key"]
    assert data.counters.skipped()["pairs/damaged image"] >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": "nowhere"}, "no folder hq/"),
        ({"pairs": "pairs", "pairs_share": 1.0}, r"pairs_share must be in \(0, 1\)"),
        ({"pairs": "pairs", "reader": "stream"}, "use data.reader=index"),
        ({"pairs": "pairs", "heldout": "pairs/hq"}, "which is trained on"),
        ({"pairs": "pairs", "crop_size": 100}, "too small 4"),
    ],
)
def test_what_cannot_be_is_refused_by_key(root: Path, options, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data_module(root, **options).check()


def test_photographs_held_out_of_the_pairs_themselves_are_refused(root: Path) -> None:
    store = {"stored_side": 96, "heldout_side": 96, "min_side": 32, "max_pixels": 10**6}
    with pytest.raises(ValueError, match="data.heldout=DIR"):
        OwnPhotos(root / "pairs/hq", {}, pairs=root / "pairs", crop_size=32, global_batch=4,
                  store={**store, "heldout_share": 0.1, "heldout_most": 9})  # fmt: skip
