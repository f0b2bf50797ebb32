"""Waiting for other processes and threads for as long as they get on, however slow the machine."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 600.0  # seconds without progress after which something counts as stuck


def wait_for(
    condition: Callable[[], Any],
    *,
    progress: Callable[[], Any] = lambda: None,
    alive: Callable[[], bool] = lambda: True,
    what: str = "what the test waits for",
    patience: float = PATIENCE,
) -> Any:
    """Wait until a condition holds, and return its value.

    Args:
        condition: Asked again and again.
        progress: Anything that changes while there is progress; each change restarts the clock.
        alive: Whether the condition can still come true.
        what: Named in the error.
        patience: Seconds without progress.

    Raises:
        AssertionError: There was no progress for `patience` seconds, or nothing is alive any more.
    """
    last, since = progress(), time.monotonic()
    while True:
        lives = alive()  # asked first: what ends may have made the condition true
        if value := condition():
            return value
        assert lives, f"{what}: did not happen before the end"
        if (now := progress()) != last:
            last, since = now, time.monotonic()
        assert time.monotonic() - since < patience, f"{what}: no progress for {patience:.0f} s"
        time.sleep(0.02)


def lives(pid: int) -> bool:
    """Return whether there is a process that has not ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
