"""Captioners: describe an image in words, for the text conditioning."""

from pathlib import Path
from typing import Protocol

from torch import Tensor

from open_supir.base.images.captions import caption_file, read_caption

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
            ValueError: The file is no readable text, or larger than 64 KiB.
        """
        path = None if source is None else caption_file(source, self.folder)
        if path is not None:
            return read_caption(path)
        if self.required:
            wanted = "none without a file" if source is None else f"{source.stem}.txt"
            raise FileNotFoundError(f"no caption file for {source}: expected {wanted}")
        return ""
