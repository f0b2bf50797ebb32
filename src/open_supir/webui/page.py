"""The page: its layout and wiring; `handlers` and `batches` hold the actions."""

from collections.abc import Callable
from functools import wraps
from html import escape
from inspect import isgeneratorfunction
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]

from open_supir.base.images import read_image
from open_supir.base.images.tensors import resize_short_side
from open_supir.base.images.write import SUFFIXES, write_image
from open_supir.data.demo import photo_folder
from open_supir.inference.options import RestoreOptions
from open_supir.webui import parts as unchecked
from open_supir.webui.batches import BatchHandlers
from open_supir.webui.dials import LABELS, RANGES, dial_values
from open_supir.webui.handlers import Handlers
from open_supir.webui.painting import BRUSH, PROTECT, RESTORE
from open_supir.webui.studio import Studio
from open_supir.webui.viewer import history, viewer

EXAMPLES = ("coffee.png", "chelsea.png", "rocket.jpg")
PRIVATE: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
SHARED: dict[str, Any] = {
    "concurrency_limit": 1, "concurrency_id": "networks", "show_progress": "hidden",
}  # fmt: skip
STYLE = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")
NEW_SEED = "() => Math.floor(Math.random() * 2 ** 31)"

Parts = dict[str, Any]  # Gradio's components, by name


def build_page(studio: Studio, examples: list[str]) -> gr.Blocks:
    """Return the page for a studio; `examples` are images to try."""
    with gr.Blocks(title="open-supir", analytics_enabled=False) as page:
        gr.HTML(_about(studio), apply_default_css=False, elem_id="about")
        with gr.Row():
            with gr.Column(scale=2, min_width=480), gr.Tabs():
                with gr.Tab("One image"):
                    one = _one_image(studio, examples)
                with gr.Tab("Batch", elem_id="batch"):
                    batch = _batch(studio)
            with gr.Column(scale=1, min_width=300):
                choices = _choices(studio)
        handlers = Handlers(studio)
        _wire_one_image(one, choices, handlers)
        _wire_batch(batch, choices, BatchHandlers(handlers))
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


def _about(studio: Studio) -> str:
    """Say which model is loaded and what can be done; phones show the latter when asked."""
    name, what = (escape(text) for text in studio.about)
    title = f"<h1>open-supir</h1> Model: <b>{name}</b>"
    text = f"<p>{what} {_limits(studio)}</p>"
    return (
        f"<div class='wide'>{title}{text}</div>"
        f"<details class='narrow'><summary>{title}</summary>{text}</details>"
    )


def _limits(studio: Studio) -> str:
    """Say what the page takes and gives."""
    made = (
        "Describe asks the captioner for a caption."
        if studio.can_describe
        else "There is no captioner: captions are those that you write."
    )
    return (
        f"Photographs of up to {studio.max_pixels / 1e6:g} megapixels are taken, results of up to "
        f"{studio.max_output_pixels / 1e6:g} are made. {made} Nothing leaves this machine."
    )


def _choices(studio: Studio) -> Parts:
    """Create the preset and the dials, by name, in the order of `dial_values`."""
    first = next(iter(studio.presets))
    parts: Parts = {
        "preset": gr.Dropdown(list(studio.presets), value=first, label="Preset"),
    }
    parts |= _dials(studio.presets[first])
    parts["preset"].input(
        lambda name: dial_values(studio.presets[name]),
        parts["preset"],
        list(parts.values())[1:],
        **PRIVATE,
    )
    return parts


