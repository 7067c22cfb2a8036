"""Converts `Pixels` to and from numpy arrays and tensors."""

import numpy as np
import numpy.typing as npt
import torch

from engine.contract.pixels import Pixels
from engine.errors import InvalidParameter

Bytes = npt.NDArray[np.uint8]
"""Bytes `[H, W, C]`, or `[H, W]` for masks and weights."""

_WHITE = 255


def to_array(pixels: Pixels, *, param: str = "image") -> Bytes:
    """A read-only view `[H, W, C]` of the bytes.

    Raises:
        InvalidParameter: there are no pixels, or the number of bytes does not fit the size.
    """
    shape = (pixels.height, pixels.width, pixels.channels)
    if min(shape) < 1:
        raise InvalidParameter(f"{param} has no pixels ({_size(pixels)})", param=param)
    expected = pixels.height * pixels.width * pixels.channels
    if len(pixels.data) != expected:
        raise InvalidParameter(
            f"{param} of {_size(pixels)} px and {pixels.channels} channels has "
            f"{len(pixels.data)} bytes; it must have {expected}",
            param=param,
        )
    return np.frombuffer(pixels.data, dtype=np.uint8).reshape(shape)


def from_array(array: Bytes) -> Pixels:
    """The picture of an array: the inverse of `to_array`."""
    height, width, channels = array.shape
    return Pixels(width=width, height=height, channels=channels, data=array.tobytes())


def array_to_tensor(rgb: Bytes) -> torch.Tensor:
    """Convert RGB bytes `[H, W, 3]` to `[1, 3, H, W]` fp32 in [-1, 1], as in diffusers."""
    planes = torch.from_numpy(rgb.transpose(2, 0, 1).copy())
    return (planes.float() / 255.0 * 2.0 - 1.0)[None]


def from_tensor(image: torch.Tensor) -> Pixels:
    """Convert `[3, H, W]` in [-1, 1] to RGB, rounded to the nearest level and clipped."""
    levels = ((image.detach().float() / 2 + 0.5).clamp(0, 1) * 255).round()
    interleaved = levels.to(torch.uint8).permute(1, 2, 0).contiguous()
    return from_array(interleaved.cpu().numpy())


def flatten(array: Bytes, background: int = _WHITE) -> Bytes:
    """Convert `[H, W, C]` to RGB, with RGBA over a grey level; opaque pixels keep their bytes.

    Colours under full transparency are undefined in most files, so the model must not see them.
    """
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    if array.shape[2] == 3:
        return array
    alpha = array[..., 3:].astype(np.uint16)
    mixed = array[..., :3] * alpha + background * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _size(pixels: Pixels) -> str:
    return f"{pixels.width}x{pixels.height}"
