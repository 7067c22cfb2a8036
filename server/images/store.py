"""Keeps results that were requested with `url`: in memory, bounded in bytes and in time.

A file's name is the secret: it has 192 random bits and works without an API key. Event loop only.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import InvalidParameter
from server.http.expiring import ExpiringTable
from server.http.home import fresh_digits

Keep = Callable[[bytes], str]
"""Stores a file and returns its URL."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An encoded file."""

    data: bytes
    media_type: str


class ImageStore:
    """Stored files.

    Invariant: the files together have at most `max_bytes`. The oldest make room for new ones.

    Args:
        max_bytes: 0 switches the store off.
    """

    def __init__(
        self, *, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_bytes = max_bytes
        self._files: ExpiringTable[StoredImage] = ExpiringTable(
            max_bytes=max_bytes, ttl_s=ttl_s, clock=clock
        )

    def __len__(self) -> int:
        return len(self._files)

    @property
    def num_bytes(self) -> int:
        return self._files.num_bytes

    def check_room(self, num_images: int, num_pixels: int) -> None:
        """Refuse images that might not fit, before they are drawn. Assumes that nothing compresses.

        Raises:
            InvalidParameter: the store is off, or too small for one request's images.
        """
        if self.max_bytes == 0:
            raise InvalidParameter(
                "this server stores no images; use response_format b64_json",
                param="response_format",
            )
        needed = num_images * num_pixels * 4
        if needed > self.max_bytes:
            raise InvalidParameter(
                f"{num_images} images of {num_pixels} pixels may take {needed} bytes; this server "
                f"stores at most {self.max_bytes} bytes; use response_format b64_json, or ask for "
                "fewer or smaller images",
                param="response_format",
            )

    def put(self, data: bytes, output_format: str) -> str:
        """Keep a file and return its name."""
        name = f"{fresh_digits(48)}.{output_format}"
        self._files.put(name, StoredImage(data, f"image/{output_format}"), len(data))
        return name

    def get(self, name: str) -> StoredImage | None:
        """The file of that name, or None if there is none, or it has expired."""
        return self._files.get(name)

    def seconds_left(self, name: str) -> int:
        """Whole seconds until a file expires."""
        return self._files.seconds_left(name)