def _dials(options: RestoreOptions) -> Parts:
    names = iter(LABELS)
    values = dict(zip(LABELS, dial_values(options), strict=True))
    parts: Parts = {}

    def slider() -> None:
        name = next(names)
        low, high, step = RANGES[name]
        parts[name] = unchecked.slider(low, high, value=values[name], step=step, label=LABELS[name])

    def other(kind: Callable[..., Any], **settings: Any) -> None:
        name = next(names)
        parts[name] = kind(value=values[name], label=LABELS[name], **settings)

    slider()
    slider()
    other(unchecked.number, precision=0)
    dice = gr.Button("New random seed", size="sm", elem_id="dice")
    dice.click(None, None, parts["seed"], js=NEW_SEED, **PRIVATE)
    slider()
    other(gr.Dropdown, choices=["wavelet", "adain", "none"])
    other(gr.Dropdown, choices=list(SUFFIXES))
    other(gr.Dropdown, choices=["as the input", "8", "16"])
    with gr.Accordion("Sampling", open=False):
        for _ in range(4):
            slider()
    with gr.Accordion("Prompts", open=False):
        other(gr.Textbox, lines=3)
        other(gr.Textbox, lines=3)
    return parts


def _one_image(studio: Studio, examples: list[str]) -> Parts:
    """Lay out the tab for one image."""
    can = studio.can_describe
    parts: Parts = {"source": gr.State(None), "past": gr.State([])}
    parts["image"] = unchecked.image(
        type="filepath", sources=["upload", "clipboard"], image_mode=None, format="png",
        label="Image", height=260, buttons=[], elem_id="upload",
    )  # fmt: skip
    parts["plan"] = gr.HTML(elem_id="plan")
    words = "Caption (empty: the captioner's)" if can else "Caption"
    parts["caption"] = gr.Textbox(label=words, elem_id="caption")
    with gr.Accordion("Region: paint to protect or restore a part", open=False, elem_id="region"):
        parts["meaning"] = gr.Radio(
            [RESTORE, PROTECT], value=RESTORE, label="What is painted", elem_id="meaning"
        )
        parts["painting"] = gr.ImageEditor(
            type="pil", sources=(), transforms=(), layers=False, buttons=[], show_label=False,
            brush=gr.Brush(colors=[BRUSH], color_mode="fixed"), elem_id="painting",
        )  # fmt: skip
    with gr.Row():
        parts["go"] = gr.Button("Restore", variant="primary", min_width=90, elem_id="restore")
        parts["ask"] = gr.Button("Describe", interactive=can, min_width=90, elem_id="describe")
        parts["cancel"] = gr.Button("Cancel", variant="stop", min_width=90, elem_id="cancel")
    parts["status"] = gr.Textbox(label="Status", interactive=False, elem_id="status")
    parts["viewer"] = viewer(elem_id="viewer")
    if examples:
        gr.Examples(examples, parts["image"], label="Examples", cache_examples=False)
    parts["download"] = gr.File(
        label="Download", interactive=False, file_count="multiple", elem_id="download"
    )
    with gr.Accordion("Settings of this result", open=False):
        parts["record"] = gr.JSON(label="Also inside the file")
    parts["history"] = history(
        label="History: a click brings a result back",
        show_label=True, container=True, elem_id="history",
    )  # fmt: skip
    return parts


def _batch(studio: Studio) -> Parts:
    """Lay out the tab for several images."""
    parts: Parts = {"batch": gr.State(None)}
    parts["files"] = unchecked.files(
        label=f"Up to {studio.max_files} images, or a ZIP of a folder",
        height=200, elem_id="files",
    )  # fmt: skip
    with gr.Row():
        parts["go"] = gr.Button(
            "Restore all", variant="primary", min_width=90, elem_id="restore_all"
        )
        parts["cancel"] = gr.Button("Cancel", variant="stop", min_width=90, elem_id="cancel_all")
    parts["status"] = gr.Textbox(label="Status", interactive=False, elem_id="batch_status")
    parts["packed"] = gr.File(
        label="Download: the same tree, with records", interactive=False, elem_id="packed"
    )
    parts["captions"] = gr.Dataframe(
        headers=["image", "caption"], type="array", datatype="str", column_count=2,
        static_columns=[0], label="Captions: click to write; photo.txt beside photo.jpg is read",
        interactive=True, wrap=True,
        buttons=[], elem_id="captions",
    )  # fmt: skip
    parts["report"] = gr.Dataframe(
        headers=["image", "result"], type="array", interactive=False, wrap=True, label="Results",
        buttons=[], elem_id="report",
    )  # fmt: skip
    return parts


