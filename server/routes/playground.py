"""The playground at `/`, and its files. The browser may load nothing from other sites, and runs no
scripts but these files."""

import asyncio

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from engine.errors import UnknownConversation, UnsupportedFeature
from server.chat_history import ChatHistory
from server.dependencies import StateDep
from server.http.owner import owner_of
from server.http.page_files import PageFiles
from server.http.shape import encode
from server.state import AppState

FILES = PageFiles(
    "server.playground",
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify",
)

_HISTORY = "/v1/playground/conversations"

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


@router.get("/v1/playground")
async def describe_playground(state: StateDep) -> Response:
    """What the operator has set for the page. Unlike its files, this asks for a key."""
    facts = {"presets": state.playground_presets, "keeps_history": state.chat_history.is_on}
    return _json(facts)


@router.get(_HISTORY)
async def list_conversations(request: Request, state: StateDep) -> Response:
    """The conversations that the server keeps for the key's owner, newest first."""
    history, owner = _history(state), owner_of(request)
    found = await asyncio.to_thread(history.summaries, owner)
    deleted = await asyncio.to_thread(history.deleted, owner)
    return _json({"object": "list", "data": found, "deleted": deleted})


@router.get(_HISTORY + "/{conversation_id}")
async def get_conversation(conversation_id: str, request: Request, state: StateDep) -> Response:
    history = _history(state)
    found = await asyncio.to_thread(history.read, conversation_id, owner_of(request))
    if found is None:
        raise UnknownConversation("no conversation with this id is kept here", param="id")
    return Response(found, media_type="application/json")


@router.put(_HISTORY + "/{conversation_id}")
async def keep_conversation(conversation_id: str, request: Request, state: StateDep) -> Response:
    history, body = _history(state), await request.body()
    await asyncio.to_thread(history.write, conversation_id, body, owner_of(request))
    return Response(status_code=204)


@router.delete(_HISTORY + "/{conversation_id}")
async def delete_conversation(conversation_id: str, request: Request, state: StateDep) -> Response:
    await asyncio.to_thread(_history(state).delete, conversation_id, owner_of(request))
    return Response(status_code=204)


@router.get("/playground/{name:path}")
async def send_file_of_playground(name: str, request: Request, state: StateDep) -> Response:
    if not state.settings.playground:
        raise HTTPException(404)
    return FILES.answer(name, request)


def _history(state: AppState) -> ChatHistory:
    if not state.chat_history.is_on:
        raise UnsupportedFeature("no conversations are kept here; set --conversations-dir")
    return state.chat_history


def _json(answer: object) -> Response:
    return Response(encode(answer), media_type="application/json")
