"""The page that describes the API, and its files. The browser may load nothing from other sites."""

import gzip
from functools import cache
from importlib import resources

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

CONTENT_TYPES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "start.js": "text/javascript",
}
"""The files of the page; large ones are stored packed."""

_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ONE_HOUR = {"Cache-Control": "private, max-age=3600"}

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def show_docs() -> Response:
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
    return Response(_read("index.html"), media_type="text/html", headers=headers)


@router.get("/docs/{name}")
async def send_file_of_docs(name: str, request: Request) -> Response:
    if name not in CONTENT_TYPES:
        raise HTTPException(404)
    headers = {"X-Content-Type-Options": "nosniff", **_ONE_HOUR}
    packed = _read_packed(name)
    if packed is None:
        content = _read(name)
    elif "gzip" in request.headers.get("accept-encoding", ""):
        content = packed
        headers["Content-Encoding"] = "gzip"
    else:
        content = gzip.decompress(packed)
    return Response(content, media_type=CONTENT_TYPES[name], headers=headers)


@cache
def _read(name: str) -> bytes:
    return (resources.files("server.docs_page") / name).read_bytes()


@cache
def _read_packed(name: str) -> bytes | None:
    file = resources.files("server.docs_page") / f"{name}.gz"
    return file.read_bytes() if file.is_file() else None
