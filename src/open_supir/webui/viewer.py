"""What the page shows of results, in HTML of our own: the viewer, and the history.

The viewer has two pictures with a movable border between them, and all of them side by side.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
from torch import Tensor

from open_supir.base.images import Photo
from open_supir.base.images.write import encode_photo

HISTORY = """
{{#each value}}
<button type="button" data-index="{{@index}}">
  <img src="{{url}}" alt=""><span>{{label}}</span>
</button>
{{/each}}
"""
PICK = """
element.addEventListener("click", (event) => {
  const picked = event.target.closest("[data-index]");
  if (picked) trigger("select", {index: Number(picked.dataset.index)});
});
"""

Pictures = Sequence[tuple[str, str]]  # name and path; all of the same aspect, the input first


def viewer(**options: Any) -> gr.HTML:
    """Create the component; its values are made by `pair`, `single`, or None for nothing.

    Both pictures fill the same box, so that their halves meet whatever its size.
    """
    template, style, script = (
        Path(__file__).with_name(f"viewer.{kind}").read_text(encoding="utf-8")
        for kind in ("html", "css", "js")
    )
    return gr.HTML(
        {},
        html_template=template,
        css_template=style,
        js_on_load=script,
        apply_default_css=False,
        **options,
    )


def history(**options: Any) -> gr.HTML:
    """Create the history: a list of `entry`s, of which one can be selected."""
    return gr.HTML([], html_template=HISTORY, js_on_load=PICK, apply_default_css=False, **options)


def entry(thumb: str, label: str) -> dict[str, str]:
    """Return an entry of the history; `thumb` is a file below the folder that Gradio serves."""
    return {"url": _url(thumb), "label": label}


def pair(pictures: Pictures, size: tuple[int, int], chosen: str) -> dict[str, Any]:
    """Return the value that compares the first picture with the chosen one.

    Args:
        pictures: Files below the folder that Gradio serves.
        size: (H, W) of the pictures.
        chosen: Name of the picture on the right.
    """
    shown = [{"name": name, "url": _url(path), "chosen": name == chosen} for name, path in pictures]
    right = next(picture for picture in shown if picture["chosen"])
    return {
        "pictures": shown, "left": shown[0], "right": right, "height": size[0], "width": size[1],
    }  # fmt: skip


def single(name: str, picture: Tensor) -> dict[str, Any]:
    """Return the value that shows one (3, H, W) picture in [0, 1], inside the page itself."""
    data = base64.b64encode(encode_photo(Photo(rgb=picture), format="jpg", quality=85)).decode()
    shown = {"name": name, "url": f"data:image/jpeg;base64,{data}"}
    height, width = picture.shape[-2:]
    return {"pictures": [shown], "left": None, "right": shown, "height": height, "width": width}


def _url(path: str) -> str:
    return f"gradio_api/file={path}"
