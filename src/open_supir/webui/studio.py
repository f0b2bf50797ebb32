"""The page's logic without Gradio: restore with previews and cancellation, save for download."""

import dataclasses
import queue
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from open_supir.base.files import sha256_of
from open_supir.base.images import Photo, read_photo, resize
from open_supir.base.images.tensors import size_within
from open_supir.base.images.write import SUFFIXES, encode_photo, left_out
from open_supir.diffusion.samplers import Step
from open_supir.inference.captioner import NoCaptioner
from open_supir.inference.disagreement import encode_map, overlay
from open_supir.inference.options import RestoreOptions
from open_supir.inference.pixels import CAPTION_SIDE, resized
from open_supir.inference.records import check_result, describe, encode_result
from open_supir.inference.region import read_mask
from open_supir.inference.restorer import Restorer
from open_supir.inference.result import Restoration

RUN = "restoring"  # the name of a run's thread
PREVIEWS = 8  # per image
SHOWN_SIDE, THUMB_SIDE = 4096, 240  # pixels


class Cancelled(RuntimeError):
    """The user pressed cancel."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    done: int  # steps, over all samples
    total: int
    seconds_left: float | None  # None after the first step
    preview: Tensor | None = None  # (3, H, W) in [0, 1]: the estimate now


@dataclasses.dataclass(frozen=True)
class Saved:
    """The files of a result, all below the studio's folder."""

    paths: list[str]  # the samples, for download, and the map of what they invented
    pictures: list[tuple[str, str]]  # names and paths of PNGs to look at, the input first
    chosen: str  # name of the first sample among them
    thumb: str  # a small picture of it
    shown_size: tuple[int, int]  # (H, W) of the pictures
    size: tuple[int, int]  # (H, W) of the samples
    record: dict[str, Any]  # as embedded in the samples


