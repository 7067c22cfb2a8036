"""Checks an image request before anything of its size is allocated."""

import re

from engine.contract.draw import ImageParams, ImageRequest, InpaintParams, Outpaint
from engine.contract.pixels import Pixels
from engine.errors import InvalidParameter

MAX_CANVAS_PIXELS = 1 << 26
"""The most pixels of an image that is drawn only in part (`crop_to_mask`), or before resizing."""
_JOINS_EDITS = re.compile(r"\b(and|then)\b", re.IGNORECASE)


def check_request(request: ImageRequest) -> None:
    """Check that the fields of a request with an input image agree, and that sizes fit into memory.

    Raises:
        InvalidParameter: a field is wrong; the message names it.
    """
    params = request.params
    if len(request.images) != 1:
        raise InvalidParameter(
            f"there are {len(request.images)} input images; {params.task} takes one", param="image"
        )
    image = request.images[0]
    if image.channels not in (3, 4):
        raise InvalidParameter(
            f"image has {image.channels} channels; it must be RGB or RGBA", param="image"
        )
    params.check(has_mask=request.mask is not None)
    _check_canvas(image, params)


def _check_canvas(image: Pixels, params: ImageParams) -> None:
    """Check the size of the canvas before anything of that size is allocated."""
    grow = (isinstance(params, InpaintParams) and params.outpaint) or Outpaint()
    canvas_pixels = (image.width + grow.left + grow.right) * (image.height + grow.top + grow.bottom)
    if min(params.width, params.height) < 1:
        raise InvalidParameter(
            f"size is {params.width}x{params.height}; both must be at least 1", param="size"
        )
    for pixels, what in ((canvas_pixels, "canvas"), (params.width * params.height, "result")):
        if pixels > MAX_CANVAS_PIXELS:
            raise InvalidParameter(
                f"the {what} has {pixels} pixels; at most {MAX_CANVAS_PIXELS} are allowed",
                param="outpaint" if what == "canvas" else "size",
            )


def check_one_edit(instruction: str) -> None:
    """Check an instruction for a model that does one edit at a time.

    Raises:
        InvalidParameter: the instruction joins two edits.
    """
    joining = _JOINS_EDITS.search(instruction)
    if joining is not None:
        raise InvalidParameter(
            f"the instruction joins two edits with {joining[0]!r}, and this model does one edit at "
            f"a time; send a request for each, the second with the first one's picture",
            param="prompt",
        )
