"""Gradio's components without its own checks of what comes in: errors are ours to say, in Status.

Gradio's metaclass would write type stubs beside subclasses, so these are made without it.
"""

from collections.abc import Callable
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]


def image(**options: Any) -> gr.Image:
    """Create an image of any kind: the path of its file, whether that can be read or not."""
    return _unchecked(gr.Image(**options), lambda upload: upload and upload.path)


def files(**options: Any) -> gr.File:
    """Create a list of files of any kind: their paths."""
    component = gr.File(file_count="multiple", **options)
    return _unchecked(component, lambda uploads: uploads and [upload.path for upload in uploads])


def number(**options: Any) -> gr.Number:
    """Create a number, whole or not, possible or not."""
    return _unchecked(gr.Number(**options), lambda value: value)


def slider(low: float, high: float, **options: Any) -> gr.Slider:
    """Create a slider beside a number, which may be outside its range."""
    return _unchecked(gr.Slider(low, high, **options), lambda value: value)


def _unchecked(component: Any, preprocess: Callable[[Any], Any]) -> Any:
    kind = type(component)  # not only the instance: sessions build their own from its class
    changes = {"preprocess": lambda self, value: preprocess(value), "__module__": kind.__module__}
    component.__class__ = type.__new__(type(kind), kind.__name__, (kind,), changes)
    return component
