"""Inference: restore images, caption them, and sample from the prior."""

from src.inference.captioner import FileCaptioner, NoCaptioner
from src.inference.restorer import Restoration, Restorer
from src.inference.text_to_image import image_to_image, text_to_image

__all__ = [
    "FileCaptioner",
    "NoCaptioner",
    "Restoration",
    "Restorer",
    "image_to_image",
    "text_to_image",
]
