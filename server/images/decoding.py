"""Decodes the picture files that clients upload; everything about them is taken from their content.

The libraries run where these functions are called: `server.images.pictures` calls them in processes
that may be lost.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from engine.contract.picture_facts import Crop, Resampling
from engine.contract.picture_sizes import Size
from engine.errors import InvalidParameter
from engine.pictures.crops import cut_crops
from server.images.exif import EXIF_COMMENT, read_comment
from server.images.header import IN_CHATS, UPLOADED, Format, broken, read_header

Array = npt.NDArray[np.uint8]
MaskMode = Literal["auto", "alpha", "luminance"]

_MAX_TEXT = 1 << 20
"""The most characters of text in a file: compressed, there may be a thousand times as many as the
file has bytes."""
_ORIENTATION = 0x0112

_UPRIGHT: Mapping[int, Callable[[Array], Array]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
"""Undoes each EXIF orientation (2 to 8; 1 is upright)."""

_LOW_BIT_STEP = {"1": 1, "L;2": 85, "L;4": 17}
"""Factors by which Pillow stretches few-bit greys to 8 bits; it does not stretch the value that
marks them transparent."""


# The caller's limits refuse pictures that are too large.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True, slots=True)
class _Planes:
    """A decoded file, upright: colours `[H, W, 3]` in sRGB and alpha `[H, W]`."""

    rgb: Array
    alpha: Array | None


def decode_image(data: bytes, *, param: str, max_pixels: int, max_side: int) -> Array:
    """A PNG, JPEG or WebP file as `[H, W, 3]` RGB, or as `[H, W, 4]` RGBA if it declares any
    transparency.

    EXIF rotation is applied. Colours become sRGB by an embedded ICC profile; a broken or
    mismatched profile, and PNG's gAMA and cHRM, are ignored. CMYK becomes RGB, 16 bits become 8.

    Args:
        param: the field that messages name.
        max_pixels, max_side: compared with the header, before anything is decoded.

    Raises:
        InvalidParameter: the file has another format, or is truncated, broken, animated or too
            large.
    """
    image = _opened(data, param, max_pixels, max_side)
    planes = _decoded(image, param, use_profile=True)
    if planes.alpha is None:
        return planes.rgb
    return np.dstack([planes.rgb, planes.alpha])


def decode_crops(
    data: bytes,
    crops: Sequence[Crop],
    resampling: Resampling,
    upright: Size,
    *,
    param: str,
    max_pixels: int,
    max_side: int,
) -> Array:
    """The pixels of a file's crops, one after the other, as `[P, 1, 3]`. They are made as
    transformers makes them: the picture is turned as EXIF says, transparency lies over white, and
    colour profiles are ignored.

    Args:
        upright: the width and height from which the crops were computed.

    Raises:
        InvalidParameter: as for `decode_image`; or the size is another one.
    """
    image = _opened(data, param, max_pixels, max_side, IN_CHATS)
    planes = _decoded(image, param, use_profile=False)
    picture = Image.fromarray(planes.rgb)
    if picture.size != upright:
        raise InvalidParameter(
            f"{param} is rotated by metadata that this server does not read; save it again",
            param=param,
        )
    if planes.alpha is not None:
        picture.putalpha(Image.fromarray(planes.alpha))
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture).convert("RGB")
    cut = cut_crops(np.asarray(picture), crops, resampling)
    return np.concatenate([crop.reshape(-1, 1, 3) for crop in cut])


def texts_of(data: bytes, *, param: str, max_pixels: int, max_side: int) -> dict[str, str]:
    """The texts in a file, by their names; of EXIF data only the user's comment, as `exif comment`.
    Nothing is decoded.

    Raises:
        InvalidParameter: as for `decode_image`, as far as the header shows it; or there is too much
            text.
    """
    image = _opened(data, param, max_pixels, max_side)
    found = {str(name): str(text) for name, text in image.info.items() if isinstance(text, str)}
    comment = read_comment(image)
    if comment is not None:
        found[EXIF_COMMENT] = comment
    length = sum(map(len, found.values()))
    if length > _MAX_TEXT:
        raise InvalidParameter(
            f"{param} contains {length} characters of text; at most {_MAX_TEXT} are read; remove "
            "some of it",
            param=param,
        )
    return found


def decode_mask(
    data: bytes,
    mode: MaskMode = "auto",
    *,
    inverts: bool = False,
    param: str = "mask",
    max_pixels: int,
    max_side: int,
) -> Array:
    """A mask file as `[H, W, 1]`, with 255 for pixels to edit.

    Args:
        mode: with `alpha`, transparent pixels are edited, as OpenAI defines it. With `luminance`,
            white pixels are edited, and transparent ones count as black. `auto` means alpha if the
            file has any transparency, else luminance.
        inverts: marked pixels are kept, and all others are edited.

    Raises:
        InvalidParameter: as for `decode_image`; it has no alpha channel with mode `alpha`; or no
            pixel is marked.
    """
    image = _opened(data, param, max_pixels, max_side)
    planes = _decoded(image, param, use_profile=False)
    is_transparent = planes.alpha is not None and bool((planes.alpha < 255).any())
    if mode == "alpha" and planes.alpha is None:
        raise InvalidParameter(
            f"{param} has no alpha channel, whose transparent pixels would mark what to edit; "
            "send a file with one, or set mask_mode to luminance",
            param=param,
        )
    if planes.alpha is not None and (mode == "alpha" or (mode == "auto" and is_transparent)):
        levels, meaning = 255 - planes.alpha, "transparent"
    else:
        levels = _luminance(planes)
        meaning = "transparent or white" if mode == "auto" else "white"
    if inverts and levels.min() == 255:
        raise InvalidParameter(
            f"{param} marks everything, so with invert_mask nothing is left to edit; leave out "
            "invert_mask, or mark less",
            param=param,
        )
    levels = 255 - levels if inverts else levels
    if not levels.any():
        raise InvalidParameter(
            f"{param} is empty: it has no {meaning} pixels, which mark what to edit; mark some",
            param=param,
        )
    return levels[..., None]


def decode_grey(data: bytes, *, param: str, max_pixels: int, max_side: int) -> Array:
    """A file as `[H, W, 1]` of luminance; transparent pixels count as black.

    Raises:
        InvalidParameter: as for `decode_image`.
    """
    image = _opened(data, param, max_pixels, max_side)
    return _luminance(_decoded(image, param, use_profile=False))[..., None]


def _opened(
    data: bytes,
    param: str,
    max_pixels: int,
    max_side: int,
    formats: tuple[Format, ...] = UPLOADED,
) -> Image.Image:
    """The file's header, checked; nothing is decoded yet."""
    header = read_header(
        data, param=param, max_pixels=max_pixels, max_side=max_side, formats=formats
    )
    try:
        image = Image.open(io.BytesIO(data), formats=[header.format])
    except Exception as error:  # Pillow lets through any error of its parsers.
        raise broken(param, header.format) from error
    if image.size != (header.width, header.height):
        raise broken(param, header.format)
    # JPEG files with several pictures (MPO) are stills: cameras store previews and depth there.
    if header.format != "JPEG" and getattr(image, "is_animated", False):
        raise InvalidParameter(f"{param} is animated; send a single picture", param=param)
    return image


