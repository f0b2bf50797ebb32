"""The file of a dry run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from open_supir.base.files import write_text


def write_report(report: Mapping[str, Any], path: str | None) -> None:
    """Write a report as JSON, if a path is given."""
    if path is not None:
        write_text(Path(path), json.dumps(report, indent=1) + "\n")