def _named(function: Callable[..., Any], parts: Parts) -> Callable[..., Any]:
    """Return the function with its updates by component instead of by name."""

    def by_part(updates: dict[str, Any]) -> dict[Any, Any]:
        named = {}
        for name, value in updates.items():
            if name == "choices":
                named |= zip(parts[name], value, strict=True)
            else:
                named[parts[name]] = value
        return named

    if isgeneratorfunction(function):

        @wraps(function)
        def action(*values: Any) -> Any:
            for updates in function(*values):
                yield by_part(updates)
    else:

        @wraps(function)
        def action(*values: Any) -> Any:
            return by_part(function(*values))

    return action


def _wire_one_image(parts: Parts, choices: Parts, handlers: Handlers) -> None:
    """Connect the tab for one image; `choices` are the preset and the dials."""
    dials = list(choices.values())
    parts = parts | {"choices": dials}
    image, source, status = parts["image"], parts["source"], parts["status"]
    ready = [status, parts["go"]]
    looked = [source, image, parts["caption"], status, parts["painting"]]
    asking = [image, source, *dials]
    region = [parts["painting"], parts["meaning"]]
    result = ["viewer", "status", "download", "record", "caption"]
    take, restore, again = (
        _named(action, parts) for action in (handlers.take, handlers.restore_one, handlers.again)
    )
    describe, begin, end = (
        _named(action, parts) for action in (handlers.describe, handlers.begin, handlers.end)
    )
    plan = [handlers.plan, [source, *dials], parts["plan"]]

    image.change(take, [image, source], looked, **PRIVATE).then(*plan, **PRIVATE)
    sized = ("preset", "scale", "strength", "num_samples", "format", "bits")
    gr.on([choices[name].change for name in sized], *plan, **PRIVATE)
    run = (
        parts["go"]
        .click(begin, None, ready, **PRIVATE)
        .then(
            restore,
            [image, parts["caption"], source, parts["past"], *region, *dials],
            [parts[name] for name in (*result, "past", "history")],
            api_name="restore",
            **SHARED,
        )
    )
    for ended in (run.success, run.failure):  # after an error, Gradio does not come to `then`
        ended(end, status, ready, **PRIVATE)
    parts["ask"].click(describe, asking, [parts["caption"], status], api_name="describe", **SHARED)
    parts["cancel"].click(handlers.stop, **PRIVATE)
    shown = [image, source, *(parts[name] for name in result), *region, *dials]
    parts["history"].select(again, parts["past"], shown, **PRIVATE)


def _wire_batch(parts: Parts, choices: Parts, handlers: BatchHandlers) -> None:
    """Connect the tab for several images; `choices` are the preset and the dials."""
    status = parts["status"]
    ready = [status, parts["go"]]
    take, restore = (_named(act, parts) for act in (handlers.take, handlers.restore_many))
    begin, end = (_named(act, parts) for act in (handlers.handlers.begin, handlers.handlers.end))
    listed = [parts["batch"], parts["captions"], status]
    parts["files"].change(take, parts["files"], listed, **PRIVATE)
    run = (
        parts["go"]
        .click(begin, None, ready, **PRIVATE)
        .then(
            restore,
            [parts["files"], parts["batch"], *choices.values(), parts["captions"]],
            [parts["packed"], parts["report"], status],
            api_name="batch",
            **SHARED,
        )
    )
    for ended in (run.success, run.failure):
        ended(end, status, ready, **PRIVATE)
    parts["cancel"].click(handlers.handlers.stop, **PRIVATE)
