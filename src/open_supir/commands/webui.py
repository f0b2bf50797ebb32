"""Restore photographs in the browser, on this machine (extra `web`).

By default the page is served on the loopback address only. It contacts no other host and accepts no
paths on the server. Uploads and results are kept in a temporary folder that is deleted on exit.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from open_supir.base.cli import command, pick_device, plain

if TYPE_CHECKING:
    from open_supir.webui.studio import Studio

PRESETS = ("paper", "released", "quality", "fidelity", "fast")
OWN = "checkpoint default"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PASSWORD = "OPEN_SUPIR_PASSWORD"


@command("webui")
def main(cfg: DictConfig) -> None:
    """Run the page until interrupted."""
    with tempfile.TemporaryDirectory(prefix="open-supir-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        launch(cfg, Path(folder))


def launch(cfg: DictConfig, folder: Path, **options: Any) -> Any:
    """Start the page and return it; `options` are passed to Gradio's launch.

    Raises:
        ValueError: Gradio is not installed, or `host` is reachable from other machines and no
            password is set.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("the page needs gradio: pip install -e '.[web]'") from error
    from open_supir.base.images.read import quieten_readers
    from open_supir.webui.page import build_page, write_examples

    password = os.environ.get(PASSWORD)
    if cfg.host not in LOOPBACK and not password:
        raise ValueError(f"host={cfg.host} is reachable by others: set {PASSWORD} first")
    quieten_readers()
    page = build_page(build_studio(cfg, folder), write_examples(folder))
    page.queue(max_size=cfg.queue, default_concurrency_limit=1)
    page.launch(
        server_name=cfg.host,
        server_port=cfg.port,
        share=False,
        inbrowser=cfg.open_browser,
        max_file_size=f"{cfg.max_file_mb}mb",
        auth=("open-supir", password) if password else None,
        **options,
    )
    return page


def build_studio(cfg: DictConfig, folder: Path) -> "Studio":
    """Load the model and the presets."""
    from hydra import compose
    from hydra.utils import instantiate

    from open_supir.inference.model import Model, cached
    from open_supir.webui.studio import Studio

    model = Model.find(
        cfg.checkpoint,
        runs_dir=cfg.runs_dir,
        weights=plain(cfg.weights),
        dtype=cfg.dtype,
        quantize=cfg.quantize,
        ignored_keys=tuple(cfg.ignored_keys),
    )
    presets = {OWN: model.options(plain(cfg.sampler), plain(cfg.options))}
    for name in PRESETS:
        preset = compose("restore", overrides=[f"preset={name}", "input=x", "output=x"])
        presets[name] = model.options(plain(preset.sampler), plain(preset.options))
    captioner = cached(instantiate(cfg.captioner, _convert_="all"), cfg.caption_cache)
    return Studio(
        model.load(presets[OWN], captioner=captioner, device=pick_device(cfg.device)),
        presets,
        model.described(),
        folder,
        max_pixels=cfg.max_pixels,
        max_output_pixels=cfg.max_output_pixels,
        max_files=cfg.max_files,
    )


if __name__ == "__main__":
    main()
