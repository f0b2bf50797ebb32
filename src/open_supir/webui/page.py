"""The page: its layout and wiring; `handlers` holds the actions."""

from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]

from open_supir.base.images import read_image
from open_supir.base.images.tensors import resize_short_side
from open_supir.base.images.write import SUFFIXES, write_image
from open_supir.data.demo import photo_folder
from open_supir.inference.options import RestoreOptions
from open_supir.webui.handlers import Handlers
from open_supir.webui.studio import Studio, dial_values

EXAMPLES = ("coffee.png", "chelsea.png", "rocket.jpg")
HISTORY = ["image", "preset", "seed", "steps", "guidance", "strength", "caption"]
PRIVATE: dict[str, Any] = {"queue": False, "api_visibility": "private"}
SHARED: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "networks"}

Parts = dict[str, Any]  # Gradio's components, by name


def build_page(studio: Studio, examples: list[str]) -> gr.Blocks:
    """Return the page for a studio; `examples` are images to try."""
    with gr.Blocks(title="open-supir", analytics_enabled=False) as page:
        gr.Markdown("# open-supir\nRestores photographs on this machine.")
        with gr.Row():
            with gr.Column(scale=1):
                first = next(iter(studio.presets))
                preset = gr.Dropdown(list(studio.presets), value=first, label="Preset")
                dials = _dials(studio.presets[first])
            with gr.Column(scale=2), gr.Tabs():
                with gr.Tab("One image"):
                    one = _one_image(studio, examples)
                with gr.Tab("Batch", elem_id="batch"):
                    batch = _batch()
        handlers = Handlers(studio)
        preset.change(lambda name: dial_values(studio.presets[name]), preset, dials, **PRIVATE)
        _wire_one_image(one, [preset, *dials], handlers)
        _wire_batch(batch, [preset, *dials], handlers)
        page.unload(handlers.leave)
    return page


def write_examples(folder: Path) -> list[str]:
    """Write small JPEGs of scikit-image's photographs as examples; return their paths."""
    paths = []
    for name in EXAMPLES:
        photo = resize_short_side(read_image(photo_folder() / name), 160)
        paths.append(folder / f"{Path(name).stem}.jpg")
        write_image(paths[-1], photo, quality=30)
    return [str(path) for path in paths]


def _dials(options: RestoreOptions) -> list[Any]:
    """Create the page's dials, in the order of `dial_values`."""
    values = iter(dial_values(options))
    dials = [
        gr.Slider(1, 8, next(values), step=0.25, label="Enlarge"),
        gr.Slider(0, 1, next(values), step=0.01, label="Strength"),
        gr.Number(next(values), precision=0, minimum=0, label="Seed"),
        gr.Slider(1, 8, next(values), step=1, label="Samples"),
        gr.Dropdown(["wavelet", "adain", "none"], value=next(values), label="Colour fix"),
        gr.Dropdown(list(SUFFIXES), value=next(values), label="File format"),
        gr.Dropdown(["as the input", "8", "16"], value=next(values), label="Bits per channel"),
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


def _one_image(studio: Studio, examples: list[str]) -> Parts:
    """Lay out the tab for one image."""
    words = "Caption (empty: the captioner's)" if studio.can_describe else "Caption"
    parts: Parts = {}
    with gr.Row():
        parts["image"] = gr.Image(
            type="filepath", sources=["upload", "clipboard"], image_mode=None, format="png",
            label="Image", height=260, buttons=[], elem_id="upload",
        )  # fmt: skip
        parts["preview"] = gr.Image(
            label="Preview", interactive=False, format="png", height=260, buttons=[]
        )
    if examples:
        gr.Examples(examples, parts["image"], label="Examples", cache_examples=False)
    parts["caption"] = gr.Textbox(label=words, elem_id="caption")
    with gr.Row():
        parts["go"] = gr.Button("Restore", variant="primary", elem_id="restore")
        can = studio.can_describe
        parts["ask"] = gr.Button("Describe", interactive=can, elem_id="describe")
        parts["cancel"] = gr.Button("Cancel", variant="stop", elem_id="cancel")
    parts["status"] = gr.Textbox(label="Status", interactive=False, elem_id="status")
    parts["slider"] = gr.ImageSlider(
        label="Before / after", format="png", height=420, interactive=False, elem_id="slider"
    )
    parts["download"] = gr.File(
        label="Download", interactive=False, file_count="multiple", elem_id="download"
    )
    with gr.Accordion("Settings of this result", open=False):
        parts["record"] = gr.JSON(label="Also inside the file")
    parts["past"] = gr.State([])
    parts["history"] = gr.Dataframe(
        label="History of this session", interactive=False, headers=HISTORY, elem_id="history"
    )
    return parts


def _batch() -> Parts:
    """Lay out the tab for several images."""
    parts: Parts = {
        "files": gr.File(
            label="Images", file_count="multiple", file_types=["image"], elem_id="files"
        )
    }
    with gr.Row():
        parts["go"] = gr.Button("Restore all", variant="primary", elem_id="restore_all")
        parts["cancel"] = gr.Button("Cancel", variant="stop", elem_id="cancel_all")
    parts["packed"] = gr.File(label="Download", interactive=False, elem_id="packed")
    parts["report"] = gr.Dataframe(headers=["image", "result"], interactive=False, elem_id="report")
    return parts


def _wire_one_image(parts: Parts, choices: list[Any], handlers: Handlers) -> None:
    """Connect the tab for one image; `choices` are the preset and the dials."""

    def restore(request: gr.Request, *values: Any) -> Any:
        for update in handlers.restore_one(request, *values):
            yield {parts[name]: value for name, value in update.items()}

    image = parts["image"]
    image.change(lambda: "", None, parts["caption"], **PRIVATE)  # it described another image
    shown = ("preview", "slider", "status", "download", "record", "past", "history", "caption")
    parts["go"].click(handlers.begin, **PRIVATE).then(
        restore,
        [image, parts["caption"], parts["past"], *choices],
        [parts[name] for name in shown],
        api_name="restore",
        **SHARED,
    )
    parts["ask"].click(
        handlers.describe, [image, *choices], parts["caption"], api_name="describe", **SHARED
    )
    parts["cancel"].click(handlers.stop, **PRIVATE)


def _wire_batch(parts: Parts, choices: list[Any], handlers: Handlers) -> None:
    """Connect the tab for several images; `choices` are the preset and the dials."""
    parts["go"].click(handlers.begin, **PRIVATE).then(
        handlers.restore_many,
        [parts["files"], *choices],
        [parts["packed"], parts["report"]],
        api_name="batch",
        **SHARED,
    )
    parts["cancel"].click(handlers.stop, **PRIVATE)
