"""`--help` of a command: what it does, examples, and its settings with their comments in conf/."""

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import yaml

from open_supir.base.options import choices
from open_supir.base.places import CONF

NOT_SETTINGS = ("defaults", "hydra", "_target_", "_partial_", "_recursive_")
SPREAD = ("options", "sampler")  # groups whose settings are listed too: they are the user's dials
WIDTH = 40


class Setting(NamedTuple):
    """A setting, its default as the file writes it, and the file's comment on it."""

    key: str
    default: str
    comment: str


def help_text(config_name: str, doc: str) -> str:
    """Return the help of a command, from its docstring and conf/<config_name>.yaml."""
    lines = [doc.strip(), "", *_examples(CONF / f"{config_name}.yaml"), "settings:"]
    groups = _groups(config_name)
    for setting in _own(config_name).values():
        if setting.key not in groups:
            lines.append(_line(f"{setting.key}={setting.default}", setting.comment))
    if groups:
        lines += ["", "choices (files in conf/GROUP, whose settings are GROUP.NAME=VALUE):"]
    for group, (option, comment) in groups.items():
        known = ", ".join(choices(group))
        lines.append(_line(f"{group}={option}", f"{comment} ({known})" if comment else known))
    for group in SPREAD if set(SPREAD) <= set(groups) else ():
        lines += ["", *_spread(group, groups[group][0])]
    lines += ["", "--cfg job prints the whole configuration; --hydra-help lists Hydra's own flags."]
    return "\n".join(lines)


def _line(setting: str, comment: str) -> str:
    if len(setting) > WIDTH:
        setting = setting[: WIDTH - 3] + "..."
    return f"  {setting:{WIDTH}s}  {comment}".rstrip()


def _spread(group: str, option: str) -> list[str]:
    """List a group's settings; comments that its option lacks are those of its base."""
    about = (CONF / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
    title = " ".join(takewhile(lambda line: line.startswith("#"), about)).replace("# ", "")
    known = {s.key: s.comment for s in read_settings(CONF / group / "base.yaml")}
    settings = list(read_settings(CONF / group / f"{option}.yaml"))
    return [f"{group}: {title}"] + [
        _line(f"{group}.{s.key}={s.default}", s.comment or known.get(s.key, "")) for s in settings
    ]


def _own(config_name: str) -> dict[str, Setting]:
    """Return a command's settings by key, then those of the file that it builds on."""
    settings = {s.key: s for s in read_settings(CONF / f"{config_name}.yaml")}
    for entry, _ in _defaults(CONF / f"{config_name}.yaml"):
        if isinstance(entry, str) and entry != "_self_":
            settings = settings | _own(entry) | settings  # its own first
    return settings


def _groups(config_name: str) -> dict[str, tuple[str, str]]:
    """Return the command's config groups: name -> (default option, comment)."""
    groups: dict[str, tuple[str, str]] = {}
    for entry, comment in _defaults(CONF / f"{config_name}.yaml"):
        if isinstance(entry, str) and entry != "_self_":
            groups |= _groups(entry)
        elif isinstance(entry, dict):
            ((group, option),) = entry.items()
            if not group.startswith("override "):
                groups[group] = ("null" if option is None else str(option), comment)
    return groups


def _defaults(path: Path) -> list[tuple[str | dict[str, str | None], str]]:
    """Return the entries of a file's defaults list, each with its comment."""
    text = path.read_text(encoding="utf-8")
    entries = yaml.safe_load(text).get("defaults", [])
    nodes = next(v for k, v in yaml.compose(text).value if k.value == "defaults").value  # type: ignore[union-attr]
    lines = text.splitlines()
    return [(e, _comment(lines[n.start_mark.line])) for e, n in zip(entries, nodes, strict=True)]


def read_settings(path: Path) -> Iterator[Setting]:
    """Yield the settings of a file in conf/, nested ones by dotted key."""
    text = path.read_text(encoding="utf-8")
    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        yield from _settings(root, text, "", "")


def _settings(node: yaml.MappingNode, text: str, prefix: str, above: str) -> Iterator[Setting]:
    lines = text.splitlines()
    for name, value in node.value:
        if name.value in NOT_SETTINGS:
            continue
        comment = _comment(lines[name.start_mark.line]) or above
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _settings(value, text, f"{prefix}{name.value}.", comment)
        else:
            default = text[value.start_mark.index : value.end_mark.index].lstrip(">-|")
            yield Setting(f"{prefix}{name.value}", " ".join(default.split()), comment)


def _comment(line: str) -> str:
    return line.partition(" #")[2].strip()


def _examples(path: Path) -> list[str]:
    """Return the examples that head a file in conf/, without their comment marks."""
    head: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if line.startswith("# Run:") or head:
            head.append(line.removeprefix("#").removeprefix(" Run:"))
    examples = [f"  {line.strip()}" for line in head if "Takes:" not in line]
    return ["examples:", *examples, ""] if examples else []
