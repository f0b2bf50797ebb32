"""A page to restore photographs: python -m src.webui (extra `web`).

Everything stays on this machine: the page answers the loopback address only, asks no other host,
and takes no paths on the server; what is uploaded and made lies in a temporary folder that ends
with the process.
"""

import json
import logging
import os
import tempfile
import threading
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig

from open_supir.base.cli import command
from open_supir.base.images import read_image
from open_supir.base.images.read import quieten_readers
from open_supir.base.images.tensors import resize_short_side
from open_supir.base.images.write import SUFFIXES, write_image
from open_supir.commands.evaluate import find_checkpoint
from open_supir.commands.restore import build_restorer, model_of, options_of
from open_supir.data.demo import photo_folder
from open_supir.inference import RestoreOptions
from open_supir.inference.folder import printable
from open_supir.webui.studio import (
    FILE_ERRORS,
    OPTION_DIALS,
    PROMPT_DIALS,
    SETTING_DIALS,
    Cancelled,
    Studio,
    dial_values,
    with_dials,
)

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

log = logging.getLogger(__name__)

EXAMPLES = ("coffee.png", "chelsea.png", "rocket.jpg")
PRESETS = ("paper", "released", "quality", "fidelity", "fast")
HISTORY = ["image", "preset", "seed", "steps", "guidance", "strength", "caption"]
OWN = "as the checkpoint says"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PASSWORD = "OPEN_SUPIR_PASSWORD"


