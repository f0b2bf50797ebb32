"""Restore and caption photographs; make negative samples with the prior."""

from open_supir.inference.captioner import FileCaptioner, NoCaptioner
from open_supir.inference.options import RestoreOptions
from open_supir.inference.restorer import Restorer
from open_supir.inference.result import Restoration

__all__ = [
    "FileCaptioner",
    "NoCaptioner",
    "Restoration",
    "RestoreOptions",
    "Restorer",
]
