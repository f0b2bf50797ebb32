"""Download weights ahead of use: open-supir download NAME; no name lists them.

NAME is a short name, or hf://OWNER/REPO/FILE[@REVISION]. Files go to the cache of huggingface_hub
(HF_HOME), where `checkpoint=NAME` and `weights.*=NAME` find them. A licence without commercial use
needs accept_license=[WORD] as well.
"""

import logging
import sys

from open_supir.base.failures import message
from open_supir.base.hub import accept, cached, fetch, named, short_names
from open_supir.base.places import CONF


def main() -> None:
    """Run the command line."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    settings = [argument for argument in arguments if "=" in argument]
    names = [argument for argument in arguments if "=" not in argument]
    try:
        accept(word for setting in settings for word in _words(setting))
        print(download(names) if names else listed())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {message(error)}")


def download(names: list[str]) -> str:
    """Download files; returns where each is, one a line."""
    wanted = [named(name, CONF) for name in names]
    return "\n".join(f"{file.name}: {fetch(file)}" for file in wanted)


def listed() -> str:
    """Return the short names, what they are, and whether they are in the cache."""
    lines = []
    for name, file in short_names(CONF).items():
        state = "in the cache" if cached(file) else "not downloaded"
        lines.append(f"{name}: {file.title} ({state})\n    {file.said}")
    return "\n".join(lines)


def _words(setting: str) -> list[str]:
    key, _, text = setting.partition("=")
    if key != "accept_license":
        raise ValueError(f"unknown key {key!r}; known: accept_license=[WORD]")
    return [word.strip() for word in text.strip("[]").split(",") if word.strip()]


if __name__ == "__main__":
    main()