class Clock:
    """Counts a run's steps, and tells how long the others will take."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.start = self.now = 0.0

    def tick(self) -> bool:
        """Count a step; return whether a preview is due."""
        self.now = time.monotonic()
        self.start = self.start or self.now  # the first step's own time is not known
        self.done += 1
        return self.done % max(1, self.total // PREVIEWS) == 0

    def progress(self, preview: Tensor | None) -> Progress:
        """Return how far the run is."""
        each = (self.now - self.start) / (self.done - 1) if self.done > 1 else None
        left = None if each is None else each * (self.total - self.done)
        return Progress(done=self.done, total=self.total, seconds_left=left, preview=preview)


@dataclasses.dataclass
class Studio:
    """What the page works with: one restorer, the presets, and the limits of a request.

    The restorer handles one request at a time; others wait.
    """

    restorer: Restorer
    presets: dict[str, RestoreOptions]
    model: dict[str, str | None]
    folder: Path
    max_pixels: int
    max_output_pixels: int
    max_files: int
    max_batch_bytes: int
    about: tuple[str, str]  # which model is loaded, and what it can do
    busy: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def read(self, path: str, options: RestoreOptions | None) -> Photo:
        """Read an upload.

        Args:
            options: For which the result's size is checked; None does not check it.

        Raises:
            ValueError: It is not an image, or it or its result is too large.
        """
        intent = options.intent if options else RestoreOptions().intent
        photo = read_photo(Path(path), max_pixels=self.max_pixels, intent=intent)
        if options is not None:
            self.check(photo_size(photo), options)
        return photo

    def check(self, size: tuple[int, int], options: RestoreOptions) -> None:
        """Refuse the result of an image of this (H, W) if it would be too large.

        Raises:
            ValueError: It would be.
        """
        check_result(size, options, self.max_output_pixels)

    @property
    def can_describe(self) -> bool:
        """Whether there is a captioner."""
        return not isinstance(self.restorer.captioner, NoCaptioner)

    def describe(self, photo: Photo) -> str:
        """Return the captioner's description of a photograph, cleaned and at most CAPTION_SIDE."""
        scale = min(1.0, CAPTION_SIDE / max(photo.rgb.shape[-2:]))
        height, width = (max(1, round(side * scale)) for side in photo.rgb.shape[-2:])
        with self.busy:
            cleaned = self.restorer.clean(resized(photo.visible[None], (height, width)))[0]
            return self.restorer.captioner(cleaned)

    def run(
        self,
        photo: Photo,
        caption: str,
        options: RestoreOptions,
        cancel: threading.Event,
        mask: Path | None = None,
    ) -> Iterator[Progress | Restoration]:
        """Restore in a thread; yield its progress, then the result.

        Closing the iterator early, as when the user leaves, also cancels.

        Args:
            mask: File that says where to restore; see `read_mask`.

        Raises:
            Cancelled: `cancel` was set.
        """
        events: queue.Queue = queue.Queue()
        left = threading.Event()
        clock = Clock(options.sampler.num_steps * options.num_samples)

        def on_step(step: Step, x: Tensor, denoised: Tensor) -> None:
            if cancel.is_set() or left.is_set():
                raise Cancelled("cancelled")
            is_due = clock.tick()
            events.put(clock.progress(self.restorer.preview(denoised[:1]) if is_due else None))

        def work() -> None:
            try:
                if cancel.is_set():  # before its turn came
                    raise Cancelled("cancelled")
                region = None if mask is None else read_mask(mask, photo_size(photo))
                result = self.restorer(
                    photo.visible, caption=caption.strip() or None, mask=region,
                    options=options, on_step=on_step,
                )  # fmt: skip
                events.put(result)
            except Exception as error:  # any error: re-raised below, else the page waits forever
                events.put(error)

        with self.busy:
            thread = threading.Thread(target=work, name=RUN, daemon=True)
            thread.start()
            try:
                while True:
                    event = events.get()
                    if isinstance(event, Exception):
                        raise event
                    yield event
                    if isinstance(event, Restoration):
                        return
            finally:
                left.set()
                thread.join()

    def describe_result(
        self, photo: Photo, result: Restoration, name: str, mask: Path | None = None
    ) -> dict[str, Any]:
        """Return the record that is embedded in a result's files."""
        return describe(result, self.model) | {
            "input": {"name": name},
            "mask": mask and sha256_of(mask),
            "notes": [*photo.notes, *left_out(photo, result.options.format)],
        }

    def save(self, photo: Photo, result: Restoration, name: str, mask: Path | None = None) -> Saved:
        """Write the samples for download, and the pictures that the page shows.

        The page's pictures are 8-bit PNGs of at most SHOWN_SIDE pixels a side.
        """
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        record = self.describe_result(photo, result, name, mask)
        suffix, paths = SUFFIXES[result.options.format], []
        for number, sample in enumerate(result.samples):
            content = encode_result(photo, sample, result.options, record=record)
            ending = f"_{number + 1}" if number else ""
            path = folder / f"{stem_of(name)}_restored{ending}{suffix}"
            path.write_bytes(content)
            paths.append(str(path))
        pictures = {"before": photo.visible}
        if result.options.strength > 0:
            pictures["cleaned"] = result.cleaned
        for number, sample in enumerate(result.samples, start=1):
            pictures["restored" if len(paths) == 1 else f"sample {number}"] = sample
        chosen = next(name for name in pictures if name in ("restored", "sample 1"))
        if result.disagreement is not None:
            pictures["invented"] = overlay(result.restored, result.disagreement)
            path = folder / f"{stem_of(name)}.invented.png"
            path.write_bytes(encode_map(result.disagreement))
            paths.append(str(path))
        out = (result.restored.shape[-2], result.restored.shape[-1])
        size = size_within(out, SHOWN_SIDE)
        written = [
            (called, _write_png(folder / f"{called.replace(' ', '_')}.png", picture, size))
            for called, picture in pictures.items()
        ]
        thumb = _write_png(folder / "thumb.png", result.restored, size_within(out, THUMB_SIDE))
        return Saved(paths, written, chosen, thumb, size, out, record)


def _write_png(path: Path, picture: Tensor, size: tuple[int, int]) -> str:
    path.write_bytes(encode_photo(Photo(rgb=resize(picture, size).clamp(0, 1)), format="png"))
    return str(path)


def stem_of(name: str) -> str:
    """Return an upload's name without suffix and odd characters, for files that are made of it."""
    stem = "".join(c if c.isalnum() or c in " ._-()" else "_" for c in Path(name).stem)[:80]
    return stem or "image"


def photo_size(photo: Photo) -> tuple[int, int]:
    """Return (H, W) of a photograph."""
    return photo.rgb.shape[-2], photo.rgb.shape[-1]
