"""The page that describes the API, and its files. The browser may load nothing from other sites."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.http.page_files import PageFiles

FILES = PageFiles(
    "server.docs_page",
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def show_docs(request: Request) -> Response:
    return FILES.answer("index.html", request)


@router.get("/docs/{name}")
async def send_file_of_docs(name: str, request: Request) -> Response:
    return FILES.answer(name, request)
