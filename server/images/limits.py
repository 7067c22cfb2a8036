"""Sizes and budgets of image requests: finds the size of the result, and refuses what is too large.

All functions are pure; messages contain the computed numbers.
"""

import math
import re
from collections.abc import Sequence

from engine.contract.draw import ImageModelInfo, Outpaint, num_steps_at
from engine.contract.pixels import Pixels
from engine.errors import InvalidParameter

_SIZE = re.compile(r"([0-9]{1,6})[xX]([0-9]{1,6})")

Size = tuple[int, int]
"""Width and height in pixels."""


def parse_size(text: str | None, *, param: str = "size") -> Size | None:
    """The size in `WIDTHxHEIGHT`; None for auto, or if there is none.

    Raises:
        InvalidParameter: the text is neither a size nor auto.
    """
    if text is None or text == "auto":
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidParameter(
            f"{param} must be WIDTHxHEIGHT in pixels, such as 512x512, or auto", param=param
        )
    return int(match[1]), int(match[2])


def drawing_size(asked: Size | None, info: ImageModelInfo, *, param: str = "size") -> Size:
    """The size of an image that is drawn without an input image.

    Raises:
        InvalidParameter: it is outside the model's limits or off its grid.
    """
    width, height = asked or (info.default_width, info.default_height)
    _check_limits(width, height, info, param=param)
    multiple = info.size_multiple
    if width % multiple or height % multiple:
        raise InvalidParameter(
            f"size {width}x{height} does not fit {info.model}: both sides must be multiples of "
            f"{multiple}, such as {_near(width, height, info)}",
            param=param,
        )
    return width, height


def edited_size(asked: Size | None, image: Pixels, info: ImageModelInfo) -> Size:
    """The size of a result that follows an input image: the requested one, or the image's own,
    scaled to the model's limits with its aspect ratio.

    Raises:
        InvalidParameter: it is outside the model's limits, and no scale brings it inside.
    """
    if asked is not None:
        _check_limits(*asked, info)
        return asked
    width, height = image.width, image.height
    if min(width, height) >= info.min_side and worked_pixels(width, height, info) <= (
        info.max_pixels
    ):
        return width, height
    scale = max(1.0, info.min_side / min(width, height))
    scale = min(scale, math.sqrt(info.max_pixels / (width * height)))
    multiple = info.size_multiple
    width, height = (max(1, int(s * scale / multiple)) * multiple for s in (width, height))
    if min(width, height) < info.min_side or width * height > info.max_pixels:
        raise InvalidParameter(
            f"the image has {image.width}x{image.height} pixels, and {info.model} needs sides of "
            f"at least {info.min_side} and at most {info.max_pixels} pixels in total, which no "
            "scale gives it; crop it to a less extreme shape",
            param="image",
        )
    return width, height


def painted_size(
    asked: Size | None,
    image: Pixels,
    outpaint: Outpaint | None,
    info: ImageModelInfo,
    *,
    crop: bool,
    max_pixels: int,
) -> Size:
    """The size of an inpainted result: the requested one, or the image's, grown by `outpaint`.
    Nothing is scaled without request, because pixels outside the mask must come back unchanged.

    Args:
        crop: only the mask's surroundings go through the model, so the model's limits do not apply.
        max_pixels: the server's own limit.

    Raises:
        InvalidParameter: the size is outside the limits.
    """
    grow = outpaint or Outpaint()
    canvas = (image.width + grow.left + grow.right, image.height + grow.top + grow.bottom)
    width, height = asked or canvas
    for side_x, side_y in {canvas, (width, height)}:
        if side_x * side_y > max_pixels:
            raise InvalidParameter(
                f"the canvas of {side_x}x{side_y} has {side_x * side_y} pixels; the limit is "
                f"{max_pixels}; ask for a smaller one",
                param="outpaint" if outpaint else "size",
            )
    if min(width, height) < 1:
        raise InvalidParameter(
            f"size {width}x{height} is empty; both sides must be at least 1", param="size"
        )
    if not crop and worked_pixels(width, height, info) > info.max_pixels:
        raise InvalidParameter(
            f"the canvas of {width}x{height} takes {worked_pixels(width, height, info)} pixels in "
            f"{info.model}, whose limit is {info.max_pixels}; scale the image down, give a size, "
            "or use crop_to_mask",
            param="size" if asked is not None else "outpaint" if outpaint else "image",
        )
    return width, height


