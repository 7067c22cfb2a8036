"""Ollama's routes, `/api/...`."""

import time
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from engine.contract.generate import ModelInfo
from engine.contract.operations import EMBED, GENERATE
from engine.contract.status import Phase
from engine.errors import InvalidParameter
from engine.version import __version__
from server.catalog import config_of, each_name, find_any_model, find_model
from server.dependencies import ClientDep, StateDep
from server.dialects.dialect import Dialect, openai_body, responses
from server.dialects.ollama.convert import (
    chat_body,
    generate_chat_body,
    raw_body,
    served_name,
)
from server.dialects.ollama.models import AnyTextInfo, MemoryHeld, described, listed, running
from server.dialects.ollama.protocol import (
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaPullRequest,
    OllamaShowRequest,
    TextFields,
)
from server.dialects.ollama.shape import LINES, OllamaShape, error_shape, loaded
from server.embeddings.answers import plain_embeddings
from server.embeddings.convert import Embedded
from server.embeddings.inputs import Inputs
from server.http.json_route import JsonRoute
from server.http.shape import encode
from server.http.sse import until_disconnect
from server.operations.chat import answer_chat
from server.operations.completion import answer_completion
from server.operations.embed import answer_embeddings
from server.protocol.embeddings import EmbeddingsRequest
from server.state import AppState, ClientRequest


class _Route(JsonRoute):
    """Routes that accept undeclared bodies. Ollama never checks a body's declared type, so its
    examples for curl and some clients do not declare JSON. Pages of other sites need not either,
    but a browser's headers show that a page asked."""

    def check_declared(self, request: Request) -> None:
        is_by_page = any(name in request.headers for name in _SENT_BY_BROWSERS)
        if is_by_page or request.headers.get("content-type", "") not in _UNDECLARED:
            super().check_declared(request)


router = APIRouter(route_class=_Route, tags=["Ollama"])

_JSON = "application/json"
_OLLAMA_VERSION = "0.12.11"
_ALL_THAT_FIT = -1
_SENT_BY_BROWSERS = ("origin", "referer", "sec-fetch-site")
_UNDECLARED = ("", "application/x-www-form-urlencoded", "application/octet-stream")
"""Types that curl, and aiohttp in LiteLLM, send for a body without a set type."""
_answers = partial(responses, failure={"error": "..."})


@router.post(
    "/api/chat",
    summary="Answer a conversation",
    responses=_answers(
        {"message": {"role": "assistant", "content": "..."}}, stream_type=LINES.media_type
    ),
)
async def chat(body: OllamaChatRequest, client: ClientDep) -> Response:
    """Answers line by line, or whole with `stream: false`."""
    model = served_name(client.state.engine, body.model)
    info = await client.find(GENERATE, model)
    if not body.messages:
        return await _changed(body, client, info, "message")
    shape = OllamaShape(body.model or info.name, "message")
    return await answer_chat(chat_body(body, model), client.with_sent(body, shape))


@router.post(
    "/api/generate",
    summary="Answer or continue a prompt",
    responses=_answers({"response": "..."}, stream_type=LINES.media_type),
)
async def generate(body: OllamaGenerateRequest, client: ClientDep) -> Response:
    """Answers line by line, or whole with `stream: false`."""
    model = served_name(client.state.engine, body.model)
    info = await client.find(GENERATE, model)
    if not body.prompt:
        return await _changed(body, client, info, "response")
    shape = OllamaShape(body.model or info.name, "response")
    if body.raw or not (await client.state.texts.get(info)).has_chat_template:
        openai = raw_body(body, model)
        return await answer_completion(openai, client.with_sent(body, shape))
    openai_chat = generate_chat_body(body, model)
    return await answer_chat(openai_chat, client.with_sent(body, shape))


@router.post("/api/embed", summary="Embed texts", responses=_answers({"embeddings": [[0.1, 0.2]]}))
async def embed_texts(body: OllamaEmbedRequest, client: ClientDep) -> Response:
    """Returns one embedding per text, in the order of the texts."""
    start_ns = time.perf_counter_ns()
    model = served_name(client.state.engine, body.model)

    async def write(embedded: Embedded) -> bytes:
        answer = {
            "model": body.model or embedded.request.model,
            "embeddings": await plain_embeddings(embedded),
            "total_duration": time.perf_counter_ns() - start_ns,
            "load_duration": 0,
            "prompt_eval_count": embedded.num_tokens,
        }
        return encode(answer)

    fields = {"model": model, "input": body.input, "dimensions": body.dimensions}
    openai = openai_body(EmbeddingsRequest, {**fields, "ttl": body.idle_s})
    inputs = Inputs({"input": body.input})
    return await answer_embeddings(
        openai,
        inputs,
        write,
        client.with_sent(body),
        dimensions=body.dimensions,
        keep=None if body.truncate is False else _ALL_THAT_FIT,
    )


