"""Inference: restore images, caption them, and sample from the prior."""

from src.inference.captioner import FileCaptioner, NoCaptioner
from src.inference.options import RestoreOptions
from src.inference.restorer import Restorer
from src.inference.result import Restoration
from src.inference.text_to_image import image_to_image, text_to_image

__all__ = [
    "FileCaptioner",
    "NoCaptioner",
    "Restoration",
    "RestoreOptions",
    "Restorer",
    "image_to_image",
    "text_to_image",
]
