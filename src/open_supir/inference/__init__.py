"""Inference: restore images, caption them, and sample from the prior."""

from open_supir.inference.captioner import FileCaptioner, NoCaptioner
from open_supir.inference.options import RestoreOptions
from open_supir.inference.restorer import Restorer
from open_supir.inference.result import Restoration
from open_supir.inference.text_to_image import image_to_image, text_to_image

__all__ = [
    "FileCaptioner",
    "NoCaptioner",
    "Restoration",
    "RestoreOptions",
    "Restorer",
    "image_to_image",
    "text_to_image",
]