def build_page(studio: Studio, examples: list[str]) -> Any:
    """Return the Gradio page over a studio."""
    import gradio as gr  # pyright: ignore[reportMissingImports]

    names = (*OPTION_DIALS, *SETTING_DIALS, *PROMPT_DIALS)
    cancels: dict[str | None, threading.Event] = defaultdict(threading.Event)  # by session

    def chosen(preset: str, values: tuple) -> RestoreOptions:
        return with_dials(studio.presets[preset], dict(zip(names, values, strict=True)))

    def guarded(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except FILE_ERRORS as error:
            raise gr.Error(printable(str(error) or type(error).__name__)) from error

    def restore_one(request: gr.Request, image, text, past, preset_name, *values):  # noqa: ANN001, ANN202
        if not image:
            raise gr.Error("choose an image first")
        try:
            options = chosen(preset_name, values)
            photo = studio.read(image, options)
            yield {preview: None, slider: None, status: "waiting, reading, cleaning"}
            result = None
            cancel = cancels[request.session_hash]
            for share, early, final in studio.run(photo, text or "", options, cancel):
                result = final
                if early is not None:
                    picture = early.permute(1, 2, 0).mul(255).round().byte().numpy()
                    yield {preview: picture, status: f"sampling, {100 * share:.0f} %"}
        except Cancelled:
            yield {preview: None, status: "cancelled"}
            return
        except FILE_ERRORS as error:
            raise gr.Error(printable(str(error) or type(error).__name__)) from error
        assert result is not None  # the last event of a run
        paths, before, made_by = studio.save(photo, result, Path(image).name)
        seconds = sum(result.seconds.values())
        told = [f"{seconds:.1f} s", *photo.notes, *(rung.name for rung in result.given_up)]
        past = [*past, [Path(image).name, preset_name, options.seed, options.settings.num_steps,
                        options.settings.cfg_scale, options.strength, result.caption]]  # fmt: skip
        yield {
            preview: None,
            slider: (before, studio.shown(result.restored)),
            status: "; ".join(told),
            download: paths,
            record: made_by,
            history_state: past,
            history: past,
            caption: result.caption,
        }

    def describe_one(image, preset, *values):  # noqa: ANN001, ANN202
        if not image:
            raise gr.Error("choose an image first")
        return guarded(lambda: studio.describe(studio.read(image, chosen(preset, values))))

    def restore_many(request: gr.Request, files, preset, *values, progress=gr.Progress()):  # noqa: ANN001, ANN202, B008
        files = files or []
        if not 0 < len(files) <= studio.max_files:
            raise gr.Error(f"choose 1 to {studio.max_files} images")
        options = guarded(lambda: chosen(preset, values))
        packed = Path(tempfile.mkdtemp(dir=studio.folder)) / "restored.zip"
        rows, cancel = [], cancels[request.session_hash]
        with zipfile.ZipFile(packed, "w") as archive:
            for number, file in enumerate(progress.tqdm(files, desc="restoring")):
                name = Path(file).name
                try:
                    photo = studio.read(file, options)
                    *_, (_, _, result) = studio.run(photo, "", options, cancel)
                    paths, _, record = studio.save(photo, result, name)
                except Cancelled:
                    rows += [[Path(left).name, "cancelled"] for left in files[number:]]
                    break
                except FILE_ERRORS as error:
                    rows.append([name, printable(error)])
                    continue
                for path in paths:
                    archive.write(path, f"{number + 1:03d}_{Path(path).name}")
                archive.writestr(f"{number + 1:03d}_{Path(paths[0]).name}.json", json.dumps(record))
                rows.append([name, "restored"])
        return str(packed), rows

    def begin(request: gr.Request) -> None:
        cancels[request.session_hash] = threading.Event()

    def stop(request: gr.Request) -> None:
        cancels[request.session_hash].set()

    def leave(request: gr.Request) -> None:
        cancels.pop(request.session_hash, threading.Event()).set()

    words = "Caption (empty: the captioner's)" if studio.can_describe else "Caption"
    with gr.Blocks(title="open-supir", analytics_enabled=False) as page:
        gr.Markdown("# open-supir\nRestores photographs on this machine.")
        with gr.Row():
            with gr.Column(scale=1):
                preset = gr.Dropdown(list(studio.presets), value=OWN, label="Preset")
                dials = _dials(gr, studio.presets[OWN])
            with gr.Column(scale=2), gr.Tabs():
                with gr.Tab("One image"):
                    with gr.Row():
                        image = gr.Image(type="filepath", sources=["upload", "clipboard"],
                                         image_mode=None, format="png", label="Image",
                                         height=260, buttons=[], elem_id="upload")  # fmt: skip
                        preview = gr.Image(label="Preview", interactive=False, format="png",
                                           height=260, buttons=[])  # fmt: skip
                    if examples:
                        gr.Examples(examples, image, label="Examples", cache_examples=False)
                    caption = gr.Textbox(label=words, elem_id="caption")
                    with gr.Row():
                        go = gr.Button("Restore", variant="primary", elem_id="restore")
                        ask = gr.Button("Describe", interactive=studio.can_describe,
                                        elem_id="describe")  # fmt: skip
                        cancel = gr.Button("Cancel", variant="stop", elem_id="cancel")
                    status = gr.Textbox(label="Status", interactive=False, elem_id="status")
                    slider = gr.ImageSlider(label="Before / after", format="png", height=420,
                                            interactive=False, elem_id="slider")  # fmt: skip
                    download = gr.File(label="Download", interactive=False, file_count="multiple",
                                       elem_id="download")  # fmt: skip
                    with gr.Accordion("Settings of this result", open=False):
                        record = gr.JSON(label="Also inside the file")
                    history_state = gr.State([])
                    history = gr.Dataframe(label="History of this session", interactive=False,
                                           headers=HISTORY, elem_id="history")  # fmt: skip
                with gr.Tab("Batch", elem_id="batch"):
                    files = gr.File(label="Images", file_count="multiple", file_types=["image"],
                                    elem_id="files")  # fmt: skip
                    with gr.Row():
                        go_many = gr.Button("Restore all", variant="primary", elem_id="restore_all")
                        cancel_many = gr.Button("Cancel", variant="stop", elem_id="cancel_all")
                    packed = gr.File(label="Download", interactive=False, elem_id="packed")
                    report = gr.Dataframe(headers=["image", "result"], interactive=False,
                                          elem_id="report")  # fmt: skip
        private: dict[str, Any] = {"queue": False, "api_visibility": "private"}
        image.change(lambda: "", None, caption, **private)  # it was another image's
        preset.change(lambda name: dial_values(studio.presets[name]), preset, dials, **private)
        shared: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "networks"}
        go.click(begin, **private).then(
            restore_one,
            [image, caption, history_state, preset, *dials],
            [preview, slider, status, download, record, history_state, history, caption],
            api_name="restore",
            **shared,
        )
        ask.click(describe_one, [image, preset, *dials], caption, api_name="describe", **shared)
        go_many.click(begin, **private).then(
            restore_many, [files, preset, *dials], [packed, report], api_name="batch", **shared
        )
        for button in (cancel, cancel_many):
            button.click(stop, **private)
        page.unload(leave)
    return page


