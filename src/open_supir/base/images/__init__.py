"""Photographs in and out, and tensors of pixels."""

from open_supir.base.images.listing import list_images
from open_supir.base.images.read import Photo, read_image, read_photo
from open_supir.base.images.tensors import resize, to_signed, to_uint8, to_unit

__all__ = [
    "Photo",
    "list_images",
    "read_image",
    "read_photo",
    "resize",
    "to_signed",
    "to_uint8",
    "to_unit",
]
