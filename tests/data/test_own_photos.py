"""data=folder: photographs or curated shards, split, stored once, trained on."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from open_supir.base.images import read_image
from open_supir.data.datamodule import RestorationDataModule
from open_supir.data.own_photos import OwnPhotos
from open_supir.data.shards import ShardFolder, read_manifest, write_shards
from tests.data.made import jpeg, pixels, shard_folder, stored
from tests.test_configs import CONF


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of twelve good photographs in three places, and of what else lies about."""
    monkeypatch.chdir(tmp_path)
    root, far = tmp_path / "Our Photos", tmp_path / "far"
    for number in range(12):
        folder = (root, root / "sub/deep", far)[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        name = folder / f"{number}.{('jpg', 'PNG', 'tif')[number % 3]}"
        Image.fromarray(pixels(number, 96, 140)).save(name)
    (root / "linked").symlink_to(far)
    (root / "0.txt").write_bytes("Zoë".encode("latin-1"))
    shutil.copy(root / "0.jpg", root / "copy of 0.jpg")
    Image.fromarray(pixels(50, 30, 90)).save(root / "small.png")
    (root / "broken.jpg").write_bytes(jpeg()[:300])
    (root / "notes.tsv").write_text("no image")
    return root


def own(root: Path, *overrides: str, scale: str = "tiny") -> OwnPhotos:
    wanted = ["experiment=zerosft", f"scale={scale}", "data=folder", f"data.root='{root}'"]
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", overrides=[*wanted, "data.num_workers=0", *overrides])
    return instantiate(cfg.data, _convert_="all")


def names(folder: Path) -> dict[str, str]:
    """Return key -> path below the photographs of what a source holds."""
    entries = read_manifest(folder)
    shards = ShardFolder(folder, entries)
    raws = [shards.read(n, i) for n, entry in enumerate(entries) for i in range(entry.count)]
    return {raw.key: json.loads(raw.meta or b"{}")["source"] for raw in raws}


def test_every_photograph_is_trained_on_held_out_or_listed_with_a_reason(photos: Path) -> None:
    data = own(photos)
    data.prepare_data()
    place = Path(data.root)
    assert place.parent == Path("data/shards/own") and place.name.startswith("Our Photos-")
    trained = set(names(place / "positive").values())
    held = [path for path in sorted((place / "heldout").rglob("*.png"))]
    assert len(trained) == 11 and len(held) == 1  # a tenth of twelve, which is one
    with (place / "skipped.csv").open() as file:
        skipped = {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}
    assert skipped.pop("notes.tsv") == "not an image"
    assert skipped == {
        "copy of 0.jpg": "copy of another file",
        "small.png": "too small",
        "broken.jpg": "cannot be read",
    }
    assert {name for name in trained if name.startswith("linked/")}
    assert not {path.stem for path in held} & {Path(name).stem for name in trained}


def test_the_split_hangs_on_contents_alone(photos: Path) -> None:
    first, again = own(photos), own(photos)
    first.prepare_data()
    before = {p.read_bytes() for p in (Path(first.root) / "heldout").rglob("*.png")}
    assert again.chosen == first.chosen
    moved = photos.with_name("moved")
    photos.rename(moved)
    for number, path in enumerate(sorted(moved.glob("*.jpg"))):
        path.rename(moved / f"renamed {number}.jpg")
    other = own(moved)
    other.prepare_data()
    assert other.root != first.root
    assert {p.read_bytes() for p in (Path(other.root) / "heldout").rglob("*.png")} == before


def test_batches_validation_and_captions(photos: Path) -> None:
    data = own(photos, "data.captions.drop_prob=0", "data.captions.quality_prob=0",
               "data.store.heldout_share=0.3", "data.global_batch=16")  # fmt: skip
    data.prepare_data()
    data.check()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["hq"].shape == (16, 3, 64, 64) and set(batch["source"]) == {"positive"}
    held = next(iter(data.val_dataloader()))
    assert held["hq"].shape == (4, 3, 128, 128)
    words = set(batch["caption"]) | {
        path.read_text().strip()
        for path in data.heldout.rglob("*.txt")  # type: ignore[union-attr]
    }
    assert words == {"Zoë", ""}


def test_large_photographs_are_reduced_and_held_out_ones_more(photos: Path) -> None:
    for path in [*photos.rglob("*"), *photos.with_name("far").iterdir()]:
        if path.is_file():
            path.unlink()
    for number in range(4):
        Image.fromarray(pixels(number, 300, 450)).save(photos / f"{number}.png")
    data = own(photos)
    data.prepare_data()
    (held,) = data.heldout.rglob("*.png")  # type: ignore[union-attr]
    assert read_image(held).shape == (3, 128, 192)
    assert len(names(Path(data.root) / "positive")) == 3
    entries = read_manifest(Path(data.root) / "positive")
    raw = ShardFolder(Path(data.root) / "positive", entries).read(0, 0)
    assert data.sample_reader(raw, "positive", data.sources["positive"], 0)[0]["hq"].any()
    picture = Image.open(__import__("io").BytesIO(raw.image))
    assert picture.size == (384, 256)


def test_a_held_out_folder_of_ones_own_leaves_all_photographs_for_training(photos: Path) -> None:
    mine = photos.with_name("mine")
    mine.mkdir()
    Image.fromarray(pixels(99, 200, 200)).save(mine / "a.png")
    data = own(photos, f"data.heldout={mine}")
    data.prepare_data()
    data.check()
    assert len(names(Path(data.root) / "positive")) == 12 and data.heldout == mine
    assert not (Path(data.root) / "heldout").exists()


def test_curated_shards_are_split_too_with_the_negatives_made_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shard_folder(tmp_path / "out/shards/positive", [12, 8], image=jpeg(1, 96, 96))
    made = [stored(f"negative-s000-{i:03d}", of=f"s000-{i:03d}") for i in range(12)]
    write_shards(tmp_path / "out/shards/negative", made, prefix="n")
    data = own(tmp_path / "out", "data.store.heldout_share=0.25")
    data.prepare_data()
    data.check()
    held = {path.stem for path in data.heldout.rglob("*.png")}  # type: ignore[union-attr]
    trained = set(names(Path(data.root) / "positive"))
    assert len(held) == 5 and len(trained) == 15 and not held & trained
    negatives = {key.removeprefix("negative-") for key in names(Path(data.root) / "negative")}
    assert negatives == {f"s000-{i:03d}" for i in range(12)} - held
    assert data.sources["negative"].is_negative
    assert data.sources["negative"].weight == len(negatives)
    entries = read_manifest(Path(data.root) / "positive")
    raw = ShardFolder(Path(data.root) / "positive", entries).read(0, 0)
    assert raw.image == jpeg(1, 96, 96)  # small enough: not encoded again
    assert list(own(tmp_path / "out", "data.sources.negative=null").rules) == [
        "positive", "face", "negative"
    ]  # fmt: skip
    without = own(tmp_path / "out", "data.sources.negative=null", "data.store.heldout_share=0.25")
    without.prepare_data()
    without.check()
    assert list(without.sources) == ["positive"] and without.root == data.root


def test_what_is_wrong_is_said_by_key(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(Exception, match="data.root=.*nowhere: no such folder of photographs"):
        own(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Exception, match="data.root=.*empty: no images in this folder"):
        own(tmp_path / "empty")
    with pytest.raises(Exception, match="data.store.stored_side=64 is below 128"):
        own(photos, "data.store.stored_side=64", "data.crop_size=128")
    large = own(photos, "data.crop_size=112")
    with pytest.raises(ValueError, match="0 photographs can be used.*too small 13.*at least 112"):
        large.prepare_data()
    assert not list(Path("data/shards/own").iterdir())  # nothing half done
    shard_folder(tmp_path / "faces/face", [2])
    with pytest.raises(Exception, match="no source 'positive' among the folders of shards, face"):
        own(tmp_path / "faces")


def test_full_size_composes_and_crops_512(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for number in range(3):
        Image.fromarray(pixels(number, 600, 1200 * (1 + number))).save(
            tmp_path / f"in/{number}.png"
        )
    data = own(tmp_path / "in", "weights.sdxl=f", "data.global_batch=2", scale="sdxl")
    assert isinstance(data, RestorationDataModule)
    data.prepare_data()
    data.check()
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["hq"].shape == (2, 3, 512, 512)


@pytest.mark.parametrize(("scale", "data"), [("tiny", "demo"), ("sdxl", "shards")])
def test_words_are_those_of_the_other_data_of_each_size(scale: str, data: str) -> None:
    words = OmegaConf.load(Path(CONF) / f"scale/{scale}.yaml").scale.data
    captions = OmegaConf.load(Path(CONF) / f"data/{data}.yaml").captions
    assert words.quality_words == captions.quality_words
    assert words.negative_words == captions.negative_words


def test_reduced_keeps_small_images_and_rounds_up_to_the_side() -> None:
    from open_supir.data.photo_store import reduced

    small = np.zeros((64, 100, 3), np.uint8)
    assert reduced(small, 64) is small
    assert reduced(np.zeros((100, 333, 3), np.uint8), 64).shape == (64, 213, 3)
