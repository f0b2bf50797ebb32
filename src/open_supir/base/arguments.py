"""Paths and texts on the command line, without quoting for Hydra.

Hydra reads a value by a grammar in which `Family, 1980` is a sweep, `1980` a number and `R&B` an
error. For the keys below, the rest of the argument is the value. Quoted values and null are left to
Hydra. Keys of `SEVERAL` also take a list [a, b] or names {x: a, y: b}. With --multirun, keys of
`SWEPT` take several values, separated by commas without a space after them.
"""

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString

PATHS = (
    "input", "output", "checkpoint", "ckpt_path", "runs_dir", "run_dir", "replay", "inspect",
    "base", "evaluation", "parameters", "data_root", "report", "study", "outputs", "outputs.*",
    "checkpoints", "checkpoints.*", "spandrel", "spandrel.*", "runs", "work", "shards_dir",
    "caption_cache", "data.root", "data.heldout", "data.heldout_lq", "data.pairs",
    "data.prepare_at", "data.prepared", "data.sources.*.folder", "data.sources.*.urls",
    "weights.sdxl", "weights.vae", "weights.prior", "weights.supir", "weights.robust_encoder",
    "weights.shipped", "weights.loras", "loras", "captioner.folder", "captioner.model",
    "caption.cache", "prior.path", "negatives.prior.path", "dedup.against", "protocol.hq_folder",
    "protocol.lq_folder", "metrics.mask", "preference.folders", "preference.folders.*",
    "preference.lq", "clean", "shipped", "discriminator.weights", "options.mask", "runner.logs",
    "callbacks.*.dirpath", "logger.*.save_dir", "hydra.run.dir", "hydra.sweep.dir",
)  # fmt: skip
TEXTS = (
    "name", "options.positive_prompt", "options.negative_prompt", "data.captions.quality_words",
    "data.captions.negative_words", "captioner.url", "caption.question", "negatives.words",
    "prefix", "licence", "licence.*", "license", "metadata", "metadata.*", "baseline",
    "protocol.lq_name", "push_to_hub",
)  # fmt: skip
SEVERAL = {
    "convert": ("input", "metadata", "loras"),
    "restore": ("weights.loras",),
    "curate": ("input", "licence", "dedup.against"),
    "evaluate": ("outputs", "checkpoints", "spandrel", "preference.folders", "weights.loras"),
    "ablation": ("runs",),
    "train": ("data.sources.*.urls", "weights.loras"),
    "webui": ("weights.loras",),
}
SETTINGS_TOO = ("weights.loras", "loras")  # entries may have settings of their own
SWEPT = ("checkpoint", "ckpt_path", "name", "data.root", "data_root", "weights.*", "options.*",
         "data.captions.*", "protocol.*", "outputs", "captioner.*")  # fmt: skip
MULTIRUN = ("-m", "--multirun")
FLAGS = (  # Hydra's
    "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun",
    "--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun",
    "--info",
)  # fmt: skip
QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""


def as_typed(arguments: Sequence[str], config_name: str) -> list[str]:
    """Return the arguments with paths and texts quoted for Hydra, and `~` in paths expanded.

    Raises:
        ValueError: A path is empty, or an argument is written as an option, `--input`.
    """
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag not in FLAGS:
            raise ValueError(
                f"{flag}: settings are written key=value, without dashes: {flag.strip('-')}=...; "
                "--help lists them"
            )
    is_sweep = any(argument in MULTIRUN for argument in arguments)
    return [_as_typed(argument, config_name, is_sweep) for argument in arguments]


def is_taken_as_typed(key: str) -> bool:
    """Whether the value of a key is a path or a text."""
    return _is_one_of(key, PATHS + TEXTS)


def _as_typed(argument: str, config_name: str, is_sweep: bool) -> str:
    start, _, text = argument.partition("=")
    key = start.lstrip("+")
    is_path = _is_one_of(key, PATHS)
    if "=" not in argument or not is_taken_as_typed(key):
        return argument
    if key in SETTINGS_TOO and "{" in text:  # {path: FILE, scale: 0.8}: by Hydra's own grammar
        return argument
    if is_path and os.path.lexists(os.path.expanduser(text)):  # whatever its name looks like
        literal = _quoted(text, key, is_path).replace("${", r"\${")
        return f"{start}={literal}"
    if _is_one_of(key, SEVERAL.get(config_name, ())) and text[:1] + text[-1:] in ("[]", "{}"):
        pieces = (piece.strip() for piece in _split(text[1:-1], r"\s*,\s*") if piece.strip())
        named = [piece.partition(":") for piece in pieces] if text[0] == "{" else None
        values = (
            [f"{name.strip()}: {_quoted(value.strip(), key, is_path)}" for name, _, value in named]
            if named is not None
            else [_quoted(piece, key, is_path) for piece in pieces]
        )
        return f"{start}={text[0]}{','.join(values)}{text[-1]}"
    pieces = _split(text, r",(?!\s)") if is_sweep and _is_one_of(key, SWEPT) else [text]
    return f"{start}={','.join(_quoted(piece, key, is_path) for piece in pieces)}"


def _quoted(text: str, key: str, is_path: bool) -> str:
    if text.lower() == "null" and not (is_path and os.path.lexists(text)):
        return text
    if re.fullmatch(QUOTED, text, re.S) and not (is_path and os.path.lexists(text)):
        text = str(OverridesParser.create().parse_override(f"x={text}").value())
    if is_path:
        if not text.strip():
            raise ValueError(f"{key}= is empty: give a path")
        text = os.path.expanduser(text)
    quoted = QuotedString(text=text, quote=Quote.single).with_quotes()
    return quoted if is_path else quoted.replace("${", r"\${")


def _split(text: str, comma: str) -> list[str]:
    """Split at commas, but not within a piece that is quoted as a whole."""
    pieces = re.finditer(rf"(\s*(?:{QUOTED})\s*|.*?)({comma}|\Z)", text, re.S)
    found = [(piece.group(1), piece.group(2)) for piece in pieces]
    last = next(number for number, (_, end) in enumerate(found) if not end)
    return [piece for piece, _ in found[: last + 1]]


def _is_one_of(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
