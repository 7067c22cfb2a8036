"""`/v1/responses`: create a response, read it again, cancel it, delete it."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi import Response as HttpResponse

from engine.contract.operations import GENERATE
from engine.errors import InvalidParameter, UnsupportedFeature
from server.dependencies import ClientDep, StateDep
from server.http.home import fresh_digits
from server.http.json_route import JsonRoute
from server.http.log_fields import annotate
from server.http.owner import Owner, owner_of
from server.http.shape import encode
from server.operations.chat import answer_chat, answer_with_count, start_chat
from server.operations.exchange import Exchange
from server.protocol.answers import InputTokens, stream_answer, whole_answer
from server.protocol.response_items import Item
from server.protocol.responses import DeletedResponse, ItemList, Response, ResponseRequest
from server.responses.convert import chat_of
from server.responses.pages import After, Limit, Order, page_of
from server.responses.shape import ResponseShape
from server.state import AppState
from server.text.served import SERVED_TEXT

router = APIRouter(route_class=JsonRoute, tags=["text"])
bare_router = APIRouter(tags=["text"])
"""Router of requests without a body."""

ResponseId = Annotated[str, Path(max_length=256, description="The response's `id`.")]


@router.post(
    "/v1/responses",
    summary="Answer in items",
    responses=stream_answer(Response, "`response.*`", done=False),
)
@router.post("/responses", include_in_schema=False)
async def create_response(body: ResponseRequest, client: ClientDep) -> HttpResponse:
    """Answers whole, with server-sent events if `stream` is set, or later with `background`."""
    await asyncio.sleep(0)  # reading a long body took a while, and so will converting it
    request, state = client.request, client.state
    store, owner = state.responses, owner_of(request)
    model = (await client.find(GENERATE, body.model)).name
    stores = _stores(body, state)
    before = await _before(body, state, owner)
    chat = chat_of(body, before)
    unique = fresh_digits(32)

    def keep(response: Response) -> None:
        if stores:
            store.add(response, body.input, owner)
        if body.conversation is not None and response.status in ("completed", "incomplete"):
            state.conversations.add_later(body.conversation, body.input, response, owner)

    shape = ResponseShape(body, unique, model=model, stores=stores, on_end=keep)
    annotate(request, response_id=shape.response.id)
    client = client.with_sent(body, shape)
    if not body.background:
        return await answer_chat(chat, client)
    exchange = await Exchange.begin(SERVED_TEXT, chat, client)
    reply = await start_chat(exchange, chat)
    job = state.background_responses.start(shape, reply, owner)
    return _json(job.response(), exchange.headers)


@router.post(
    "/v1/responses/input_tokens",
    summary="Count a response's input tokens",
    responses=whole_answer(InputTokens),
)
@router.post("/responses/input_tokens", include_in_schema=False)
async def count_input_tokens(body: ResponseRequest, client: ClientDep) -> HttpResponse:
    """Counts the tokens of the input and of the conversation that it continues, as the model's chat
    template writes them."""
    await asyncio.sleep(0)
    before = await _before(body, client.state, owner_of(client.request))
    return await answer_with_count(chat_of(body, before), client.with_sent(body))


@bare_router.get(
    "/v1/responses/{response_id}",
    summary="A stored response",
    responses=whole_answer(Response, 401, 404),
)
async def get_response(
    response_id: ResponseId,
    request: Request,
    state: StateDep,
    stream: Annotated[bool, Query(description="Not supported.")] = False,
) -> HttpResponse:
    """Returns a response that is stored, or is being written in the background."""
    if stream:
        raise UnsupportedFeature(
            "stored responses cannot be streamed; leave stream out, and ask again until the "
            "response has ended",
            param="stream",
        )
    return _answer(response_id, request, state)


@bare_router.delete(
    "/v1/responses/{response_id}",
    summary="Forget a response",
    responses=whole_answer(DeletedResponse, 401, 404),
)
async def delete_response(
    response_id: ResponseId, request: Request, state: StateDep
) -> HttpResponse:
    """Deletes a response. One that is being written is cancelled first. Responses that continue it
    cannot be continued any more."""
    job = state.background_responses.get(response_id, owner_of(request))
    if job is not None:
        await state.background_responses.cancel(job)
    state.responses.delete(response_id, owner_of(request))
    return _json(DeletedResponse(id=response_id))


@bare_router.post(
    "/v1/responses/{response_id}/cancel",
    summary="Cancel a background response",
    responses=whole_answer(Response, 400, 401, 404),
)
async def cancel_response(
    response_id: ResponseId, request: Request, state: StateDep
) -> HttpResponse:
    """Cancels a background response. One that has already ended does not change."""
    job = state.background_responses.get(response_id, owner_of(request))
    if job is not None:
        await state.background_responses.cancel(job)
        return _json(job.response())
    if not state.responses.get(response_id, owner_of(request)).background:
        raise InvalidParameter(
            "only a response that was requested with background: true can be cancelled",
            param="response_id",
        )
    return _answer(response_id, request, state)


@bare_router.get(
    "/v1/responses/{response_id}/input_items",
    summary="What a response was made from",
    responses=whole_answer(ItemList, 400, 401, 404),
)
async def list_input_items(
    response_id: ResponseId,
    request: Request,
    state: StateDep,
    limit: Limit = 20,
    order: Order = "desc",
    after: After = None,
) -> HttpResponse:
    """Lists the conversation of a response, with the items of the responses that it continues."""
    if state.background_responses.get(response_id, owner_of(request)) is not None:
        raise InvalidParameter(
            "the response is still being written; ask again when it has ended",
            param="response_id",
        )
    items = state.responses.input_items(response_id, owner_of(request))
    return _json(page_of({item["id"]: item for item in items}, limit, order, after))


async def _before(body: ResponseRequest, state: AppState, owner: Owner | None) -> list[Item]:
    """What the request continues."""
    if body.conversation is not None:
        return await state.conversations.read(body.conversation, owner)
    return state.responses.conversation(body.previous_response_id, owner)


def _stores(body: ResponseRequest, state: AppState) -> bool:
    """Whether the response will be stored.

    Raises:
        InvalidParameter: the request needs that, and this server stores no responses.
    """
    if state.responses.is_on:
        return body.store is not False
    for name in ("previous_response_id", "background", "store"):
        if getattr(body, name):
            raise InvalidParameter(
                f"this server stores no responses, which {name} needs; leave it out, and send the "
                "whole conversation as input",
                param=name,
            )
    return False


def _answer(response_id: str, request: Request, state: AppState) -> HttpResponse:
    owner = owner_of(request)
    job = state.background_responses.get(response_id, owner)
    if job is not None:
        return _json(job.response())
    stored = state.responses.get(response_id, owner)
    return HttpResponse(stored.response, media_type="application/json")


def _json(answer: Any, headers: dict[str, str] | None = None) -> HttpResponse:
    return HttpResponse(encode(answer), media_type="application/json", headers=headers)