def worked_pixels(width: int, height: int, info: ImageModelInfo) -> int:
    """The pixels that the model works on: with an input image, the engine pads to the model's
    grid."""
    multiple = info.size_multiple
    width, height = (
        math.ceil(max(side, info.min_side) / multiple) * multiple for side in (width, height)
    )
    return width * height


def check_budget(passes: Sequence[tuple[int, int]], n: int, max_megapixel_steps: float) -> None:
    """Refuse a request that would hold the device for too long.

    Args:
        passes: pixels and steps of each pass over an image.

    Raises:
        InvalidParameter: pixels × steps × n is above the limit.
    """
    cost = sum(num_pixels * steps for num_pixels, steps in passes) * n / 1e6
    if cost > max_megapixel_steps:
        work = " and ".join(f"{num_pixels} pixels x {steps} steps" for num_pixels, steps in passes)
        raise InvalidParameter(
            f"{work} x {n} images are {cost:.1f} megapixel-steps; the limit is "
            f"{max_megapixel_steps:g} per request; lower size, num_inference_steps or n",
            param="size",
        )


def check_steps(num_steps: int, strength: float, *, param: str = "strength") -> None:
    """Check that the strength leaves a step to run.

    Raises:
        InvalidParameter: no step is left.
    """
    if num_steps_at(num_steps, strength) == 0:
        raise InvalidParameter(
            f"strength {strength:g} with {num_steps} steps runs none of them; raise strength to "
            f"at least {_rounded_up(1 / num_steps)}",
            param=param,
        )


def offered_scheduler(
    name: str | None, model: str, offered: Sequence[str], *, param: str = "scheduler"
) -> str | None:
    """Check that the model offers a scheduler, and return its name.

    Raises:
        InvalidParameter: the model has no such scheduler.
    """
    if name is None or name in offered:
        return name
    raise InvalidParameter(
        f"that scheduler is not offered for {model}; use one of {', '.join(offered)}", param=param
    )


def _rounded_up(value: float) -> float:
    """The value, rounded up to three decimals, which one can type."""
    return math.ceil(value * 1000) / 1000


def _check_limits(width: int, height: int, info: ImageModelInfo, *, param: str = "size") -> None:
    if min(width, height) < info.min_side:
        raise InvalidParameter(
            f"size {width}x{height} is too small for {info.model}: both sides must be at least "
            f"{info.min_side}, such as {_near(width, height, info)}",
            param=param,
        )
    num_pixels = worked_pixels(width, height, info)
    if num_pixels > info.max_pixels:
        raise InvalidParameter(
            f"size {width}x{height} takes {num_pixels} pixels in {info.model}, whose limit is "
            f"{info.max_pixels}; use a smaller size, such as {_near(width, height, info)}",
            param=param,
        )


def _near(width: int, height: int, info: ImageModelInfo) -> str:
    """A size that the model takes, as close to the given one as its grid and limits allow."""
    multiple = info.size_multiple
    least = math.ceil(info.min_side / multiple) * multiple
    scale = min(1.0, math.sqrt(info.max_pixels / max(1, width * height)))
    width, height = (max(least, int(s * scale) // multiple * multiple) for s in (width, height))
    # The shorter side may have grown to the smallest allowed.
    if width * height > info.max_pixels:
        longest = info.max_pixels // min(width, height) // multiple * multiple
        width, height = min(width, longest), min(height, longest)
    return f"{width}x{height}"
