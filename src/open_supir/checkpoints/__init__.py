"""Weight files: load them into modules, export them to other layouts, identify them."""

from open_supir.checkpoints.export import export_diffusers, export_native, export_sdxl, export_supir
from open_supir.checkpoints.files import open_checkpoint
from open_supir.checkpoints.identify import inspect_checkpoint
from open_supir.checkpoints.load import LoadReport, load_parts

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