def _decoded(image: Image.Image, param: str, *, use_profile: bool) -> _Planes:
    format = image.format or "image"
    tiles = getattr(image, "tile", None)
    raw_mode = str(tiles[0].args) if tiles else ""
    try:
        image.load()
        colour, alpha = _separated(image, raw_mode)
        profile = image.info.get("icc_profile") if use_profile else None
        rgb = np.asarray(_in_srgb(colour, profile))
        # Only now: in a PNG file EXIF may come last, so asking for it reads the whole file.
        orientation = _orientation(image)
        return _Planes(
            _upright(rgb, orientation), None if alpha is None else _upright(alpha, orientation)
        )
    except Exception as error:  # As above; the header was fine, but the rest is not.
        raise broken(param, format) from error


def _separated(image: Image.Image, raw_mode: str) -> tuple[Image.Image, Array | None]:
    """Colours in mode L, RGB or CMYK, and alpha `[H, W]` if the file has any."""
    key = image.info.get("transparency")
    if image.mode in ("P", "PA"):
        image = image.convert("RGB" if key is None and image.mode == "P" else "RGBA")
        key = None
    if image.mode in ("LA", "RGBA"):
        alpha = np.asarray(image.getchannel("A"))
        return image.convert("L" if image.mode == "LA" else "RGB"), alpha
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.uint32)
        grey = ((deep * 255 + 32767) // 65535).astype(np.uint8)
        return Image.fromarray(grey), None if key is None else _opaque_except(deep != key)
    colour = image.convert("L") if image.mode == "1" else image
    if key is None or colour.mode not in ("L", "RGB"):
        return colour, None
    levels = np.asarray(colour)
    if colour.mode == "L":
        return colour, _opaque_except(levels != key * _LOW_BIT_STEP.get(raw_mode, 1))
    # Pillow keeps the upper byte of 16-bit colours, so only that can be compared.
    key = [value >> 8 if raw_mode == "RGB;16B" else value for value in key]
    return colour, _opaque_except((levels != np.array(key)).any(axis=2))


def _opaque_except(is_opaque: npt.NDArray[np.bool_]) -> Array:
    return np.where(is_opaque, 255, 0).astype(np.uint8)


def _in_srgb(colour: Image.Image, profile: bytes | None) -> Image.Image:
    """The image in mode RGB. Without a usable profile for the image's own mode, its values are
    taken as sRGB."""
    space = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}.get(colour.mode)
    if profile and space:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            is_srgb = "srgb" in ImageCms.getProfileDescription(source).lower()
            if source.profile.xcolor_space.strip() == space and not is_srgb:
                target = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(colour, source, target, outputMode="RGB")
                assert converted is not None
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    return colour if colour.mode == "RGB" else colour.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Broken EXIF does not make the picture unreadable.
        return 1


def _upright(array: Array, orientation: int) -> Array:
    turn = _UPRIGHT.get(orientation)
    return array if turn is None else turn(array)


def _luminance(planes: _Planes) -> Array:
    levels = np.asarray(Image.fromarray(planes.rgb).convert("L"))
    if planes.alpha is None:
        return levels
    weighted = levels.astype(np.uint16) * planes.alpha
    return ((weighted + 127) // 255).astype(np.uint8)
