"""The page's logic without Gradio: restore with previews and cancellation, save for download."""

import dataclasses
import queue
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from open_supir.base.images import Photo, read_photo, resize
from open_supir.base.images.write import SUFFIXES, encode_photo, left_out
from open_supir.diffusion.samplers import Step
from open_supir.inference.captioner import NoCaptioner
from open_supir.inference.options import RestoreOptions
from open_supir.inference.pixels import CAPTION_SIDE, resized
from open_supir.inference.records import check_result, describe, encode_result
from open_supir.inference.restorer import Restorer
from open_supir.inference.result import Restoration

RUN = "restoring"  # the name of a run's thread
PREVIEWS = 8  # per image
# fields that the page's dials set, in the dials' order
OPTION_DIALS = ("scale", "strength", "seed", "num_samples", "color_fix", "format", "bits")
SETTING_DIALS = ("num_steps", "cfg_scale", "control_scale", "tau")
PROMPT_DIALS = ("positive_prompt", "negative_prompt")


class Cancelled(RuntimeError):
    """The user pressed cancel."""


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
    busy: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def read(self, path: str, options: RestoreOptions) -> Photo:
        """Read an upload.

        Raises:
            ValueError: It is not an image, or it or its result is too large.
        """
        photo = read_photo(Path(path), max_pixels=self.max_pixels, intent=options.intent)
        check_result(photo, options, self.max_output_pixels)
        return photo

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
        self, photo: Photo, caption: str, options: RestoreOptions, cancel: threading.Event
    ) -> Iterator[tuple[float, Tensor | None, Any]]:
        """Restore in a thread; yield (share done, preview, None), then (1.0, None, result).

        Closing the iterator early, as when the user leaves, also cancels.

        Raises:
            Cancelled: `cancel` was set.
        """
        events: queue.Queue = queue.Queue()
        total = options.sampler.num_steps * options.num_samples
        every = max(1, total // PREVIEWS)
        done, left = [0], threading.Event()

        def on_step(step: Step, x: Tensor, denoised: Tensor) -> None:
            if cancel.is_set() or left.is_set():
                raise Cancelled("cancelled")
            done[0] += 1
            if done[0] % every == 0:
                events.put((done[0] / total, self.restorer.preview(denoised[:1]), None))

        def work() -> None:
            try:
                if cancel.is_set():  # before its turn came
                    raise Cancelled("cancelled")
                text = caption.strip() or None
                result = self.restorer(
                    photo.visible, caption=text, options=options, on_step=on_step
                )
                events.put((1.0, None, result))
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
                    if event[2] is not None:
                        return
            finally:
                left.set()
                thread.join()

    def save(
        self, photo: Photo, result: Restoration, name: str
    ) -> tuple[list[str], str, dict[str, Any]]:
        """Write the samples for download, and the enlarged input for comparison.

        Returns:
            Paths of the samples, path of the input, and the record embedded in the samples.
        """
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        record = describe(result, self.model) | {
            "input": {"name": name},
            "notes": [*photo.notes, *left_out(photo, result.options.format)],
        }
        stem = "".join(c if c.isalnum() or c in " ._-()" else "_" for c in Path(name).stem)[:80]
        paths = []
        for number, sample in enumerate(result.samples):
            content = encode_result(photo, sample, result.options, record=record)
            suffix = SUFFIXES[result.options.format]
            ending = f"_{number + 1}" if number else ""
            path = folder / f"{stem or 'image'}_restored{ending}{suffix}"
            path.write_bytes(content)
            paths.append(str(path))
        size = (result.restored.shape[-2], result.restored.shape[-1])
        before = resize(photo.visible, size).clamp(0, 1)
        shown = folder / "input.png"
        shown.write_bytes(encode_photo(Photo(rgb=before), format="png"))
        return paths, str(shown), record

    def shown(self, sample: Tensor) -> str:
        """Write a sample as PNG for the page, whatever the download format; return its path."""
        path = Path(tempfile.mkdtemp(dir=self.folder)) / "restored.png"
        path.write_bytes(encode_photo(Photo(rgb=sample), format="png"))
        return str(path)


def with_dials(base: RestoreOptions, values: dict[str, Any]) -> RestoreOptions:
    """Return a preset with the values of the page's dials applied.

    Raises:
        ValueError: A dial is out of range.
    """
    sampler = dataclasses.replace(
        base.sampler,
        num_steps=int(values["num_steps"]),
        cfg_scale=float(values["cfg_scale"]),
        control_scale=float(values["control_scale"]),
        tau=float(values["tau"]) if values["tau"] else None,
    )
    return dataclasses.replace(
        base,
        sampler=sampler,
        scale=float(values["scale"]),
        strength=float(values["strength"]),
        seed=int(values["seed"]),
        num_samples=int(values["num_samples"]),
        color_fix=values["color_fix"],
        format=values["format"],
        bits=int(values["bits"]) if values["bits"] in ("8", "16") else None,
        positive_prompt=values["positive_prompt"],
        negative_prompt=values["negative_prompt"],
    )


def dial_values(options: RestoreOptions) -> list[Any]:
    """Return the dials' values for options, in the dials' order."""
    own = [getattr(options, name) for name in OPTION_DIALS]
    own[-1] = str(options.bits or "as the input")
    sampler = [getattr(options.sampler, name) for name in SETTING_DIALS]
    sampler[-1] = options.sampler.tau or 0
    return own + sampler + [getattr(options, name) for name in PROMPT_DIALS]
