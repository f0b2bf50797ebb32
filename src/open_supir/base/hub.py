"""Weights by name: hf://OWNER/REPO/FILE[@REVISION], hf://OWNER/REPO, short names of conf/names.

huggingface_hub keeps them in its cache, resumes, and reads token, HF_HOME, HF_ENDPOINT and
HF_HUB_OFFLINE by itself. What it cannot know is checked here: hashes, and that a licence without
commercial use was accepted.
"""

import errno
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from open_supir.base.files import sha256_of

log = logging.getLogger(__name__)

HF = "hf://"
_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:/([^@]+?))?(?:@(.+))?")
_SHORT = re.compile(r"[a-z0-9][\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ACCEPTED: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class Named:
    """A file of the hub, or a repository."""

    name: str  # as the user wrote it
    repo: str
    file: str  # "" is the whole repository
    revision: str | None = None
    title: str = ""
    size: int | None = None  # bytes
    sha256: str | None = None
    licence: str | None = None
    accept: str | None = None  # the word that accepts a licence without commercial use

    @property
    def address(self) -> str:
        """The name in full, hf://OWNER/REPO/FILE[@REVISION]."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{HF}{self.repo}{'/' if self.file else ''}{self.file}{revision}"

    @property
    def said(self) -> str:
        """What a user should know before it is fetched: file, size, place, licence."""
        size = f", {self.size / 1e9:.2f} GB" if self.size else ""
        terms = f"licence: {self.licence}" if self.licence else "see its page for the licence"
        return f"{self.file or 'all files'}{size}, of huggingface.co/{self.repo}; {terms}"


def short_names(conf: Path) -> dict[str, Named]:
    """Return the files that have short names in a folder of configuration."""
    return {
        name: _of_address(entry.pop("address"), name=name, **entry)
        for name, entry in _table(conf).items()
    }


def is_named(text: str, conf: Path) -> bool:
    """Return whether a text names a file of the hub; a local file of that name takes precedence."""
    if text.startswith(HF):
        return True
    return bool(_SHORT.fullmatch(text)) and text in _table(conf) and not Path(text).exists()


def named(text: str, conf: Path) -> Named:
    """Return the file of the hub that a text names.

    Raises:
        ValueError: The address is incomplete, or the short name unknown.
    """
    if text.startswith(HF):
        return _of_address(text, name=text)
    names = short_names(conf)
    if text not in names:
        raise ValueError(
            f"unknown name {text!r}; known: {', '.join(names)}, and {HF}OWNER/REPO/FILE"
        )
    return names[text]


def accept(licences: Iterable[str]) -> None:
    """Accept licences for this process, by the words of `accept_license=[...]`."""
    _ACCEPTED.update(licences)


def fetch(wanted: Named) -> Path:
    """Return a local copy of a file of the hub, downloading it unless it is in the cache.

    Raises:
        FileNotFoundError: It does not exist, or the hub cannot be reached.
        PermissionError: It needs a login.
        ValueError: Its licence was not accepted, or its content is not what it must be.
        OSError: The download broke off, or the disk is full.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.utils import logging as hub_logging

    found = cached(wanted)
    if found is not None:
        return found
    if wanted.accept and wanted.accept not in _ACCEPTED:
        raise ValueError(
            f"{wanted.name}: {wanted.said}. Read it; to accept it and download the file, add "
            f"accept_license=[{wanted.accept}]"
        )
    log.info("downloading %s: %s", wanted.name, wanted.said)
    hub_logging.set_verbosity_error()  # not a line for each of its own attempts
    with _explained(wanted):
        if not wanted.file:
            return Path(snapshot_download(wanted.repo, revision=wanted.revision))
        path = Path(hf_hub_download(wanted.repo, wanted.file, revision=wanted.revision))
    _check(wanted, path)
    return path


def push(folder: Path, repo: str) -> str:
    """Upload a folder to a repository of the hub, creating it if necessary; return its address.

    Raises:
        PermissionError: The token may not write there.
        OSError: The upload broke off.
    """
    from huggingface_hub import HfApi

    wanted = Named(name=f"push_to_hub={repo}", repo=repo, file="")
    with _explained(wanted):
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload by open-supir")
    return f"{HF}{repo}"


def cached(wanted: Named) -> Path | None:
    """Return the copy of a file in huggingface_hub's cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    if not wanted.file:
        return None
    found = try_to_load_from_cache(wanted.repo, wanted.file, revision=wanted.revision)
    return Path(found) if isinstance(found, str) else None


@cache
def _text(conf: Path) -> str:
    return (conf / "names" / "weights.yaml").read_text(encoding="utf-8")


def _table(conf: Path) -> dict[str, Any]:
    return yaml.safe_load(_text(conf))


def _of_address(address: str, *, name: str, **more: Any) -> Named:
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError(f"{address}: expected {HF}OWNER/REPO[/FILE][@REVISION]")
    return Named(name=name, repo=match[1], file=match[2] or "", revision=match[3], **more)


def _check(wanted: Named, path: Path) -> None:
    """Compare a fresh download with the expected hash, else with the one that the hub sent.

    The cache calls a file by that hash; a wrong file is deleted.
    """
    blob = path.resolve()
    expected = wanted.sha256 or (blob.name if _SHA256.fullmatch(blob.name) else None)
    if expected is None:
        return
    found = sha256_of(blob)
    if found != expected:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise ValueError(
            f"{wanted.name}: {wanted.file} has the SHA-256 {found}, expected {expected}; the copy "
            "was deleted, download it again or elsewhere"
        )


@contextmanager
def _explained(wanted: Named) -> Iterator[None]:
    """Turn the errors of a download into one line each."""
    from huggingface_hub import constants, errors

    http_error = errors.HTTPError  # pyright: ignore[reportPrivateImportUsage]
    what, page = (
        f"{wanted.name}: {wanted.file or 'the repository'}",
        f"{constants.ENDPOINT}/{wanted.repo}",
    )
    by_hand = f"or fetch it elsewhere, from {page}, and give its path in place of {wanted.name}"
    try:
        yield
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        raise PermissionError(
            f"{what}: {page} does not exist or needs a login: accept its terms on that page, then "
            "run `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{what}: {page} has no revision {wanted.revision}") from error
    except errors.RemoteEntryNotFoundError as error:
        raise FileNotFoundError(f"{what}: {page} has no such file") from error
    except errors.LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{what} is not in the cache, and {constants.ENDPOINT} cannot be reached; connect, "
            f"{by_hand}"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        login = "; it needs a login: run `hf auth login` or set HF_TOKEN" if status == 401 else ""
        raise PermissionError(f"{what}: {page} answered {status}{login}; {by_hand}") from error
    except http_error as error:  # the connection, after huggingface_hub's own attempts
        raise OSError(f"{what}: the download broke off; try again, {by_hand}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                f"{what}: no space left in {constants.HF_HUB_CACHE}; free some, or set HF_HOME to "
                "a folder of a larger disk"
            ) from error
        raise OSError(f"{what}: {' '.join(str(error).split())}") from error
