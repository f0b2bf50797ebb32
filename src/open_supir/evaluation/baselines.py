"""Baselines for the table: outputs that another system left in a folder, and spandrel models."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from open_supir.base.files import sha256_of
from open_supir.base.images import list_images, read_image, resize, to_unit
from open_supir.evaluation.samples import Method, Sample


def folder_outputs(folders: Mapping[str, Path]) -> dict[str, Method]:
    """Return a method for each folder of finished pictures, paired with the inputs by name.

    A picture has the name of its input, with any suffix: the inputs' names are their paths below
    the data set, without suffix. A picture may also be of an input that is degraded several times.

    Args:
        folders: Method name -> folder.

    Raises:
        FileNotFoundError: A folder is not there; names the method.
        ValueError: It holds no image, or two that differ in suffix only.
    """
    return {name: _Folder(name, folder) for name, folder in folders.items()}


class _Folder:
    def __init__(self, name: str, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"outputs of {name}: there is no folder {folder}")
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
    """Return one SHA-256 over names and contents of a folder's pictures."""
    total = hashlib.sha256()
    for path in list_images(folder):
        total.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    return total.hexdigest()


def spandrel_models(files: Mapping[str, str | Path], device: torch.device) -> dict[str, Method]:
    """Return a method for each weight file that spandrel knows (BSRGAN, Real-ESRGAN and others).

    A model is shown the LQ image as it was before its enlargement. Where it enlarges by another
    factor than the protocol's, its result is resized (bicubic, antialiased) to the size that is
    measured, as the SUPIR paper does.

    Args:
        files: Method name -> .pth or .safetensors file.
        device: Where the models run; each is loaded once, now.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: spandrel is not installed, or cannot read or does not know the file, or the
            model is no image to image model for RGB.
    """
    return {name: _Spandrel(name, Path(file), device) for name, file in files.items()}


class _Spandrel:
    def __init__(self, name: str, file: Path, device: torch.device) -> None:
        if not file.is_file():
            raise FileNotFoundError(f"spandrel.{name}={file}: no such file")
        try:
            from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
        except ImportError as error:
            message = "spandrel models need the package: pip install spandrel (extra `baselines`)"
            raise ValueError(message) from error
        try:
            model = ModelLoader(device=device).load_from_file(file)
        except UnsupportedModelError as error:
            raise ValueError(f"spandrel.{name}={file}: spandrel knows no such model") from error
        except Exception as error:  # third-party code: torch, safetensors and pickle all differ
            kind = type(error).__name__
            raise ValueError(f"spandrel.{name}={file}: damaged ({kind}: {error})") from error
        if not isinstance(model, ImageModelDescriptor) or model.input_channels != 3:
            raise ValueError(f"spandrel.{name}={file}: not a model from RGB image to RGB image")
        self.model, self.device = model.eval(), device

    @torch.no_grad()
    def __call__(self, sample: Sample) -> Tensor:
        small = sample.lq if sample.small is None else sample.small
        target = sample.lq if sample.hq is None else sample.hq
        image = self.model(small.to(self.device)).float().cpu()
        return resize(image, (target.shape[-2], target.shape[-1])).clamp(0, 1)
