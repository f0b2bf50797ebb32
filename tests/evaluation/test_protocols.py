"""Protocols: pairs, crops, sizes, and what is left out by name."""

import json
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from open_supir.base.images.write import write_image
from open_supir.evaluation.metrics import select_metrics
from open_supir.evaluation.protocols import Protocol, load_samples, seed_of
from open_supir.evaluation.samples import BrokenSample
from open_supir.evaluation.synthetic import FixedDegradation

ROOT = Path(__file__).parents[2]


def _protocol(**fields) -> Protocol:
    return Protocol(**{"name": "test", "source": "none", "metrics": ("psnr",), **fields})


def _write(path: Path, height: int = 24, width: int = 20, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, image)
    return image[None].float() / 255


def test_degraded_samples_are_cropped_and_seeded_by_name(tmp_path: Path) -> None:
    image = _write(tmp_path / "sub" / "a.png")
    seeds = []

    def degrade(hq: Tensor, seed: int) -> tuple[Tensor, dict]:
        seeds.append(seed)
        return hq * 0.5, {"factor": 0.5}

    protocol = _protocol(crop=16, seed=3)
    ((name, lq, hq, source, how, small),) = load_samples(protocol, hq=tmp_path, degrade=degrade)
    assert source == tmp_path / "sub/a.png" and how == {"factor": 0.5} and small is None
    assert name == "sub/a" and seeds == [seed_of(3, "sub/a")]
    assert torch.equal(hq, image[..., 4:20, 2:18])
    assert torch.equal(lq, (hq * 0.5 * 255).round() / 255)


def test_short_side_is_resized_before_the_crop(tmp_path: Path) -> None:
    _write(tmp_path / "a.png", height=40, width=20)
    protocol = _protocol(short_side=16, crop=16)
    ((_, lq, hq, *_),) = load_samples(protocol, hq=tmp_path, degrade=lambda hq, seed: (hq, {}))
    assert hq.shape == lq.shape == (1, 3, 16, 16)


def test_paired_folders_name_what_is_left_out(tmp_path: Path) -> None:
    hq, lq = tmp_path / "hq", tmp_path / "lq"
    for index, name in enumerate(("good", "lonely", "broken", "odd")):
        _write(hq / f"{name}.png", seed=index)
    _write(lq / "good.jpg")
    (lq / "broken.png").write_bytes(b"no image")
    _write(lq / "odd.png", height=10)
    _write(lq / "extra.png")
    samples = list(load_samples(_protocol(), hq=hq, lq=lq))
    broken = {s.name: s.reason for s in samples if isinstance(s, BrokenSample)}
    assert [s[0] for s in samples if not isinstance(s, BrokenSample)] == ["good"]
    assert set(broken) == {"lonely", "broken", "odd", "extra"}
    assert broken["lonely"] == f"no LQ partner lonely in {lq}"
    assert "broken.png" in broken["broken"]
    assert broken["odd"] == "LQ is 10x20 after scaling, HQ is 24x20"
    assert broken["extra"] == f"no HQ partner in {hq}"


def test_small_lq_images_are_enlarged_and_partners_found_by_pattern(tmp_path: Path) -> None:
    _write(tmp_path / "hq" / "a.png", height=32, width=32)
    _write(tmp_path / "lq" / "ax4.png", height=8, width=8)
    protocol = _protocol(scale=4, lq_name="{stem}x4")
    ((_, lq, hq, *_),) = load_samples(protocol, hq=tmp_path / "hq", lq=tmp_path / "lq")
    assert lq.shape == hq.shape == (1, 3, 32, 32)
    assert 0 <= lq.min() and lq.max() <= 1


def test_lq_alone_has_no_reference(tmp_path: Path) -> None:
    image = _write(tmp_path / "a.png")
    ((name, lq, hq, *_),) = load_samples(_protocol(), lq=tmp_path)
    assert name == "a" and hq is None and torch.equal(lq, image)


def test_limit_takes_the_first_by_name(tmp_path: Path) -> None:
    for name in ("c", "a", "b"):
        _write(tmp_path / f"{name}.png")
    names = [sample[0] for sample in load_samples(_protocol(limit=2), lq=tmp_path)]  # type: ignore[index]
    assert names == ["a", "b"]


