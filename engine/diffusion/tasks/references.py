"""Brings reference images to the sizes at which a model sees them."""

import numpy as np
import torch
from PIL import Image

from engine.contract.pixels import Pixels
from engine.contract.reference_images import ReferenceFacts
from engine.diffusion.prompt.text import PromptImage
from engine.errors import InvalidParameter
from engine.pictures.alpha import flatten
from engine.pictures.arrays import array_of
from engine.pictures.tensors import to_signed


def reference_tensor(image: Pixels, facts: ReferenceFacts) -> torch.Tensor:
    """An image over white as `[1, 3, H, W]` in [-1, 1], scaled with Lanczos' filter and cut to the
    model's grid, like diffusers' pipelines do it.

    Raises:
        InvalidParameter: it is not a colour image, or has a size that the model cannot use.
    """
    if image.channels not in (3, 4):
        raise InvalidParameter(
            f"image has {image.channels} channels; it must be RGB or RGBA", param="image"
        )
    scaled = facts.scaled_size(image.width, image.height)
    width, height = facts.size_of(image.width, image.height)
    picture = Image.fromarray(flatten(array_of(image)))
    if picture.size != scaled:
        picture = picture.resize(scaled, Image.Resampling.LANCZOS)
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    return to_signed(np.asarray(picture)[top : top + height, left : left + width])


def prompt_image(image: Pixels, facts: ReferenceFacts) -> PromptImage:
    """An image over white at the size at which the text encoder sees it."""
    picture = Image.fromarray(flatten(array_of(image)))
    size = facts.size_near(facts.prompt_pixels, image.width, image.height)
    scaled = picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
    return PromptImage(*size, scaled.tobytes())
