"""`open-supir NAME key=value ...`, or `python -m open_supir NAME key=value ...`."""

import ast
import runpy
import sys
from importlib.metadata import version
from pathlib import Path

COMMANDS = Path(__file__).parent / "commands"


def main() -> None:
    """Run the command that the first argument names, with the rest of the arguments."""
    known = sorted(path.stem for path in COMMANDS.glob("[a-z]*.py"))
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(usage(known))
    elif name in ("--version", "version"):
        print(version("open-supir"))
    elif name not in known:
        sys.exit(f"error: unknown command {name!r}; known: {', '.join(known)}")
    else:
        del sys.argv[1]
        # like `python -m`, so that launchers of several processes can start the same module again
        runpy.run_module(f"open_supir.commands.{name}", run_name="__main__", alter_sys=True)


def usage(known: list[str]) -> str:
    """Return the help text: the first docstring line of each command."""
    lines = ["usage: open-supir COMMAND key=value ...", "", "commands:"]
    width = max(map(len, known)) + 2
    for name in known:
        tree = ast.parse((COMMANDS / f"{name}.py").read_text(encoding="utf-8"))
        first = (ast.get_docstring(tree) or "").partition("\n")[0]
        lines.append(f"  {name:{width}s}{first}")
    return "\n".join([*lines, "", "settings of a command: open-supir COMMAND --help"])


if __name__ == "__main__":
    main()
