"""EXIF's field for a comment, where A1111 and this server write how a picture was made."""

from PIL import Image

EXIF_COMMENT = "exif comment"
"""A1111's name for the comment among the texts of a file."""

_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_UNICODE = b"UNICODE\0"


def write_comment(exif: Image.Exif, text: str) -> None:
    """Put the comment into the EXIF data of a file to be written."""
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _UNICODE + text.encode("utf-16-be")


def read_comment(image: Image.Image) -> str | None:
    """The comment in a file's EXIF data, as `write_comment` writes it; None if it cannot be
    read."""
    try:
        comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except Exception:  # Pillow lets through any error of its parsers.
        return None
    if not isinstance(comment, bytes) or not comment.startswith(_UNICODE):
        return None
    return comment.removeprefix(_UNICODE).decode("utf-16-be", "replace")
