"""Captioners: describe an image in words, for the text conditioning."""

from pathlib import Path
from typing import Protocol

from torch import Tensor

MAX_CAPTION_BYTES = 65536
QUESTION = "Describe this image and its style in a very detailed manner."  # as SUPIR asks LLaVA


class Captioner(Protocol):
    """Interface of all captioners: image in, caption out."""

    def __call__(self, image: Tensor, *, source: Path | None = None) -> str:
        """Return a caption.

        Args:
            image: (3, H, W) in [0, 1]: the degraded image, cleaned by the robust encoder.
            source: File that the image was read from, if there is one.
        """
        ...


class NoCaptioner:
    """Returns no caption: the prompt is the quality words alone."""

    def __call__(self, image: Tensor, *, source: Path | None = None) -> str:
        """Return an empty caption."""
        return ""


class FileCaptioner:
    """Reads the caption from a text file beside the image: photo.jpg and photo.txt.

    Args:
        folder: Where the text files are; None looks beside each image.
        required: Raise for images without a text file, instead of returning an empty caption.
    """

    def __init__(self, folder: str | Path | None = None, *, required: bool = False) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and not self.folder.is_dir():
            raise FileNotFoundError(f"no such folder of captions: {self.folder}")
        self.required = required

    def __call__(self, image: Tensor, *, source: Path | None = None) -> str:
        """Return the text that belongs to `source`, as one line.

        Raises:
            FileNotFoundError: There is no text file, and one is required.
            ValueError: The file is not UTF-8 text, or larger than 64 KiB.
        """
        path = None if source is None else (self.folder or source.parent) / f"{source.stem}.txt"
        if path is None or not path.is_file():
            if self.required:
                raise FileNotFoundError(f"no caption file for {source}: expected {path}")
            return ""
        if path.stat().st_size > MAX_CAPTION_BYTES:
            raise ValueError(f"{path}: caption file larger than {MAX_CAPTION_BYTES} bytes")
        try:
            return one_line(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: caption is not UTF-8 text ({error})") from error


def one_line(text: str) -> str:
    """Return `text` without control characters, and with whitespace collapsed to single spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
