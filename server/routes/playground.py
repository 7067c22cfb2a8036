"""The playground at `/`, and its files. The browser may load nothing from other sites, and runs no
scripts but these files."""

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from server.dependencies import StateDep
from server.http.page_files import PageFiles
from server.http.shape import encode

FILES = PageFiles(
    "server.playground",
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify",
)

router = APIRouter(include_in_schema=False)


@router.get("/")
async def root(request: Request, state: StateDep) -> Response:
    """The playground for a browser, or the page of the API if the playground is off; a line for
    clients that ask here whether there is a server, as Ollama's do."""
    if "text/html" not in request.headers.get("accept", ""):
        text = "Tandem is running; /docs describes its API.\n"
        return Response(text, media_type="text/plain", headers={"Vary": "Accept"})
    if state.settings.playground:
        answer = FILES.answer("index.html", request)
        answer.headers["Vary"] = "Accept, Accept-Encoding"
        return answer
    return RedirectResponse(request.scope.get("root_path", "").rstrip("/") + "/docs")


@router.get("/v1/playground/presets")
async def list_presets(state: StateDep) -> Response:
    """The operator's presets. Unlike the page's files, they ask for a key."""
    return Response(encode(state.playground_presets), media_type="application/json")


@router.get("/playground/{name:path}")
async def send_file_of_playground(name: str, request: Request, state: StateDep) -> Response:
    if not state.settings.playground:
        raise HTTPException(404)
    return FILES.answer(name, request)