@router.post(
    "/api/embeddings", summary="Embed a text", responses=_answers({"embedding": [0.1, 0.2]})
)
async def embed_text(body: OllamaEmbeddingsRequest, client: ClientDep) -> Response:
    """Returns the embedding of one text, for clients that do not use `/api/embed`."""
    model = served_name(client.state.engine, body.model)

    async def write(embedded: Embedded) -> bytes:
        [numbers] = await plain_embeddings(embedded)
        return encode({"embedding": numbers})

    openai = openai_body(
        EmbeddingsRequest, {"model": model, "input": body.prompt, "ttl": body.idle_s}
    )
    inputs = Inputs({"prompt": [body.prompt]})
    return await answer_embeddings(
        openai, inputs, write, client.with_sent(body), keep=_ALL_THAT_FIT
    )


@router.get("/api/tags", summary="List the models", responses=_answers({"models": []}))
async def tags(state: StateDep) -> dict[str, Any]:
    """Lists the models that requests can use now for text or embeddings."""
    return {"models": [listed(info) for info in _infos(state)]}


@router.get("/api/ps", summary="List the loaded models", responses=_answers({"models": []}))
async def ps(state: StateDep) -> dict[str, Any]:
    """Lists the models of `/api/tags` that are awake, the memory that they hold, and when they will
    sleep."""
    awake = {one.model: one for one in state.engine.statuses() if one.phase is Phase.READY}
    held = {
        model: MemoryHeld(*(sum(_bytes_of(state, model, on_gpu)) for on_gpu in (False, True)))
        for model in awake
    }
    return {
        "models": [
            running(info, awake[info.model], held[info.model])
            for info in _infos(state)
            if info.model in awake
        ]
    }


@router.post("/api/show", summary="Describe a model", responses=_answers({"model_info": {}}))
async def show(body: OllamaShowRequest, state: StateDep) -> dict[str, Any]:
    """Returns a model's chat template, its context length and what it can do."""
    name = served_name(state.engine, body.model or body.name)
    info = find_any_model(state.engine, name) if name else find_model(state.engine, None)
    if not isinstance(info, AnyTextInfo):
        raise InvalidParameter(
            f"{info.model} is not a model for text or embeddings; name one that is", param="model"
        )
    text = await state.texts.get(info)
    template = text.tokenizer.chat_template
    chat_format = text.chat_format(config_of(state.engine, info.model)) if template else None
    return described(info, template, chat_format)


@router.post(
    "/api/pull",
    summary="Have a model",
    responses=_answers({"status": "success"}, stream_type=LINES.media_type),
)
async def pull(body: OllamaPullRequest, state: StateDep) -> Response:
    """Fetches nothing: a served model counts as fetched, any other is a 404."""
    name = served_name(state.engine, body.model or body.name)
    if not name:
        raise InvalidParameter("model is required; name a served model", param="model")
    find_any_model(state.engine, name)
    done = encode({"status": "success"})
    if body.stream is False:
        return Response(done, media_type=_JSON)
    return Response(done + b"\n", media_type=LINES.media_type)


@router.get("/api/version", summary="The server's version", responses=_answers({"version": "1.0"}))
async def version() -> dict[str, str]:
    """Returns the version of Ollama whose fields these routes have, by which clients decide what to
    send; `tandem` is our own version."""
    return {"version": _OLLAMA_VERSION, "tandem": __version__}


async def _changed(
    body: TextFields, client: ClientRequest, info: ModelInfo, holds: Literal["message", "response"]
) -> Response:
    """The answer to a request without a text: it wakes the model or, with a `keep_alive` of 0, lets
    it sleep."""
    engine, idle_s = client.state.engine, body.idle_s
    if idle_s is not None and client.may_manage:
        engine.keep_alive(info.model, idle_s)
    is_over = idle_s == 0
    if not is_over:
        await until_disconnect(client.request.receive, engine.wake(info.model))
    answer = loaded(body.model or info.name, holds, "unload" if is_over else "load")
    return Response(answer, media_type=_JSON)


def _bytes_of(state: AppState, model: str, on_gpu: bool) -> list[int]:
    """The bytes that a model holds on each device of that kind."""
    return [
        memory.held_bytes.get(model, 0)
        for memory in state.engine.memory()
        if memory.device.startswith("cuda") is on_gpu
    ]


def _infos(state: AppState) -> list[AnyTextInfo]:
    """One entry for each name that requests can use."""
    made_for = state.engine.made_for
    return each_name([*made_for(GENERATE), *made_for(EMBED)])


OLLAMA = Dialect(
    router=router,
    failures=("/api/", error_shape),
    bodies={
        OllamaChatRequest: GENERATE,
        OllamaGenerateRequest: GENERATE,
        OllamaEmbedRequest: EMBED,
        OllamaEmbeddingsRequest: EMBED,
    },
)
