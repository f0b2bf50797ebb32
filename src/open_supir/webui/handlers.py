"""Actions of the page's buttons: component values in, page updates out.

Gradio inspects the signatures: it fills in parameters annotated gr.Request and defaults of
gr.Progress; the others are component values.
"""

import json
import tempfile
import threading
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]

from open_supir.inference.batch import FILE_ERRORS
from open_supir.inference.folder import printable
from open_supir.inference.options import RestoreOptions
from open_supir.webui.studio import (
    OPTION_DIALS,
    PROMPT_DIALS,
    SETTING_DIALS,
    Cancelled,
    Studio,
    with_dials,
)

DIALS = (*OPTION_DIALS, *SETTING_DIALS, *PROMPT_DIALS)


class Handlers:
    """The page's actions on a studio; each session can cancel only its own run."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.cancels: dict[str | None, threading.Event] = defaultdict(threading.Event)

    def restore_one(
        self,
        request: gr.Request,
        image: str | None,
        text: str,
        past: list,
        preset: str,
        *values: Any,
    ) -> Iterator[dict[str, Any]]:
        """Restore one image; yield updates by name of the page's part."""
        if not image:
            raise gr.Error("choose an image first")
        cancel = self.cancels[request.session_hash]
        try:
            with errors_shown():
                options = self._options(preset, values)
                photo = self.studio.read(image, options)
                yield {"preview": None, "slider": None, "status": "waiting, reading, cleaning"}
                result = None
                for share, early, final in self.studio.run(photo, text or "", options, cancel):
                    result = final
                    if early is not None:
                        picture = early.permute(1, 2, 0).mul(255).round().byte().numpy()
                        yield {"preview": picture, "status": f"sampling, {100 * share:.0f} %"}
        except Cancelled:
            yield {"preview": None, "status": "cancelled"}
            return
        assert result is not None  # the last event of a run
        name = Path(image).name
        paths, before, record = self.studio.save(photo, result, name)
        seconds = sum(result.seconds.values())
        notes = [f"{seconds:.1f} s", *photo.notes, *(rung.name for rung in result.given_up)]
        sampler = options.sampler
        row = [name, preset, options.seed, sampler.num_steps, sampler.cfg_scale]
        past = [*past, [*row, options.strength, result.caption]]
        yield {
            "preview": None,
            "slider": (before, self.studio.shown(result.restored)),
            "status": "; ".join(notes),
            "download": paths,
            "record": record,
            "past": past,
            "history": past,
            "caption": result.caption,
        }

    def describe(self, image: str | None, preset: str, *values: Any) -> str:
        """Return the captioner's description of an image."""
        if not image:
            raise gr.Error("choose an image first")
        with errors_shown():
            return self.studio.describe(self.studio.read(image, self._options(preset, values)))

    def restore_many(
        self,
        request: gr.Request,
        files: Sequence[str] | None,
        preset: str,
        *values: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio's way to request a bar
    ) -> tuple[str, list[list[str]]]:
        """Restore several images; return an archive of them, and each file's outcome."""
        files = files or []
        if not 0 < len(files) <= self.studio.max_files:
            raise gr.Error(f"choose 1 to {self.studio.max_files} images")
        with errors_shown():
            options = self._options(preset, values)
        packed = Path(tempfile.mkdtemp(dir=self.studio.folder)) / "restored.zip"
        cancel = self.cancels[request.session_hash]
        rows: list[list[str]] = []
        with zipfile.ZipFile(packed, "w") as archive:
            for number, file in enumerate(progress.tqdm(files, desc="restoring"), start=1):
                try:
                    self._pack(archive, f"{number:03d}_", file, options, cancel)
                except Cancelled:
                    rows += [[Path(left).name, "cancelled"] for left in files[number - 1 :]]
                    break
                except FILE_ERRORS as error:
                    rows.append([Path(file).name, printable(error)])
                else:
                    rows.append([Path(file).name, "restored"])
        return str(packed), rows

    def begin(self, request: gr.Request) -> None:
        """Clear an earlier cancellation of the session."""
        self.cancels[request.session_hash] = threading.Event()

    def stop(self, request: gr.Request) -> None:
        """Cancel the session's run."""
        self.cancels[request.session_hash].set()

    def leave(self, request: gr.Request) -> None:
        """Cancel the session's run after its page was closed."""
        self.cancels.pop(request.session_hash, threading.Event()).set()

    def _options(self, preset: str, values: Sequence[Any]) -> RestoreOptions:
        return with_dials(self.studio.presets[preset], dict(zip(DIALS, values, strict=True)))

    def _pack(
        self,
        archive: zipfile.ZipFile,
        prefix: str,
        file: str,
        options: RestoreOptions,
        cancel: threading.Event,
    ) -> None:
        """Restore a file into the archive, with its record."""
        photo = self.studio.read(file, options)
        *_, (_, _, result) = self.studio.run(photo, "", options, cancel)
        paths, _, record = self.studio.save(photo, result, Path(file).name)
        for path in paths:
            archive.write(path, prefix + Path(path).name)
        archive.writestr(f"{prefix}{Path(paths[0]).name}.json", json.dumps(record))


@contextmanager
def errors_shown() -> Iterator[None]:
    """Show errors from bad files or options as messages on the page."""
    try:
        yield
    except Cancelled:
        raise
    except FILE_ERRORS as error:
        raise gr.Error(printable(str(error) or type(error).__name__)) from error
