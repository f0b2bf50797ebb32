"""Where the configuration and the shipped files are: in the checkout, else inside the package."""

from pathlib import Path

from open_supir.base.hub import fetch, is_named, named

PACKAGE = Path(__file__).parents[1]


def _checkout() -> Path | None:
    """Return the checkout that this code lies in, or None where it is installed elsewhere."""
    root = PACKAGE.parents[1]
    is_checkout = PACKAGE.parent.name == "src" and (root / "conf" / "train.yaml").is_file()
    return root if is_checkout else None


CHECKOUT = _checkout()
CONF = CHECKOUT / "conf" if CHECKOUT else PACKAGE / "conf"
DEMO = CHECKOUT / "data" / "demo" if CHECKOUT else PACKAGE / "demo"


SHIPPED = "shipped:"
SHIPPED_MODEL = SHIPPED + "supir_tiny.safetensors"  # complete: prior, robust encoder and stage 2


def located(path: str | Path) -> Path:
    """Return where a file is: `shipped:NAME` comes with the code; the hub's names (see hub.py) are
    downloaded unless they are in the cache; anything else is a path.

    Raises:
        OSError, ValueError: It is a name, and cannot be downloaded; see `fetch`.
    """
    text = str(path)
    if text.startswith(SHIPPED):
        return DEMO / text.removeprefix(SHIPPED)
    return fetch(named(text, CONF)) if is_named(text, CONF) else Path(path)
