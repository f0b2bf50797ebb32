"""Paths and texts of the command line reach the command as they were typed."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from open_supir.base.arguments import PATHS, TEXTS, as_typed
from tests.test_configs import CONF, ROOT

DATASET = ROOT / "src/open_supir/data/dataset.py"
NAMES = ["1980", "2019_05", "1e3", "true", "été", "Photos (1)", "Family, 1980", "Oma's album",
         "[scans]", "[a,b]", "{a: b}", "a=b", "R&B", "#1", "a:b", "back\\slash", "end\\",
         "it's \\'x", ' two  spaces ', 'say "hi"', "50%", "a;b|c", "$5"]  # fmt: skip


def value_of(argument: str, config_name: str = "restore", *flags: str) -> Any:
    """Return the value that Hydra reads from an argument."""
    (typed, *_) = as_typed([argument, *flags], config_name)
    override = OverridesParser.create().parse_override(typed)
    if not override.is_sweep_override():
        return override.value()
    return [getattr(value, "text", value) for value in override.value().list]  # of quoted ones


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_the_rest_of_the_argument(name: str) -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("restore", as_typed([f"input={name}", f"output={name}/x"], "restore"))
    assert cfg.input == name and cfg.output == f"{name}/x"
    assert cfg.caption_cache == f"{name}/x/.captions"


@pytest.mark.parametrize("name", [*NAMES, "", "~/not a path", "NULL and void"])
def test_a_prompt_is_the_rest_of_the_argument(name: str) -> None:
    assert value_of(f"options.positive_prompt={name}") == name


def test_home_is_expanded_in_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/zoë")
    assert value_of("input=~/a b") == "/home/zoë/a b"
    assert value_of("input='~/a b'") == "/home/zoë/a b"
    assert value_of("input=[~/a,b]", "convert") == ["/home/zoë/a", "b"]


@pytest.mark.parametrize("argument", ["input=", "output=''", 'weights.sdxl="  "', "runs_dir="])
def test_an_empty_path_is_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument.split('=')[0]}= is empty: give a path"):
        as_typed([argument], "restore")


def test_null_and_quoted_values_are_left_to_hydra(tmp_path: Path) -> None:
    assert value_of("checkpoint=null") is None
    assert value_of("input='Family, 1980'") == "Family, 1980"
    assert value_of("input='null'") == "null"
    assert value_of("options.positive_prompt=''") == ""


def test_a_folder_that_exists_is_taken_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("null", "'quoted'", "[a,b]"):
        (tmp_path / name).mkdir()
        assert value_of(f"input={name}") == name
        assert value_of(f"input={name}", "curate") == name
    assert value_of("input=[a,c]", "curate") == ["a", "c"]
    (tmp_path / "${x}").mkdir()
    with initialize_config_dir(CONF, version_base="1.3"):
        assert compose("degrade", as_typed(["input=${x}"], "degrade")).input == "${x}"


def test_a_text_may_hold_what_hydra_would_replace() -> None:
    arguments = as_typed(["input=a", "output=b", "options.positive_prompt=${x} and \\'"], "restore")
    with initialize_config_dir(CONF, version_base="1.3"):
        assert compose("restore", arguments).options.positive_prompt == "${x} and \\'"


def test_lists_and_names_hold_names_as_typed() -> None:
    assert value_of("input=[Photos (1), Oma's,'a, b']", "convert") == [
        "Photos (1)",
        "Oma's",
        "a, b",
    ]
    assert value_of("input={a: R&B, b: 1980}", "curate") == {"a": "R&B", "b": "1980"}
    assert value_of("runs=[runs/a/connector=x,runs/b]", "ablation") == [
        "runs/a/connector=x", "runs/b",
    ]  # fmt: skip
    assert value_of("input=[]", "convert") == []


def test_sweeps_over_paths_and_texts() -> None:
    """A comma separates values under -m, for keys that are meant to be swept, without a space."""
    files = "runs/a/multirun/D/0_control=full,x=[1]/last.ckpt,b (1).ckpt"
    assert value_of(f"checkpoint={files}", "evaluate") == files
    expected = ["runs/a/multirun/D/0_control=full", "x=[1]/last.ckpt", "b (1).ckpt"]
    assert value_of(f"checkpoint={files}", "evaluate", "-m") == expected
    assert value_of("options.positive_prompt=null,'',a (b)", "evaluate", "-m") == [
        None,
        "",
        "a (b)",
    ]
    assert value_of("options.positive_prompt=sharp, clean", "evaluate", "-m") == "sharp, clean"
    assert value_of("weights.robust_encoder=null,clean", "train", "--multirun") == [None, "clean"]
    assert value_of("output=a,b", "restore", "-m") == "a,b"


def test_other_arguments_are_unchanged() -> None:
    typed = ["-m", "seed=0,1", "+data.prepare.shard_size=5", "~captioner", "options.scale=2", "x"]
    assert as_typed(typed, "train") == typed
    assert as_typed(["+weights.sdxl=a b"], "train") == ["+weights.sdxl='a b'"]


def test_every_key_exists_in_a_command() -> None:
    """Keys with `*`, and those of choices that no default makes, are looked for in the files."""
    known: set[str] = set()
    with initialize_config_dir(CONF, version_base="1.3"):
        for path in Path(CONF).glob("*.yaml"):
            node = OmegaConf.to_container(compose(path.stem, return_hydra_config=True))
            known |= _keys(node, "")
    files = [*Path(CONF).rglob("*.yaml"), *(ROOT / "docs").glob("*.md"), DATASET]
    text = "".join(path.read_text() for path in files)
    for key in {*PATHS, *TEXTS} - known:
        assert f"{key.removesuffix('.*').rpartition('.')[2]}:" in text, key


def _keys(node: Any, prefix: str) -> set[str]:
    if not isinstance(node, dict):
        return {prefix}
    return {prefix}.union(*(_keys(v, f"{prefix}.{k}".lstrip(".")) for k, v in node.items()))


@pytest.mark.parametrize("name", ["Photos (1)", "Family, 1980", "[scans]", "R&B", "a=b", "1980"])
@pytest.mark.parametrize("key", ["clean", "options.mask", "runner.logs", "callbacks.best.dirpath"])
def test_paths_in_groups_are_taken_as_typed(key: str, name: str) -> None:
    (argument,) = as_typed([f"{key}={name}"], "restore")
    assert OverridesParser.create().parse_override(argument).value() == name
