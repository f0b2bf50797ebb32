"""The embedded default: deterministic, readable, made of training photographs alone."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_supir.base.rng import keyed_rng
from open_supir.data.dead_leaves import DeadLeaves, colour_names, draw_shapes, noise_texture
from open_supir.data.demo import (
    FAULTS,
    NEGATIVE_WORDS,
    PHOTOS_FILE,
    crop_caption,
    folder_entries,
    load_photo,
    negative_images,
    photo_crops,
    spoil,
    write_demo_shards,
)
from open_supir.data.samples import ImageLimits, decode_training_image
from open_supir.data.shards import ShardFolder, read_manifest
from tests.data.made import pixels

MANIFEST = json.loads(PHOTOS_FILE.read_text())
HELD_OUT = ("coffee", "chelsea", "rocket")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "shards"
    write_demo_shards(root, photos=0.05, dead_leaves=6, negatives=8, shard_size=16)
    return root


def samples(folder: Path) -> list:
    entries = read_manifest(folder)
    shards = ShardFolder(folder, entries)
    return [shards.read(i, k) for i, entry in enumerate(entries) for k in range(entry.count)]


def test_demo_has_three_sources_and_held_out_crops(demo: Path) -> None:
    assert sorted(p.name for p in demo.iterdir()) == [
        "dead_leaves", "heldout", "negative", "photos"
    ]  # fmt: skip
    assert len(samples(demo / "dead_leaves")) == 6 and len(samples(demo / "negative")) == 8
    names = sorted(p.name for p in (demo / "heldout").iterdir())
    counts = {Path(entry["file"]).stem: len(entry["crops"]) for entry in MANIFEST["held_out"]}
    assert names == sorted(
        f"{n}-{i:02d}.{s}" for n in HELD_OUT for i in range(counts[n]) for s in ("png", "txt")
    )


def test_held_out_crops_cover_each_photograph_evenly() -> None:
    """As many rows and columns as fit, from edge to edge: nobody picked the easy places."""
    for entry in MANIFEST["held_out"]:
        photo = load_photo(entry["file"])
        rows, columns = (
            [round(i * (side - 128) / (side // 128 - 1)) for i in range(side // 128)]
            for side in (photo.height, photo.width)
        )
        corners = [tuple(crop["corner"]) for crop in entry["crops"]]
        assert corners == [(top, left) for top in rows for left in columns]


def test_training_reader_accepts_every_demo_image(demo: Path) -> None:
    for name in ("photos", "dead_leaves", "negative"):
        for raw in samples(demo / name):
            image = decode_training_image(raw.image, ImageLimits(min_side=128, max_side=128))
            assert image.shape == (128, 128, 3) and raw.text


def test_held_out_photographs_are_not_in_training(demo: Path) -> None:
    trained = {Path(entry["file"]).stem for entry in MANIFEST["train"]}
    held_out = {Path(entry["file"]).stem for entry in MANIFEST["held_out"]}
    assert held_out == set(HELD_OUT) and not trained & held_out
    for name in ("photos", "dead_leaves", "negative"):
        for raw in samples(demo / name):
            meta = raw.meta.decode()
            assert not any(word in meta + raw.key for word in HELD_OUT)


def test_held_out_crops_are_not_near_any_training_crop(demo: Path) -> None:
    """By content, not by name: correlation of small grey copies stays far from 1."""

    def small(image: Image.Image) -> np.ndarray:
        grey = np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BOX), np.float32)
        return (grey - grey.mean()) / (grey.std() + 1e-3)

    trained = [small(Image.open(io.BytesIO(raw.image))) for raw in samples(demo / "photos")]
    for path in (demo / "heldout").glob("*.png"):
        held = small(Image.open(path))
        assert max(float((held * other).mean()) for other in trained) < 0.95


def test_every_photograph_has_a_caption_and_lies_in_the_wheel() -> None:
    for entry in [*MANIFEST["train"], *MANIFEST["held_out"]]:
        photo = load_photo(entry["file"])
        for part in [entry, *entry.get("regions", [])] if "caption" in entry else entry["crops"]:
            assert len(part["caption"].split()) >= 4
        for top, left, bottom, right in (r["box"] for r in entry.get("regions", [])):
            assert 0 <= top < bottom <= photo.height and 0 <= left < right <= photo.width
        # crops below the store's 128 are enlarged: as smooth per pixel as large photographs are
        assert all(48 <= side <= min(photo.size) for side in entry.get("side", []))


def test_missing_photograph_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="lily.png"):
        load_photo("lily.png")


def test_close_crops_are_captioned_by_their_region() -> None:
    entry = MANIFEST["train"][0]
    assert "face" in crop_caption(entry, 60, 160, 128, 512)
    assert "visor" in crop_caption(entry, 370, 340, 128, 512)
    assert crop_caption(entry, 0, 0, 512, 512) == entry["caption"]


def test_demo_repeats_with_its_seed(tmp_path: Path) -> None:
    options = {"photos": 0.02, "dead_leaves": 3, "negatives": 4}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_demo_shards(tmp_path / name, **options, seed=seed)
    hashes = {
        name: [
            entry.sha256
            for source in ("photos", "dead_leaves", "negative")
            for entry in read_manifest(tmp_path / name / source)
        ]
        for name in "abc"
    }
    assert hashes["a"] == hashes["b"]
    assert not set(hashes["a"]) & set(hashes["c"])


def test_existing_folder_is_left_alone_and_failures_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    write_demo_shards(tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []
    monkeypatch.setattr("open_supir.data.demo.write_held_out", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_demo_shards(tmp_path / "b", photos=0.01, dead_leaves=1, negatives=1)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_photo_crops_have_the_counts_of_the_manifest() -> None:
    counts = Counter(
        s.key.rsplit("-", 1)[0] for s in photo_crops(MANIFEST["train"], seed=0, factor=0.1)
    )
    for entry in MANIFEST["train"]:
        assert counts[Path(entry["file"]).stem] == max(1, round(0.1 * entry["count"]))


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_destroy_detail_but_keep_the_picture(fault: str) -> None:
    image = load_photo("astronaut.png").crop((160, 0, 288, 128))
    spoilt = np.asarray(spoil(image, fault, keyed_rng(fault)), dtype=np.float32)
    original = np.asarray(image, dtype=np.float32)
    error = np.abs(spoilt - original).mean()
    assert 2 < error < 60
    assert np.corrcoef(spoilt.ravel(), original.ravel())[0, 1] > 0.8


def test_negatives_carry_the_negative_words_and_their_origin(demo: Path) -> None:
    for raw in samples(demo / "negative"):
        meta = json.loads(raw.meta)
        assert raw.text.decode() == NEGATIVE_WORDS
        assert meta["is_negative"] is True and meta["fault"] in FAULTS and meta["content"]
    assert list(negative_images([], 0, seed=0)) == []


def test_leaf_sizes_follow_the_inverse_cube() -> None:
    """P(r > R) is close to (R^-2 - b^-2) / (a^-2 - b^-2) between the bounds a and b."""
    radius = np.concatenate(
        [draw_shapes(keyed_rng(i), 256, 4.0, "round").radius[1:] for i in range(20)]
    )
    for bound in (6.0, 10.0, 20.0):
        expected = (bound**-2 - 128**-2) / (4.0**-2 - 128**-2)
        assert abs((radius > bound).mean() - expected) < 0.03


def test_leaves_cover_the_ground_and_occlude() -> None:
    leaves = draw_shapes(keyed_rng(0), 256, 4.0, "mixed")
    assert (leaves.owner == 0).mean() < 0.1
    assert len(np.unique(leaves.owner)) < len(leaves.radius)  # some lie wholly beneath others


def test_dead_leaves_have_colours_of_their_palette_and_a_caption() -> None:
    rng = keyed_rng(0)
    painter = DeadLeaves(
        size=64,
        palettes=[np.float32([[0.8, 0.2, 0.1], [0.7, 0.3, 0.1]])],
        textures=[noise_texture(rng, 256, 1.0)],
    )
    image, caption = painter.draw(rng)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert image[..., 0].mean() > 2 * image[..., 2].mean()
    assert "overlapping" in caption and "red" in caption or "orange" in caption


def test_noise_texture_has_the_slope_asked_for() -> None:
    field = noise_texture(keyed_rng(0), 256, 1.5)
    assert abs(field.mean()) < 0.05 and abs(field.std() - 1) < 0.1
    power = np.abs(np.fft.fft2(field)) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    band = (frequency > 4 / 256) & (frequency < 0.25)
    slope = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
    assert abs(slope + 3.0) < 0.3  # power falls twice as fast as amplitude


def test_colours_are_named_by_the_nearest() -> None:
    red = np.full((16, 16, 3), (180, 40, 30), dtype=np.uint8)
    assert colour_names(red, 1) == ["red"]
    assert colour_names(pixels(), 2) == colour_names(pixels(), 2)


def test_photographs_of_a_folder_become_crops_of_up_to_four_times_the_size(tmp_path: Path) -> None:
    for name, size in (("large", (900, 700)), ("small", (130, 200)), ("tiny", (100, 300))):
        Image.fromarray(pixels(0, *size)).save(tmp_path / f"{name}.png")
    entries = folder_entries(tmp_path, count=3)
    assert [entry["side"] for entry in entries] == [[128, 512], [128, 130]]  # tiny is left out
    crops = list(photo_crops(entries, seed=0, factor=1.0))
    assert [crop.key for crop in crops[:3]] == ["large-0000", "large-0001", "large-0002"]
    sizes = {decode_training_image(crop.image, ImageLimits()).shape for crop in crops}
    assert sizes == {(128, 128, 3)}
    assert {crop.caption for crop in crops} == {"a photograph"}
    assert {crop.meta["source"] for crop in crops} == {"large", "small"}


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no photographs of at least 128 pixels"):
        folder_entries(tmp_path, count=1)
