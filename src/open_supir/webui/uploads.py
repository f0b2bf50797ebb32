"""Uploads: pictures that browsers cannot show, and batches of files and ZIPs as a folder."""

import os
import secrets
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from open_supir.base.files import printable
from open_supir.base.images import Photo, resize
from open_supir.base.images.kinds import START_BYTES, kind_of
from open_supir.base.images.listing import no_images, walk_images
from open_supir.base.images.tensors import size_within
from open_supir.base.images.write import encode_photo
from open_supir.inference.captioner import FileCaptioner

BROWSERS_SHOW = ("jpeg", "png", "gif", "webp", "bmp", "avif")
PREVIEW_SIDE = 1024
UNUSED = ("__MACOSX", "Thumbs.db")


@dataclass(frozen=True, kw_only=True)
class Source:
    """An uploaded image, and the picture that the page shows of it."""

    path: str
    shown: str  # the upload itself, if browsers can show it
    size: tuple[int, int]  # (H, W), upright

    def is_shown_as(self, image: str) -> bool:
        """Return whether the page's image, wherever Gradio copied it, is this one."""
        return image == self.path or Path(image).name == Path(self.shown).name != self.name

    @property
    def name(self) -> str:
        """The upload's file name."""
        return Path(self.path).name


@dataclass(frozen=True, kw_only=True)
class UploadedFolder:
    """Uploaded files, laid out as a folder.

    Attributes:
        files: The uploads.
        root: The folder.
        paths: The images below it, sorted.
        captions: What the text files beside them say, by name.
        notes: What was left out, one line each.
    """

    files: tuple[str, ...]
    root: Path
    paths: list[Path]
    captions: dict[str, str]
    notes: list[str]

    def name(self, path: Path) -> str:
        """Return an image's name within the folder."""
        return path.relative_to(self.root).as_posix()

    def captioned(self, rows: Sequence[Sequence[str]]) -> dict[str, str]:
        """Return the captions with those of the page's table, by name."""
        return self.captions | {str(row[0]): str(row[1] or "") for row in rows if len(row) > 1}


def shown(path: str, photo: Photo, folder: Path) -> str:
    """Return the path of a picture of an upload that browsers can show: itself, or a JPEG."""
    with open(path, "rb") as file:
        if kind_of(file.read(START_BYTES)) in BROWSERS_SHOW:
            return path
    size = size_within((photo.rgb.shape[-2], photo.rgb.shape[-1]), PREVIEW_SIDE)
    picture = folder / f"preview_{secrets.token_hex(8)}.jpg"
    small = resize(photo.rgb, size).clamp(0, 1)
    alpha = None if photo.alpha is None else resize(photo.alpha, size).clamp(0, 1)
    picture.write_bytes(encode_photo(Photo(rgb=small, alpha=alpha), format="jpg", quality=85))
    return str(picture)


def lay_out(
    files: Sequence[str], folder: Path, *, max_files: int, max_bytes: int
) -> UploadedFolder:
    """Lay uploads out as a folder: files side by side, ZIPs with the tree that they hold.

    Text files beside the images (photo.txt and photo.jpg) are their captions.

    Args:
        files: Paths of the uploads.
        folder: An empty folder to work in.
        max_files: Limit on images.
        max_bytes: Limit on what the ZIPs hold, unpacked.

    Raises:
        ValueError: There is no image, there are too many, or a ZIP is damaged or too large.
    """
    root = folder / "batch"
    root.mkdir()
    for file in files:
        if zipfile.is_zipfile(file):
            max_bytes -= _unpack(Path(file), root, max_bytes)
        else:
            target = _free(root / Path(file).name)
            try:
                os.link(file, target)
            except OSError:  # another disk
                shutil.copyfile(file, target)
    found = walk_images(root, follow_links=False)
    if not found.images:
        raise ValueError(no_images(found).replace("in this folder ", ""))
    if len(found.images) > max_files:
        raise ValueError(f"{len(found.images)} images, limit {max_files}; set max_files= for more")
    captions, notes = {}, [found.summary()] if found.others else []
    for path in found.images:
        name = path.relative_to(root).as_posix()
        try:
            captions[name] = FileCaptioner()(torch.zeros(3, 1, 1), source=path)
        except ValueError as error:
            captions[name] = ""
            notes.append(str(error).replace(f"{root}/", ""))
    return UploadedFolder(
        files=tuple(files), root=root, paths=found.images, captions=captions, notes=notes
    )


def _unpack(file: Path, root: Path, max_bytes: int) -> int:
    """Unpack a ZIP, but for hidden files; return the number of bytes.

    Python's `zipfile` leads no name outside `root`, and makes no links.
    """
    name = printable(file.name)
    try:
        with zipfile.ZipFile(file) as archive:
            wanted = [item for item in archive.infolist() if _is_wanted(item.filename)]
            size = sum(item.file_size for item in wanted)
            if size > max_bytes:
                raise ValueError(
                    f"{name} holds {size} bytes, limit {max_bytes}; set max_file_mb= for more"
                )
            archive.extractall(root, wanted)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise ValueError(f"{name} cannot be unpacked ({error})") from error
    return size


def _is_wanted(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return not name.endswith("/") and not any(p.startswith(".") or p in UNUSED for p in parts)


def _free(path: Path) -> Path:
    """Return the path, with a number if it is taken."""
    number = 2
    while path.exists():
        path = path.with_name(f"{path.stem.removesuffix(f'_{number - 1}')}_{number}{path.suffix}")
        number += 1
    return path
