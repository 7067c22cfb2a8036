"""The files of a page: those of a package that a browser may read. Large ones are stored packed."""

import gzip
from functools import cached_property
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

_CONTENT_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_PACKED = ".gz"


class PageFiles:
    """The files of one package, by their paths in it.

    Args:
        policy: the Content-Security-Policy of its HTML.
    """

    def __init__(self, package: str, policy: str) -> None:
        self._package = package
        self._policy = policy
        self._read: dict[str, tuple[bytes, str]] = {}

    @cached_property
    def _files(self) -> dict[str, Traversable]:
        found = _walk(resources.files(self._package), "")
        names = {name.removesuffix(_PACKED): file for name, file in found.items()}
        return {k: v for k, v in names.items() if PurePosixPath(k).suffix in _CONTENT_TYPES}

    @property
    def names(self) -> list[str]:
        return sorted(self._files)

    def answer(self, name: str, request: Request) -> Response:
        """Send a file; only its tag, if the browser has this version of it.

        Raises:
            HTTPException: 404; there is no such file.
        """
        if name not in self._files:
            raise HTTPException(404)
        packed, tag = self._read.get(name) or self._pack(name)
        content_type = _CONTENT_TYPES[PurePosixPath(name).suffix]
        headers = {
            "Cache-Control": "private, no-cache",
            "ETag": tag,
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
        }
        if content_type == "text/html":
            headers |= {"Content-Security-Policy": self._policy, "Referrer-Policy": "no-referrer"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(
                packed, media_type=content_type, headers=headers | {"Content-Encoding": "gzip"}
            )
        return Response(gzip.decompress(packed), media_type=content_type, headers=headers)

    def _pack(self, name: str) -> tuple[bytes, str]:
        file = self._files[name]
        content = file.read_bytes()
        packed = content if file.name.endswith(_PACKED) else gzip.compress(content, 6, mtime=0)
        self._read[name] = packed, f'"{sha256(packed).hexdigest()[:32]}"'
        return self._read[name]


def _walk(folder: Traversable, prefix: str) -> dict[str, Traversable]:
    found: dict[str, Traversable] = {}
    for file in folder.iterdir():
        if file.is_dir():
            found |= _walk(file, f"{prefix}{file.name}/")
        else:
            found[prefix + file.name] = file
    return found
