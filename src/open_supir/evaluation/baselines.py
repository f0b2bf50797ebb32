"""Baselines for the table: a folder of another system's outputs, or a spandrel model."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from open_supir.base.files import sha256_of
from open_supir.base.images import list_images, read_image, resize, to_unit
from open_supir.evaluation.samples import Method, Sample


def folder_outputs(folders: Mapping[str, Path]) -> dict[str, Method]:
    """Return a method for each folder of restored pictures, paired with the inputs by name.

    A picture carries the name of its sample, with any suffix. A sample's name is the path of its
    input below the data set, without suffix; inputs degraded several times have numbered names.

    Raises:
        FileNotFoundError: A folder does not exist; the message names the method.
        ValueError: A folder holds no image, or two that differ only in suffix.
    """
    return {name: _Folder(name, folder) for name, folder in folders.items()}


class _Folder:
    def __init__(self, name: str, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"outputs of {name}: no folder {folder}")
        self.folder = folder
        self.files: dict[str, Path] = {}
        for path in list_images(folder):
            key = path.relative_to(folder).with_suffix("").as_posix()
            if key in self.files:
                raise ValueError(f"{self.files[key]} and {path} differ in suffix only; keep one")
            self.files[key] = path

    def __call__(self, sample: Sample) -> Tensor:
        path = self.files.get(sample.name)
        if path is None:
            raise FileNotFoundError(f"no output {sample.name}.* in {self.folder}")
        return to_unit(read_image(path)).unsqueeze(0)


def digest_folder(folder: Path) -> str:
    """Return one SHA-256 over the names and contents of a folder's pictures."""
    total = hashlib.sha256()
    for path in list_images(folder):
        total.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    return total.hexdigest()


def spandrel_models(files: Mapping[str, str | Path], device: torch.device) -> dict[str, Method]:
    """Return a method for each weight file that spandrel supports (BSRGAN, Real-ESRGAN and others).

    A model gets the LQ image before the protocol enlarges it. If its scale differs from the
    protocol's, its output is resized (bicubic, antialiased) to the measured size, as in the SUPIR
    paper.

    Args:
        files: Method name -> .pth or .safetensors file.
        device: Where the models run; all are loaded immediately.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: spandrel is not installed, or cannot read or does not support the file, or the
            model does not map RGB images to images.
    """
    return {name: _Spandrel(name, Path(file), device) for name, file in files.items()}


class _Spandrel:
    def __init__(self, name: str, file: Path, device: torch.device) -> None:
        if not file.is_file():
            raise FileNotFoundError(f"spandrel.{name}={file}: file not found")
        try:
            from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
        except ImportError as error:
            message = "spandrel is not installed: pip install spandrel (extra `baselines`)"
            raise ValueError(message) from error
        try:
            model = ModelLoader(device=device).load_from_file(file)
        except UnsupportedModelError as error:
            raise ValueError(f"spandrel.{name}={file}: not supported by spandrel") from error
        except Exception as error:  # torch, safetensors and pickle raise different errors
            kind = type(error).__name__
            raise ValueError(f"spandrel.{name}={file}: damaged ({kind}: {error})") from error
        if not isinstance(model, ImageModelDescriptor) or model.input_channels != 3:
            raise ValueError(f"spandrel.{name}={file}: does not map RGB images to images")
        self.model, self.device = model.eval(), device

    @torch.no_grad()
    def __call__(self, sample: Sample) -> Tensor:
        small = sample.lq if sample.small is None else sample.small
        target = sample.lq if sample.hq is None else sample.hq
        image = self.model(small.to(self.device)).float().cpu()
        return resize(image, (target.shape[-2], target.shape[-1])).clamp(0, 1)
