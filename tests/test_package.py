"""The package: its wheel holds all it needs, and restores in an empty folder without a checkout."""

import json
import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.integration.conftest import stage_2, workplace  # noqa: F401 - fixtures
from tests.test_configs import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built offline from a copy of the tracked files."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():  # not one that was deleted and is still tracked
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    _pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(folder), str(source))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a fresh environment with the wheel; other packages come from the present one.

    A .pth file with a plain path adds a folder without reading the .pth files in it, so the
    checkout, which is installed here by such a file, stays out.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    python = str(folder / "bin/python")
    _pip("--python", python, "install", "--no-deps", "--no-index", str(wheel))
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    return folder


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def _run(environment: Path, folder: Path, *command: str) -> str:
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    ended = subprocess.run(
        [str(environment / "bin" / command[0]), *command[1:]],
        cwd=folder, env=variables, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_wheel_carries_configuration_and_demo_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"open_supir/conf/{path.relative_to(ROOT / 'conf').as_posix()}" in names
    for name in ("supir_tiny.safetensors", "one_step.safetensors", "photos.json"):
        assert f"open_supir/demo/{name}" in names
    for path in (ROOT / "src/open_supir").rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            assert f"open_supir/{path.relative_to(ROOT / 'src/open_supir').as_posix()}" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"open_supir"}


def test_installed_command_restores_a_photograph_in_an_empty_folder(
    environment: Path,
    stage_2: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    said = "import open_supir; print(open_supir.__file__)"
    place = _run(environment, tmp_path, "python", "-c", said)
    (packages,) = environment.glob("lib/python*/site-packages")
    assert Path(place.strip()).is_relative_to(packages)
    before = {path for path in packages.rglob("*") if "__pycache__" not in path.parts}

    commands = _run(environment, tmp_path, "open-supir", "--help")
    for path in (ROOT / "src/open_supir/commands").glob("[a-z]*.py"):
        (line,) = [line for line in commands.splitlines() if line.startswith(f"  {path.stem} ")]
        assert 20 < len(line.split(maxsplit=1)[1]) < 80  # one short sentence
    assert "options.num_samples=1" in _run(environment, tmp_path, "open-supir", "restore", "--help")

    values = np.random.default_rng(0).integers(0, 256, (20, 28, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "photo.png")
    _run(environment, tmp_path, "open-supir", "restore", "input=photo.png", "output=out",
         f"checkpoint={stage_2}", "device=cpu",
         "weights.robust_encoder=shipped:supir_tiny.safetensors")  # fmt: skip
    with Image.open(tmp_path / "out/photo.png") as image:
        assert image.size == (28, 20)
        restored = np.asarray(image)
    assert restored.shape == values.shape and (restored != values).any()
    record = json.loads((tmp_path / "out/photo.png.json").read_text())
    assert record["model"]["weights.robust_encoder"] == "supir_tiny.safetensors"
    assert record["options"]["settings"]["num_steps"] == 2

    after = {path for path in packages.rglob("*") if "__pycache__" not in path.parts}
    assert after == before  # nothing is written into the package
    assert {path.name for path in tmp_path.iterdir()} == {"photo.png", "out"}
