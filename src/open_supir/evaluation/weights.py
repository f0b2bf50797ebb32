"""Weight files of learned metrics: where they belong, which are missing, and explicit downloads.

Libraries look for files with their official names below torch's hub folder (`$TORCH_HOME/hub`, by
default `~/.cache/torch/hub`). pyiqa reads them with pickle, so download them only from the stated
addresses.
"""

import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from open_supir.base.files import sha256_of

log = logging.getLogger(__name__)

PYIQA_URL = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
TORCHVISION_URL = "https://download.pytorch.org/models/"
PATIENCE = 4.0  # seconds to find out whether there is a network


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """One file that a metric loads."""

    path: str  # official path, relative to torch's hub folder
    url: str  # download address
    licence: str  # its terms, as its authors state them
    # digest that the loader checks (and downloads again on mismatch); None if unchecked
    sha256: str | None = None
    # it is a repository in the Hugging Face cache; `path` is its folder there
    is_repository: bool = False


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A file that a metric needs and that is missing or wrong."""

    file: WeightFile
    looked_in: Path  # torch's hub folder, or the Hugging Face cache
    problem: str = "not found"  # "not found", or what is wrong with the existing file

    def __str__(self) -> str:
        path, home = self.looked_in / self.file.path, Path.home()
        place = f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
        source = f"download {self.file.url} to that place ({self.file.licence})"
        return f"{place} {self.problem}; {source}"


def pyiqa_file(name: str, licence: str) -> WeightFile:
    """Return a file of pyiqa's collection; `licence` is that of the metric's authors."""
    terms = f"{licence}; pyiqa's collection as a whole: CC BY-NC-SA 4.0"
    return WeightFile(path=f"pyiqa/{name}", url=PYIQA_URL + name, licence=terms)


def torchvision_file(name: str) -> WeightFile:
    """Return an ImageNet trunk of torchvision."""
    licence = "torchvision weights, BSD-3-Clause; trained on ImageNet"
    return WeightFile(path=f"checkpoints/{name}", url=TORCHVISION_URL + name, licence=licence)


def find_missing(files: tuple[WeightFile, ...], hub_dir: Path | None = None) -> list[Missing]:
    """Return the files that are absent from torch's hub folder (or `hub_dir`), or that their loader
    would reject.
    """
    folder = Path(torch.hub.get_dir()) if hub_dir is None else hub_dir
    missing = []
    for file in files:
        if file.is_repository:
            from huggingface_hub.constants import HF_HUB_CACHE

            if not any((Path(HF_HUB_CACHE) / file.path).glob("snapshots/*/config.json")):
                missing.append(Missing(file=file, looked_in=Path(HF_HUB_CACHE)))
            continue
        path = folder / file.path
        if not path.is_file():
            missing.append(Missing(file=file, looked_in=folder))
        elif file.sha256 is not None and sha256_of(path) != file.sha256:
            problem = "is not the released file (SHA-256 differs)"
            missing.append(Missing(file=file, looked_in=folder, problem=problem))
    return missing


def fetch(missing: Iterable[Missing]) -> None:
    """Download missing files to where they belong, each atomically.

    Raises:
        OSError: A download failed; the message names its address.
    """
    for lost in missing:
        file, target = lost.file, lost.looked_in / lost.file.path
        if file.is_repository:
            from huggingface_hub import snapshot_download

            snapshot_download(file.url.removeprefix("https://huggingface.co/"))
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        log.info("downloading %s to %s", file.url, target)
        try:
            torch.hub.download_url_to_file(file.url, str(target), progress=False)
        except OSError as error:
            raise OSError(f"cannot download {file.url}: {error}") from error


def fetch_if_reachable(missing: Iterable[Missing]) -> None:
    """Download what can be had; warn about the rest and go on.

    Repositories are left out: those that metrics need have many gigabytes.
    """
    reachable: dict[str, bool] = {}
    for absent in missing:
        file = absent.file
        if file.is_repository:
            continue
        host = urllib.parse.urlsplit(file.url).netloc
        if host not in reachable:
            reachable[host] = _answers(file.url)
        if not reachable[host]:
            continue
        log.info("%s: %s", file.path, file.licence)
        try:
            fetch([absent])
        except OSError as error:
            log.warning("%s", error)
    lost = sorted(host for host, answers in reachable.items() if not answers)
    if lost:
        log.warning(
            "cannot reach %s; metrics that need its files are not measured", ", ".join(lost)
        )


def _answers(url: str) -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return False
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def offline() -> Iterator[None]:
    """Keep the Hugging Face libraries offline inside the block."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
    import huggingface_hub.constants as constants

    flag = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = flag
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before
