"""The stream reader: endless, tolerant of damage, and never runs a command."""

import json
from itertools import islice
from pathlib import Path
from typing import IO

import pytest

from open_supir.data.captions import CaptionPolicy
from open_supir.data.counters import LoaderCounters, SkipLimits
from open_supir.data.dataset import SampleReader, SourceConfig
from open_supir.data.samples import CropPolicy, ImageLimits
from open_supir.data.shards import StorageError
from open_supir.data.stream import StreamDataset, raw_samples, source_urls, tar_samples
from tests.data.made import good_members, shard_folder, tar_bytes


def stream(root: Path, sources: dict[str, SourceConfig], **options) -> StreamDataset:
    reader = SampleReader(
        crop_size=32,
        crop=CropPolicy(),
        captions=CaptionPolicy(),
        seed=0,
        limits=ImageLimits(min_side=32),
    )
    counters = LoaderCounters(
        list(sources), path=options.pop("log", None), limits=SkipLimits(rate=1.0)
    )
    urls = [source_urls(root, name, config) for name, config in sources.items()]
    configs = list(sources.values())
    options = {"buffer": 10} | options
    return StreamDataset(urls, list(sources), configs, reader, counters, **options)


def test_stream_is_endless_and_mixes_by_weight(tmp_path: Path) -> None:
    shard_folder(tmp_path / "a", [3, 4], prefix="a")
    shard_folder(tmp_path / "b", [2], prefix="b")
    sources = {"a": SourceConfig(weight=3), "b": SourceConfig(weight=1, is_negative=True)}
    samples = list(islice(stream(tmp_path, sources), 400))
    share = sum(s["source"] == "a" for s in samples) / 400
    assert abs(share - 0.75) < 0.08
    assert len({s["key"] for s in samples}) == 9 and len({s["seed"] for s in samples}) == 400


def test_stream_repeats_with_its_seed_and_differs_by_start_and_rank(tmp_path: Path) -> None:
    shard_folder(tmp_path / "a", [5, 5, 5], prefix="a")
    sources = {"a": SourceConfig(weight=1)}

    def keys(**options) -> list[str]:
        return [s["key"] for s in islice(stream(tmp_path, sources, **options), 30)]

    assert keys() == keys()
    assert keys() != keys(start=100) and keys() != keys(rank=1, world=2)


def test_damaged_tars_are_left_where_they_break(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    data = tar_bytes(good_members(6))
    (tmp_path / "a" / "x.tar").write_bytes(data[: len(data) // 2])
    (tmp_path / "a" / "y.tar").write_bytes(b"<html>404</html>" * 99)
    samples = list(islice(stream(tmp_path, {"a": SourceConfig(weight=1)}), 40))
    assert 1 <= len({s["key"] for s in samples}) < 6


def test_no_readable_tar_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "y.tar").write_bytes(b"<html>404</html>" * 99)
    with pytest.raises(StorageError, match="y.tar"):
        next(iter(stream(tmp_path, {"a": SourceConfig(weight=1)})))
    with pytest.raises(FileNotFoundError, match="no tars"):
        source_urls(tmp_path, "nothing", SourceConfig(weight=1))


@pytest.mark.parametrize("command", ["pipe:touch {}/owned", "pipe:touch {}/owned; cat http://x/y"])
def test_pipe_addresses_are_refused_and_run_nothing(tmp_path: Path, command: str) -> None:
    with pytest.raises(ValueError, match="only paths"):
        raw_samples([command.format(tmp_path)], seed=0, buffer=10, report=print)
    assert not (tmp_path / "owned").exists()


def test_rewriting_of_addresses_by_the_environment_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """webdataset's own opener would turn the path into the command."""
    shard_folder(tmp_path / "a", [2])
    monkeypatch.setenv("GOPEN_REWRITE", f"{tmp_path}=pipe:touch {tmp_path}/owned #")
    assert next(iter(stream(tmp_path, {"a": SourceConfig(weight=1)})))["source"] == "a"
    assert not (tmp_path / "owned").exists()


def test_captions_that_stand_apart_from_their_images_are_counted(tmp_path: Path) -> None:
    """All images first, then all captions: no sample has its caption."""
    (tmp_path / "a").mkdir()
    members = sorted(good_members(4), key=lambda member: member[0].rpartition(".")[2])
    (tmp_path / "a" / "x.tar").write_bytes(tar_bytes(members))
    refused: list[tuple[str, str]] = []
    with (tmp_path / "a" / "x.tar").open("rb") as file:
        samples = list(tar_samples(file, lambda reason, detail: refused.append((reason, detail))))
    assert len(samples) == 4 and not any(sample.text for sample in samples)
    captions = sum(name.endswith(".txt") for name, _ in members)
    assert captions == 4 and {reason for reason, _ in refused} == {"member refused"}
    assert sum("without an image next to it" in detail for _, detail in refused) >= captions


def test_missing_tars_are_named(tmp_path: Path) -> None:
    shard_folder(tmp_path / "a", [2])
    there = str(next((tmp_path / "a").glob("*.tar")))
    urls = SourceConfig(weight=1, urls=[there, f"{tmp_path}/gone.tar"])
    with pytest.raises(FileNotFoundError, match="source 'a': 1 of 2 tars are missing.*gone.tar"):
        source_urls(tmp_path, "a", urls)

    def absent(url: str) -> IO[bytes]:
        raise FileNotFoundError(f"404 {url}")

    remote = ["https://x/0.tar", "https://x/1.tar"]
    reading = raw_samples(remote, seed=0, buffer=10, report=lambda *_: None, open_url=absent)
    with pytest.raises(StorageError, match="9 shards in a row have no samples: .*404") as said:
        next(reading)
    assert all(url in str(said.value) for url in remote)


def test_what_a_stream_passes_over_is_counted_and_written(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    members = [*good_members(6), ("000.jpg", b"again"), ("a.b.jpg", b"x"), ("notes.cls", b"3")]
    members += [("long.jpg", good_members(1)[0][1]), ("long.txt", b"x" * (17 << 10))]
    members += [("end.jpg", b"x" * 20_000)]
    (tmp_path / "a" / "x.tar").write_bytes(tar_bytes(members)[:-15_000])
    log = tmp_path / "bad_samples.jsonl"
    data = stream(tmp_path, {"a": SourceConfig(weight=1)}, log=log)
    list(islice(data, 30))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["reason"] for line in lines} >= {"damaged tar", "member refused"}
    assert all(line["shard"].endswith("x.tar") and line["source"] == "a" for line in lines)
    details = " ".join(line["detail"] for line in lines)
    assert "a.b.jpg" in details and "17408 bytes" in details and "notes" not in details
    assert data.counters.skipped()["a/damaged tar"] >= 1
