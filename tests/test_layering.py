"""Who may import whom: the table of the architecture, checked on every import statement."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "open_supir"

# package -> what it may import of ours besides base and itself; entry points may import everything
ALLOWED = {
    "base": set(),
    "networks": set(),
    "diffusion": set(),
    "degradation": set(),
    "checkpoints": set(),
    "data": set(),
    "reports": set(),
    "training": {"networks", "diffusion", "degradation", "data", "checkpoints"},
    "inference": {"networks", "diffusion", "checkpoints"},
    "evaluation": {"degradation", "data", "inference", "reports"},
    "curation": {"data", "inference", "reports"},
    "webui": {"data", "diffusion", "inference"},
}
ENTRY = "entry points"
# library -> where it may be imported
LIBRARIES = {
    "kornia": {"degradation"},
    "webdataset": {"data", "curation"},
    "ray": {"curation", ENTRY},
    "open_clip": {"networks.conditioner"},
    "pyiqa": {"evaluation"},
    "jinja2": {"reports"},
    "pandas": {"reports"},
    "matplotlib": {"reports"},
    "torchmetrics": {"evaluation"},
    "lightning": {"training", "data.datamodule", ENTRY},
    "hydra": {ENTRY, "base"},
    "omegaconf": {ENTRY, "base", "training.base_weights", "training.resume"},
    "gradio": {"webui", ENTRY},
    "transformers": {"inference.captioner", "inference.captioner_local", "curation.caption"},
    "skimage": {"data.demo"},
}
FILES = sorted(SRC.rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts)


def imports_of(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it from open_supir"
            names.append(node.module or "")
    return names


def package_of(module: str) -> str:
    first = module.split(".")[0]
    return first if first in ALLOWED else ENTRY


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_follow_the_table(path: Path) -> None:
    module, wrong = module_of(path), []
    package = package_of(module)
    for name in imports_of(path):
        top, _, rest = name.partition(".")
        if top == "open_supir" and package != ENTRY:
            target = rest.split(".")[0]
            if target not in {package, "base", *ALLOWED[package]}:
                wrong.append(f"{package} imports {name}")
        elif top in LIBRARIES:
            places = LIBRARIES[top]
            if not any(place in (package, module) for place in places):
                wrong.append(f"{module} imports {name}, allowed in {', '.join(sorted(places))}")
    assert not wrong


@pytest.mark.parametrize("path", sorted(SRC.glob("commands/*.py")), ids=module_of)
def test_no_command_imports_a_command(path: Path) -> None:
    assert not [name for name in imports_of(path) if name.startswith("open_supir.commands")]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_stay_under_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.name == "__init__.py"], ids=lambda p: p.parent.name
)
def test_packages_export_at_most_8_names_and_hold_no_code(path: Path) -> None:
    body = ast.parse(path.read_text()).body
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
