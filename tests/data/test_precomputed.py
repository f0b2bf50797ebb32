"""Precomputed columns: what is stored is what the networks would give, or the run is stopped."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from open_supir.base.rng import keyed_rng
from open_supir.data import CaptionPolicy, CropPolicy, SourceConfig
from open_supir.data.captions import approximate_tokens, choose_caption
from open_supir.data.precomputed import (
    Precomputed,
    column_path,
    constant_texts,
    possible_texts,
    read_metadata,
    text_key,
    write_columns,
)
from open_supir.data.samples import SampleError
from open_supir.data.shards import read_manifest
from open_supir.data.storage import StorageError
from tests.data.made import shard_folder
from tests.data.recorder import data_module

WHOLE = CropPolicy(native=1, area=0, whole=0, flip_prob=0)
POLICY = CaptionPolicy(negative_words="blurry")


def features(texts: list[str]) -> dict[str, torch.Tensor]:
    """Stand-ins that tell which text they are of."""
    keys = torch.tensor([text_key(text) for text in texts])
    number = (keys % 997).float()
    return {"keys": keys, "context": number[:, None, None].expand(-1, 3, 2).contiguous(),
            "pooled": number[:, None].expand(-1, 4).contiguous()}  # fmt: skip


def store(root: Path, name: str, counts: list[int], prefix: str, negative: bool = False) -> None:
    """Write shards and both kinds of columns; sample 0 of each shard has no latents."""
    for entry in shard_folder(root / name, counts, prefix=prefix):
        tar, number = root / name / entry.name, entry.name[2:5]
        latents = torch.arange(entry.count).float()[:, None, None, None].expand(-1, 4, 2, 2)
        valid = torch.arange(entry.count) > 0
        columns = {"latents": latents.contiguous(), "valid": valid}
        write_columns(tar, "latents", columns, sha256=entry.sha256, made_by="r")
        texts = []
        for i in range(entry.count):
            caption = f"caption of {prefix}{number}-{i:03d}"
            texts += possible_texts(
                POLICY, approximate_tokens, caption=caption, meta={}, is_negative=negative
            )
        found = {name: t.unflatten(0, (-1, 2)) for name, t in features(texts).items()}
        constants = features(constant_texts([POLICY], approximate_tokens))
        found |= {f"constant_{name}": t for name, t in constants.items()}
        write_columns(tar, "text", found, sha256=entry.sha256, made_by="r")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store(tmp_path, "main", [7, 5, 6], "m")
    store(tmp_path, "neg", [4], "n", negative=True)
    return tmp_path


def module(root: Path, **options):
    defaults = {"crop": WHOLE, "crop_size": 96, "captions": POLICY, "log_dir": root}
    return data_module(root, **{"precomputed": ["latents", "text"], **defaults, **options})


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_carry_the_columns_of_their_own_samples(root: Path, workers: int) -> None:
    """Latents by key, text features by the very words of the batch: dropped, plain, completed."""
    data = module(root, workers=workers)
    data.skip_limits = None
    data.setup("fit")
    loader, texts = iter(data.train_dataloader()), set()
    for _ in range(6):
        batch = next(loader)
        assert batch["latents"].shape == (12, 4, 2, 2)
        assert batch["latents"][:, 0, 0, 0].tolist() == [int(k[-3:]) for k in batch["key"]]
        want = features(batch["caption"])
        assert torch.equal(batch["context"], want["context"])
        assert torch.equal(batch["pooled"], want["pooled"])
        texts |= {text.split(",")[-1] for text in batch["caption"]}
    assert "" in texts and "blurry" in texts and any("photograph" in text for text in texts)
    assert data.counters is not None
    assert data.counters.skipped()["main/not precomputed"] > 0  # sample 0 of each shard


def test_without_precomputed_batches_are_as_ever(root: Path) -> None:
    data = module(root, precomputed=[])
    data.setup("fit")
    assert not {"latents", "context", "pooled"} & set(next(iter(data.train_dataloader())))


@pytest.mark.parametrize("negative", [False, True])
def test_possible_texts_are_all_that_the_policy_chooses(negative: bool) -> None:
    policy = CaptionPolicy(drop_prob=0.3, negative_content_prob=0.5, negative_words="blurry")
    sample = {"caption": "a cat on a mat", "meta": {"content": "a dog"}, "is_negative": negative}
    known = {*constant_texts([policy], approximate_tokens),
             *possible_texts(policy, approximate_tokens, **sample)}  # fmt: skip
    chosen = {choose_caption(policy, keyed_rng(i), **sample).text for i in range(300)}
    assert chosen <= known and len(chosen) >= 2


def test_changed_captions_stop_the_run_naming_the_shard(root: Path) -> None:
    entries = read_manifest(root / "main")
    stored = Precomputed(root / "main", entries, ["text"])
    assert "context" in stored.read(0, 3, "caption of m000-003")
    with pytest.raises(StorageError, match="m-000.tar: the text of sample 3 was not precomputed"):
        stored.read(0, 3, "another caption")


def test_missing_latents_of_one_sample_are_a_skip(root: Path) -> None:
    stored = Precomputed(root / "main", read_manifest(root / "main"), ["latents"])
    with pytest.raises(SampleError, match="not precomputed"):
        stored.read(0, 0, "")
    assert float(stored.read(0, 2, "")["latents"][0, 0, 0]) == 2


def test_missing_stale_and_mixed_files_stop_at_the_start(root: Path) -> None:
    def start() -> None:
        data = module(root)
        data.setup("fit")
        data.train_dataloader()

    start()
    path = column_path(root / "main" / "m-001.tar", "latents")
    good = path.read_bytes()
    path.unlink()
    with pytest.raises(StorageError, match="m-001.latents.safetensors: missing"):
        start()
    path.write_bytes(good[:50])
    with pytest.raises(StorageError, match="m-001.latents.safetensors: missing, damaged"):
        start()
    with safe_open(column_path(root / "main" / "m-000.tar", "latents"), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    sha256 = read_manifest(root / "main")[1].sha256
    write_columns(root / "main" / "m-001.tar", "latents", tensors, sha256="old", made_by="r")
    with pytest.raises(StorageError, match="another version of the tar"):
        start()
    write_columns(root / "main" / "m-001.tar", "latents", tensors, sha256=sha256, made_by="s")
    with pytest.raises(StorageError, match="2 different networks"):
        start()
    assert read_metadata(root / "main" / "m-001.tar", "latents")["recipe"] == "s"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": CropPolicy()}, "crop.flip_prob=0"),
        ({"captions": CaptionPolicy(min_visible=0.5)}, "min_visible=0"),
        ({"precomputed": ["pixels"]}, "latents, text"),
        ({"reader": "stream"}, "reader=index"),
    ],
)
def test_policies_that_do_not_fit_are_refused(root: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(root, **options)


def test_source_policies_count_too(root: Path) -> None:
    data = module(root)
    data.sources["main"] = SourceConfig(weight=1, captions=CaptionPolicy(negative_words="ugly"))
    assert constant_texts(data.caption_policies(), approximate_tokens) == ["", "ugly", "blurry"]
