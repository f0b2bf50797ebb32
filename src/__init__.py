"""Launchers of the commands, for use from a checkout, whose own code they run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
