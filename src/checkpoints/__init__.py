"""Weight files: reading them into modules, writing them for others, telling what they are."""

from src.checkpoints.export import export_diffusers, export_native, export_sdxl, export_supir
from src.checkpoints.files import open_checkpoint
from src.checkpoints.identify import inspect_checkpoint
from src.checkpoints.load import LoadReport, load_parts

__all__ = [
    "LoadReport",
    "export_diffusers",
    "export_native",
    "export_sdxl",
    "export_supir",
    "inspect_checkpoint",
    "load_parts",
    "open_checkpoint",
]
