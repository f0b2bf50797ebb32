"""Restore photographs in the browser, on this machine (extra `web`).

By default the page is served on the loopback address only. It contacts no other host and accepts no
paths on the server. Uploads and results are kept in a temporary folder that is deleted on exit.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from open_supir.base.cli import command, pick_device, picked, plain

if TYPE_CHECKING:
    from open_supir.webui.studio import Studio

PRESETS = ("paper", "released", "quality", "fidelity", "fast")
OWN = "checkpoint default"


@command("webui")
def main(cfg: DictConfig) -> None:
    """Run the page until interrupted."""
    with tempfile.TemporaryDirectory(prefix="open-supir-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        launch(cfg, Path(folder))


def launch(cfg: DictConfig, folder: Path, **options: Any) -> Any:
    """Start the page and return it; `options` are passed to Gradio's launch."""
    from open_supir.base.images.read import quieten_readers
    from open_supir.webui.server import check_access, serve

    password = check_access(cfg.host)
    from open_supir.webui.page import SCRIPT, STYLE, build_page, write_examples  # imports gradio

    quieten_readers()
    page = build_page(build_studio(cfg, folder), write_examples(folder))
    keys = ("host", "port", "queue", "max_file_mb", "open_browser")
    serve(
        page,
        password=password,
        style=STYLE,
        script=SCRIPT,
        **picked(cfg, *keys),
        **options,
    )
    return page


def build_studio(cfg: DictConfig, folder: Path) -> "Studio":
    """Load the model and the presets."""
    from hydra import compose
    from hydra.utils import instantiate

    from open_supir.inference.model import MODEL_SETTINGS, Model, cached
    from open_supir.webui.studio import Studio
    from open_supir.webui.words import about

    if cfg.options.mask is not None:
        raise ValueError(
            f"options.mask={cfg.options.mask}: leave it out; regions are painted on the page, or "
            "are NAME.mask.png beside an image of a batch"
        )
    device = pick_device(cfg.device)
    model = Model.find(**picked(cfg, *MODEL_SETTINGS), device=device)
    presets = {OWN: model.options(plain(cfg.sampler), plain(cfg.options))}
    for name in () if model.is_one_step else PRESETS:  # they have several steps
        preset = compose("model", overrides=[f"preset={name}"])
        presets[name] = model.options(plain(preset.sampler), plain(preset.options))
    captioner = cached(instantiate(cfg.captioner, _convert_="all"), cfg.caption_cache)
    restorer = model.load(presets[OWN], captioner=captioner, device=device)
    return Studio(
        restorer,
        presets,
        model.described(),
        folder,
        max_pixels=cfg.max_pixels,
        max_output_pixels=cfg.max_output_pixels,
        max_files=cfg.max_files,
        max_batch_bytes=cfg.max_files * cfg.max_file_mb * 2**20,
        about=about(model, restorer, runs_dir=cfg.runs_dir),
    )


if __name__ == "__main__":
    main()
