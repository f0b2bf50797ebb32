"""Actions of the page's buttons: component values in, page updates out.

Gradio inspects the signatures: it fills in parameters annotated gr.Request or gr.EventData; the
others are component values. Updates are dicts by name of the page's part.
"""

import logging
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]

from open_supir.base.files import printable
from open_supir.base.images import Photo
from open_supir.inference.batch import FILE_ERRORS
from open_supir.inference.options import RestoreOptions
from open_supir.inference.result import Restoration
from open_supir.webui.dials import DIALS, with_dials
from open_supir.webui.painting import Painting, canvas, write_mask
from open_supir.webui.studio import Cancelled, Progress, Saved, Studio, photo_size, stem_of
from open_supir.webui.uploads import Source, shown
from open_supir.webui.viewer import entry, pair, single
from open_supir.webui.words import duration, planned, size_of, time_left

log = logging.getLogger(__name__)

NO_IMAGE = "choose an image first"
Updates = dict[str, Any]


class Handlers:
    """The page's actions on a studio; each session can cancel only its own run."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.cancels: dict[str | None, threading.Event] = defaultdict(threading.Event)

    def take(self, image: str | None, source: Source | None) -> Updates:
        """Look at a new upload: its size, and a picture that browsers can show."""
        if source and image and source.is_shown_as(image):
            return {"source": source}
        nothing = {"source": None, "caption": "", "status": "", "painting": None}
        if not image:
            return nothing
        try:
            photo = self.studio.read(image, None)
            source = self._source(image, photo)
        except FILE_ERRORS as error:
            return nothing | {"status": said(error)}
        changes = {} if source.shown == image else {"image": source.shown}
        painting = canvas(photo, self._folder())
        return nothing | {"source": source, "painting": painting} | changes

    def plan(self, source: Source | None, preset: str, *values: Any) -> str:
        """Say what will come of the image with the dials as they are."""
        if source is None:
            return ""
        try:
            options = self.options(preset, values)
            self.studio.check(source.size, options)
        except FILE_ERRORS as error:
            return said(error)
        return planned(source.size, options)

    def restore_one(
        self, request: gr.Request, image: str | None, text: str, source: Source | None,
        past: list, painting: Painting | None, meaning: str, preset: str, *values: Any,
    ) -> Iterator[Updates]:  # fmt: skip
        """Restore one image, or what of it the painting says; yield updates."""
        cancel, start = self.cancels[request.session_hash], time.monotonic()
        failure: list[str] = []
        with failures(failure):
            if not image:
                raise ValueError(NO_IMAGE)
            source = source if source and source.is_shown_as(image) else None
            path = source.path if source else image
            options = self.options(preset, values)
            photo = self.studio.read(path, options)
            yield {"viewer": {}, "status": "reading and cleaning"}
            mask = write_mask(self._folder() / f"{stem_of(path)}.mask.png", painting, meaning)
            result = None
            for event in self.studio.run(photo, text or "", options, cancel, mask):
                if isinstance(event, Restoration):
                    result = event
                else:
                    yield progressed(event)
            assert result is not None  # the last event of a run
            saved = self.studio.save(photo, result, Path(path).name, mask)
            status = _done(saved, result, photo, time.monotonic() - start)
            shows = {
                "viewer": pair(saved.pictures, saved.shown_size, saved.chosen),
                "status": status,
                "download": [*saved.paths, *([str(mask)] if mask else [])],
                "record": saved.record,
                "caption": result.caption,
            }
            known = source or self._source(path, photo)
            label = _label(known.name, preset, options, result.caption)
            kept = {
                "source": known,
                "painting": painting,
                "meaning": meaning,
                "choices": [preset, *values],
                "entry": entry(saved.thumb, label),
            }
            past = [*past, shows | kept]
            yield {**shows, "past": past, "history": [old["entry"] for old in past]}
        if failure:
            yield {"viewer": {}, "status": failure[0]}
            refuse(failure[0])

    def again(self, past: list, event: gr.EventData) -> Updates:
        """Show an earlier result again, with its image, caption and settings."""
        old = past[event.index]  # type: ignore[attr-defined]
        parts = ("viewer", "status", "download", "record", "caption", "source", "painting",
                 "meaning", "choices")  # fmt: skip
        return {"image": old["source"].shown, **{part: old[part] for part in parts}}

    def describe(
        self, image: str | None, source: Source | None, preset: str, *values: Any
    ) -> Iterator[Updates]:
        """Ask the captioner for a description of an image."""
        failure: list[str] = []
        with failures(failure):
            if not image:
                raise ValueError(NO_IMAGE)
            path = source.path if source and source.is_shown_as(image) else image
            yield {"status": "describing"}
            photo = self.studio.read(path, self.options(preset, values))
            yield {"caption": self.studio.describe(photo), "status": ""}
        if failure:
            yield {"status": failure[0]}
            refuse(failure[0])

    def begin(self, request: gr.Request) -> Updates:
        """Clear an earlier cancellation of the session, and what was said last."""
        self.cancels[request.session_hash] = threading.Event()
        return {"status": "waiting for its turn", "go": gr.Button(interactive=False)}

    def end(self, status: str) -> Updates:
        """Make the button ready for the next run; a run that never began was refused."""
        refused = {"status": "error: too many requests are waiting, try again later"}
        ready = {"go": gr.Button(interactive=True)}
        return {**ready, **(refused if status == "waiting for its turn" else {})}

    def stop(self, request: gr.Request) -> None:
        """Cancel the session's run."""
        self.cancels[request.session_hash].set()

    def leave(self, request: gr.Request) -> None:
        """Cancel the session's run after its page was closed."""
        self.cancels.pop(request.session_hash, threading.Event()).set()

    def options(self, preset: str, values: Sequence[Any]) -> RestoreOptions:
        """Return the options that the page's dials make.

        Raises:
            ValueError: A dial is out of range.
        """
        return with_dials(self.studio.presets[preset], dict(zip(DIALS, values, strict=True)))

    def _source(self, path: str, photo: Photo) -> Source:
        return Source(path=path, shown=shown(path, photo, self._folder()), size=photo_size(photo))

    def _folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.studio.folder))


