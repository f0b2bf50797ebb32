"""Which files of a folder are images."""

from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def list_images(path: str | Path) -> list[Path]:
    """List the image file `path`, or all image files below the folder `path`, sorted.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: `path` is a file that is no image, or a folder without images.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(
                f"{path}: not an image file; known suffixes: {' '.join(IMAGE_SUFFIXES)}"
            )
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"no such file or folder: {path}")
    found = sorted(
        p
        for p in path.rglob("*")
        if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file()
    )
    if not found:
        raise ValueError(
            f"{path}: no images in this folder; known suffixes: {' '.join(IMAGE_SUFFIXES)}"
        )
    return found
