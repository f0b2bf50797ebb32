"""Configuration: everything composes, every target exists, full size builds."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from open_supir.base.cli import command
from open_supir.base.failures import explain, unknown_key
from open_supir.base.registry import build
from open_supir.diffusion import SamplerSettings

ROOT = Path(__file__).parents[1]
CONF = str(ROOT / "conf")
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf/experiment").glob("*.yaml"))
NOT_COMMANDS = ("train", "model")  # needs an experiment; what several commands share
COMMANDS = sorted({path.stem for path in (ROOT / "conf").glob("*.yaml")} - set(NOT_COMMANDS))
GROUPS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in (ROOT / "conf").glob("*/*.yaml")
    if path.parent.name
    not in (
        "experiment",
        "scale",
        "module",
        "protocol",
        "metrics",
        "captioner",
        "options",
        "preset",
        "runner",
        "prior",
        "set",
        "names",
    )  # fmt: skip
)


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(name, overrides=list(overrides), return_hydra_config=True)


def plain(cfg: DictConfig, key: str) -> Any:
    return OmegaConf.to_container(cfg[key], resolve=True)


def targets(node: Any) -> list[str]:
    """Return every _target_ below a node."""
    if isinstance(node, dict):
        own = [node["_target_"]] if "_target_" in node else []
        return own + [t for value in node.values() for t in targets(value)]
    return [t for value in node for t in targets(value)] if isinstance(node, list) else []


def resolves(target: str) -> bool:
    """Say whether a dotted path names something that exists."""
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("scale", ["tiny", "sdxl"])
def test_every_experiment_composes_at_every_scale(experiment: str, scale: str) -> None:
    cfg = composed("train", f"experiment={experiment}", f"scale={scale}")
    assert cfg.name == experiment
    assert cfg.scale.name == scale


@pytest.mark.parametrize("option", GROUPS)
def test_every_option_composes_and_its_targets_exist(option: str) -> None:
    cfg = composed("train", "experiment=zerosft", option)
    group = option.partition("=")[0]
    if group in cfg:
        missing = [t for t in targets(OmegaConf.to_container(cfg[group])) if not resolves(t)]
        assert not missing


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command: str) -> None:
    cfg = OmegaConf.to_container(composed(command))
    assert isinstance(cfg, dict)
    cfg.pop("hydra")
    assert not [t for t in targets(cfg) if not resolves(t)]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONF))
)
def test_every_target_in_every_file_exists(path: Path) -> None:
    found = targets(OmegaConf.to_container(OmegaConf.load(path)))
    assert not [t for t in found if not resolves(t)]


def test_every_sampler_setting_can_be_changed_on_the_command_line() -> None:
    """Hydra refuses a key that no file names."""
    names = {field.name for field in dataclasses.fields(SamplerSettings)}
    for sampler in ("base", "recorded"):
        cfg = composed("restore", f"sampler={sampler}", "sampler.tau=2.5")
        assert set(cfg.sampler) - {"_target_"} == names and cfg.sampler.tau == 2.5


def test_full_size_builds_on_meta() -> None:
    cfg = composed("train", "experiment=zerosft", "scale=sdxl", "control=full",
                   "connector=zerosft_released")  # fmt: skip
    with torch.device("meta"):
        counts = {
            part: sum(p.numel() for p in build(plain(cfg, part)).parameters())
            for part in ("unet", "control", "connector", "vae", "conditioner")
        }
    assert counts["unet"] == 2_567_463_684
    assert counts["control"] + counts["connector"] == 1_243_378_880 + 54_797_440
    assert counts["conditioner"] == 123_060_480 + 694_659_840  # bigG without its logit_scale


def test_connector_on_the_command_line_beats_the_experiment() -> None:
    cfg = composed("train", "experiment=zerosft", "connector=residual")
    assert cfg.connector._target_.endswith("ResidualConnector")


def test_unknown_key_is_answered_with_the_known_ones() -> None:
    message = unknown_key("trainer.max_stepz", "train", ["experiment=zerosft"])
    assert "unknown key 'trainer.max_stepz'" in message and "max_steps" in message


def test_unknown_option_is_answered_with_the_known_ones() -> None:
    with pytest.raises(Exception, match="connector/nonesuch") as caught:
        composed("train", "experiment=zerosft", "connector=nonesuch")
    message = explain(caught.value, "train", [])
    assert "zerosft" in message and "residual" in message


def test_an_interrupt_is_one_line_and_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(cfg: DictConfig) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["curate", "input=x", "output=y"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # a command sets it; put back afterwards
    with pytest.raises(SystemExit) as stop:
        command("curate")(task)()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
