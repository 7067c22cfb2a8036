"""Results that were asked for by `url`: in memory, bounded in bytes and in time.

The name is the secret: 192 random bits, served without an API key. Event loop only.
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import InvalidParameter


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A file as it was encoded; `expires_s` on the store's clock."""

    data: bytes
    media_type: str
    expires_s: float


class ImageStore:
    """Invariant: the files together have at most `max_bytes`. The oldest make room for new ones.

    Args:
        max_bytes: 0 switches the store off.
    """

    def __init__(
        self, *, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._ttl_s = ttl_s
        self._clock = clock
        self._files: OrderedDict[str, StoredImage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    def check_room(self, num_images: int, num_pixels: int) -> None:
        """Refuse what might not fit, before it is drawn. Assumes that nothing compresses.

        Raises:
            InvalidParameter: the store is off, or too small for one request's images.
        """
        if self.max_bytes == 0:
            raise InvalidParameter(
                "this server keeps no images; use response_format b64_json",
                param="response_format",
            )
        needed = num_images * num_pixels * 4
        if needed > self.max_bytes:
            raise InvalidParameter(
                f"{num_images} images of {num_pixels} pixels may take {needed} bytes; this server "
                f"keeps {self.max_bytes}; use response_format b64_json, or ask for less",
                param="response_format",
            )

    def put(self, data: bytes, output_format: str) -> str:
        """Keep a file; returns its name."""
        self._drop_expired()
        while self._files and self.num_bytes + len(data) > self.max_bytes:
            self._drop(next(iter(self._files)))
        name = f"{secrets.token_hex(24)}.{output_format}"
        expires_s = self._clock() + self._ttl_s
        self._files[name] = StoredImage(data, f"image/{output_format}", expires_s)
        self.num_bytes += len(data)
        return name

    def get(self, name: str) -> StoredImage | None:
        """The file of that name, or None if there is none, or none any more."""
        self._drop_expired()
        return self._files.get(name)

    def seconds_left(self, stored: StoredImage) -> int:
        """Whole seconds until a file expires."""
        return max(0, int(stored.expires_s - self._clock()))

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._files:
            name, stored = next(iter(self._files.items()))
            if stored.expires_s > now:
                return
            self._drop(name)

    def _drop(self, name: str) -> None:
        self.num_bytes -= len(self._files.pop(name).data)