def progressed(event: Progress) -> Updates:
    """Return the updates for a run's progress."""
    left = f", {time_left(event.seconds_left)}" if event.seconds_left else ""
    status = f"sampling, step {event.done} of {event.total}{left}"
    if event.done == event.total:
        status = "finishing"
    if event.preview is None:
        return {"status": status}
    return {"status": status, "viewer": single("preview", event.preview)}


@contextmanager
def failures(found: list[str]) -> Iterator[None]:
    """Keep why a run failed, for the page; a bug also leaves its traceback in the server's log."""
    try:
        yield
    except Cancelled:
        found.append("cancelled")
    except FILE_ERRORS as error:
        found.append(said(error))
    except Exception as error:  # a bug of ours: the page must not stay at "waiting"
        log.exception("a bug")
        found.append(f"{said(error)}; the traceback is in the server's log")


def said(error: BaseException) -> str:
    """Return an error as one line for the page."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"error: {printable(' '.join(str(reason).split()))}"


def refuse(message: str) -> None:
    """Raise a failure for users of the API; the page has said it, and the server need not."""
    if message != "cancelled":
        raise gr.Error(message, visible=False, print_exception=False)


def _done(saved: Saved, result: Restoration, photo: Photo, seconds: float) -> str:
    notes = [*photo.notes, *(rung.name for rung in result.given_up)]
    return "; ".join([f"done, {size_of(*saved.size)}, {duration(seconds)}", *notes])


def _label(name: str, preset: str, options: RestoreOptions, caption: str) -> str:
    parts = [name, f"seed {options.seed}", f"{options.sampler.num_steps} steps", preset, caption]
    return ", ".join(part for part in parts if part)