def _dials(gr: Any, options: RestoreOptions) -> list[Any]:
    """Return the page's dials, in the order of `dial_values`."""
    values = iter(dial_values(options))
    dials = [
        gr.Slider(1, 8, next(values), step=0.25, label="Enlarge"),
        gr.Slider(0, 1, next(values), step=0.01, label="Strength"),
        gr.Number(next(values), precision=0, minimum=0, label="Seed"),
        gr.Slider(1, 8, next(values), step=1, label="Samples"),
        gr.Dropdown(["wavelet", "adain", "none"], value=next(values), label="Colour fix"),
        gr.Dropdown(list(SUFFIXES), value=next(values), label="File format"),
        gr.Dropdown(["as the input", "8", "16"], value=next(values), label="Bits a channel"),
    ]
    with gr.Accordion("Sampling", open=False):
        dials += [
            gr.Slider(1, 200, next(values), step=1, label="Steps"),
            gr.Slider(0, 15, next(values), step=0.1, label="Guidance"),
            gr.Slider(0, 1.5, next(values), step=0.01, label="Control"),
            gr.Slider(0, 10, next(values), step=0.1, label="Restoration guidance tau (0: off)"),
        ]
    with gr.Accordion("Prompts", open=False):
        dials += [
            gr.Textbox(next(values), lines=3, label="Quality words"),
            gr.Textbox(next(values), lines=3, label="Not wanted"),
        ]
    return dials


def build_studio(cfg: DictConfig, folder: Path) -> Studio:
    """Load the networks and the presets."""
    checkpoint = find_checkpoint(cfg)
    presets = {OWN: options_of(cfg, checkpoint)}
    for name in PRESETS:
        preset = compose("restore", overrides=[f"preset={name}", "input=x", "output=x"])
        presets[name] = options_of(preset, checkpoint)
    restorer = build_restorer(cfg, checkpoint, presets[OWN])
    return Studio(
        restorer,
        presets,
        model_of(cfg, checkpoint),
        folder,
        max_pixels=cfg.max_pixels,
        max_output_pixels=cfg.max_output_pixels,
        max_files=cfg.max_files,
    )


def write_examples(folder: Path) -> list[str]:
    """Write small JPEGs of photographs that scikit-image ships, as something to try."""
    paths = []
    for name in EXAMPLES:
        photo = resize_short_side(read_image(photo_folder() / name), 160)
        paths.append(folder / f"{Path(name).stem}.jpg")
        write_image(paths[-1], photo, quality=30)
    return [str(path) for path in paths]


def launch(cfg: DictConfig, folder: Path, **options: Any) -> Any:
    """Start the page; returns it. Options go to Gradio's launch.

    Raises:
        ImportError: Gradio is not installed.
        ValueError: The host is not this machine's loopback, and there is no password.
    """
    try:
        import gradio  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("the page needs gradio: pip install -e '.[web]'") from error
    password = os.environ.get(PASSWORD)
    if cfg.host not in LOOPBACK and not password:
        raise ValueError(f"host={cfg.host} can be reached by others: set {PASSWORD} first")
    quieten_readers()
    studio = build_studio(cfg, folder)
    page = build_page(studio, write_examples(folder))
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


@command("webui")
def main(cfg: DictConfig) -> None:
    """Run the command line until interrupted."""
    with tempfile.TemporaryDirectory(prefix="open-supir-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        launch(cfg, Path(folder))


if __name__ == "__main__":
    main()