def test_missing_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_samples(_protocol(), lq=tmp_path / "nowhere")


def test_what_cannot_make_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs LQ images or a degradation"):
        load_samples(_protocol(), hq=tmp_path)
    with pytest.raises(ValueError, match="needs a folder of HQ or of LQ images"):
        load_samples(_protocol())


def test_repeats_degrade_each_image_with_other_seeds(tmp_path: Path) -> None:
    _write(tmp_path / "a.png")
    protocol = _protocol(repeats=3, degradation=FixedDegradation(noise=20))
    samples = list(load_samples(protocol, hq=tmp_path))
    assert [sample[0] for sample in samples] == ["a_0", "a_1", "a_2"]  # type: ignore[index]
    assert not torch.equal(samples[0][1], samples[1][1])  # type: ignore[index]


def test_folders_say_where_to_get_what_is_missing(tmp_path: Path) -> None:
    protocol = _protocol(hq_folder="set/hq", obtain="From https://example.org, CC0.")
    with pytest.raises(FileNotFoundError, match="set/hq does not exist. From https://example.org"):
        protocol.folders(tmp_path)
    (tmp_path / "set" / "hq").mkdir(parents=True)
    assert protocol.folders(tmp_path) == (tmp_path / "set" / "hq", None)


def test_held_out_photographs_are_those_of_the_run(tmp_path: Path) -> None:
    """Below the data root they keep the protocol's name, so that earlier records still hold."""
    usual, other = tmp_path / "heldout", tmp_path / "mine"
    usual.mkdir()
    other.mkdir()
    protocol = _protocol(name="demo", hq_folder="heldout")
    assert protocol.folders(tmp_path) == (usual, None)
    assert protocol.folders(tmp_path, str(other)) == (other, None)
    assert protocol.on(tmp_path, None) is protocol.on(tmp_path, str(usual)) is protocol
    assert protocol.on(tmp_path, str(other)).name == "heldout"
    elsewhere = _protocol(hq_folder="mine")
    assert elsewhere.folders(tmp_path, str(usual)) == (other, None)
    assert elsewhere.on(tmp_path, str(usual)) is elsewhere


def test_settings_are_json_and_hold_the_degradation() -> None:
    protocol = _protocol(scale=4, degradation=FixedDegradation(scale=4, jpeg=50))
    settings = json.loads(json.dumps(protocol.settings()))
    assert settings == protocol.settings()
    assert settings["protocol"] == "test" and settings["degradation"]["jpeg"] == 50


PROTOCOLS = sorted(path.stem for path in (ROOT / "conf" / "protocol").glob("*.yaml"))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_file_builds_a_protocol_of_its_name(name: str) -> None:
    metrics = OmegaConf.load(ROOT / "conf" / "metrics" / "default.yaml")
    config = OmegaConf.load(ROOT / "conf" / "protocol" / f"{name}.yaml")
    whole = OmegaConf.create({"metrics": metrics, "protocol": config, "seed": 0})
    for key in OmegaConf.missing_keys(whole):
        OmegaConf.update(whole, key, "given")  # folders that only the user knows
    protocol = instantiate(whole.protocol, _convert_="all")
    assert isinstance(protocol, Protocol) and protocol.name == name and protocol.source
    assert "limit" in config and "limit" not in protocol.settings()  # more images, same values


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "metrics").glob("*.yaml")), ids=str)
def test_every_metrics_file_names_known_metrics(path: Path) -> None:
    names = OmegaConf.load(path)["names"]  # type: ignore[index, call-overload]
    assert select_metrics(names) if path.stem != "default" else names is None


def test_protocol_refuses_a_scale_between_whole_numbers() -> None:
    with pytest.raises(ValueError, match="scale must be a whole number of at least 1, got 1.5"):
        Protocol(name="x", source="", metrics=(), scale=1.5)  # type: ignore[arg-type]


def test_protocol_refuses_bad_values() -> None:
    with pytest.raises(ValueError, match="crop must be a whole number of at least 1, got 0"):
        _protocol(crop=0)
    with pytest.raises(ValueError, match="unknown metric"):
        _protocol(metrics=("nothing",))
    with pytest.raises(ValueError, match="degradation.scale is 2, but scale is 4"):
        _protocol(scale=4, degradation=FixedDegradation(scale=2))
