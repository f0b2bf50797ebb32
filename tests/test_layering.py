"""Who may import whom: the table of the architecture, checked on imports and on conf/."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "open_supir"

# room -> what it may import of ours besides base and itself; commands may import every room
ALLOWED: dict[str, set[str]] = {
    "base": set(),
    "reports": set(),
    "networks": set(),
    "diffusion": set(),
    "degradation": set(),
    "checkpoints": set(),
    "data": set(),
    "training": {"networks", "diffusion", "degradation", "data", "checkpoints"},
    "inference": {"networks", "diffusion", "checkpoints"},
    "rehearsal": {"training", "inference", "networks", "diffusion", "reports"},
    "evaluation": {"degradation", "data", "inference", "reports"},
    "curation": {"data", "inference", "reports"},
    "webui": {"data", "diffusion", "inference"},
    "diffusers": {"checkpoints", "diffusion", "inference"},
}
COMMANDS = "commands"
# conf group -> rooms that its `_target_`s may name besides those below; the room that uses it may
OPTIONS = {
    "unet": {"networks"},
    "vae": {"networks"},
    "conditioner": {"networks"},
    "control": {"networks"},
    "connector": {"networks"},
    "denoiser": {"diffusion"},
    "noise": {"diffusion"},
    "sampler": {"diffusion"},
    "degradation": {"degradation"},
    "data": {"data", "networks"},  # CLIP's tokenizer counts tokens for the captions
    "callbacks": {"training"},
    "logger": {"training"},
    "trainer": {"training"},
    "experiment": {"training"},
    "module": {"training", "networks", "evaluation"},  # metrics of validation
    "discriminator": {"training", "diffusion"},
    "perceptual": {"evaluation"},
    "captioner": {"inference"},
    "protocol": {"evaluation"},
    "prior": {"inference", "networks", "diffusion"},
    "runner": {"curation"},
    "scale": {"training"},
}
# library -> where it may be imported
LIBRARIES = {
    "kornia": {"degradation"},
    "webdataset": {"data", "curation"},
    "ray": {"curation", COMMANDS},
    "open_clip": {"networks.conditioner", "networks.convnext"},
    "pyiqa": {"evaluation"},
    "jinja2": {"reports"},
    "pandas": {"reports"},
    "matplotlib": {"reports"},
    "torchmetrics": {"evaluation"},
    "lightning": {"training", "data.datamodule", COMMANDS},
    "hydra": {COMMANDS, "base"},
    "omegaconf": {COMMANDS, "base"},
    "gradio": {COMMANDS, "webui"},
    "peft": {"training"},
    "transformers": {"inference.captioner", "inference.captioner_local", "curation.caption"},
    "diffusers": {"diffusers"},
    "huggingface_hub": {"base.hub", "checkpoints.model_card", "evaluation"},
    "skimage": {"data.demo"},
}
FILES = sorted(SRC.rglob("*.py"))
PACKAGES = sorted(path.parent for path in FILES if path.name == "__init__.py")


def module_of(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, *, at_start_only: bool = False) -> list[str]:
    """Return what a file imports, `package.name` for a `from` import."""
    tree = ast.parse(path.read_text())
    names = []
    for node in tree.body if at_start_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it from open_supir"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def room_of(module: str) -> str:
    first = module.split(".")[0]
    return first if first in ALLOWED or first == COMMANDS else "__main__"


def targets_in(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from targets_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets_in(value)


def own_modules(names: list[str]) -> Iterator[str]:
    """Return those of our modules that `from a.b import c` names may mean."""
    known = {module_of(path) for path in FILES}
    for name in names:
        if name.startswith("open_supir."):
            rest = name.removeprefix("open_supir.")
            yield rest if rest in known else rest.rpartition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_follow_the_table(path: Path) -> None:
    module, wrong = module_of(path), []
    room = room_of(module)
    for name in imports_of(path):
        top, _, rest = name.partition(".")
        if top == "open_supir":
            target = rest.split(".")[0]
            if room == COMMANDS:
                allowed = set(ALLOWED)
            else:
                allowed = {room, "base", *ALLOWED.get(room, ())}
            if target not in allowed:
                wrong.append(f"{room} imports {name}")
        elif top in LIBRARIES and not LIBRARIES[top] & {room, module}:
            wrong.append(f"{module} imports {name}, allowed in {', '.join(sorted(LIBRARIES[top]))}")
    assert not wrong


def test_every_room_is_in_the_table() -> None:
    rooms = {package.name for package in PACKAGES if package.parent == SRC}
    assert rooms == {COMMANDS, *ALLOWED}


def test_rooms_and_modules_are_imported_without_a_circle() -> None:
    """Imports inside functions too between rooms; between modules those at the top."""
    TopologicalSorter(ALLOWED).prepare()
    graph = {
        module_of(path): set(own_modules(imports_of(path, at_start_only=True))) - {module_of(path)}
        for path in FILES
        if path.name != "__init__.py"  # they re-export
    }
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_options_name_classes_of_their_room(path: Path) -> None:
    """conf/ reaches rooms too: an option of a group names classes of the rooms listed, or base."""
    group = path.parent.name
    if group not in OPTIONS:  # a command's own file may name any room, and no command
        rooms = set(ALLOWED)
    else:
        rooms = {"base", *OPTIONS[group]}
    found = [t.split(".") for t in targets_in(yaml.safe_load(path.read_text()))]
    assert not [t for t in found if t[0] == "open_supir" and t[1] not in rooms]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_packages_export_at_most_8_names_and_hold_no_code(package: Path) -> None:
    body = ast.parse((package / "__init__.py").read_text()).body
    code = [n for n in body if not isinstance(n, ast.ImportFrom | ast.Assign | ast.Expr)]
    exported = [n for n in body if isinstance(n, ast.Assign)]
    assert not code
    for node in exported:
        assert isinstance(node.value, ast.List) and len(node.value.elts) <= 8


def test_every_torch_load_is_weights_only() -> None:
    """A checkpoint is data; torch.load without weights_only=True would run what it contains."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("weights_only") == "True", f"{path}:{node.lineno}"
