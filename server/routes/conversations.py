"""`/v1/conversations`: begin a conversation, read and change it and its items, delete it."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Request
from fastapi import Response as HttpResponse

from engine.errors import UnknownConversation
from server.dependencies import StateDep
from server.http.json_route import JsonRoute
from server.http.owner import owner_of
from server.http.shape import encode
from server.protocol.answers import whole_answer
from server.protocol.conversations import (
    ConversationCard,
    ConversationChange,
    DeletedConversation,
    NewConversation,
    NewItems,
)
from server.protocol.responses import ItemList
from server.responses.conversations import Conversation
from server.responses.pages import After, Limit, Order, page_of

router = APIRouter(route_class=JsonRoute, tags=["text"])

ConversationId = Annotated[str, Path(max_length=256, description="The conversation's `id`.")]
ItemId = Annotated[str, Path(max_length=256, description="The item's `id`.")]

_ONE = "/v1/conversations/{conversation_id}"
_ITEM = _ONE + "/items/{item_id}"


@router.post(
    "/v1/conversations",
    summary="Begin a conversation",
    responses=whole_answer(ConversationCard, 400, 401),
)
async def create_conversation(
    body: NewConversation, request: Request, state: StateDep
) -> HttpResponse:
    """Begins a conversation, which responses then continue by its id."""
    items, metadata = body.items or [], body.metadata or {}
    return _card(await state.conversations.create(items, metadata, owner_of(request)))


@router.get(_ONE, summary="A conversation", responses=whole_answer(ConversationCard, 401, 404))
async def get_conversation(
    conversation_id: ConversationId, request: Request, state: StateDep
) -> HttpResponse:
    """Returns a conversation without its items."""
    return _card(await state.conversations.get(conversation_id, owner_of(request)))


@router.post(
    _ONE, summary="Change a conversation", responses=whole_answer(ConversationCard, 400, 401, 404)
)
async def update_conversation(
    conversation_id: ConversationId, body: ConversationChange, request: Request, state: StateDep
) -> HttpResponse:
    """Replaces a conversation's metadata."""

    def change(one: Conversation) -> None:
        one.head.metadata = body.metadata or {}

    return _card(await state.conversations.change(conversation_id, owner_of(request), change))


@router.delete(
    _ONE,
    summary="Delete a conversation",
    responses=whole_answer(DeletedConversation, 401, 404),
)
async def delete_conversation(
    conversation_id: ConversationId, request: Request, state: StateDep
) -> HttpResponse:
    """Deletes a conversation and its items. Stored responses of it stay."""
    await state.conversations.delete(conversation_id, owner_of(request))
    return _json(DeletedConversation(id=conversation_id))


@router.get(
    _ONE + "/items",
    summary="A conversation's items",
    responses=whole_answer(ItemList, 400, 401, 404),
)
async def list_conversation_items(
    conversation_id: ConversationId,
    request: Request,
    state: StateDep,
    limit: Limit = 20,
    order: Order = "desc",
    after: After = None,
) -> HttpResponse:
    """Lists the items of a conversation, a page at a time."""
    conversation = await state.conversations.get(conversation_id, owner_of(request))
    return _json(page_of(_named(conversation.items), limit, order, after))


@router.post(
    _ONE + "/items",
    summary="Add items to a conversation",
    responses=whole_answer(ItemList, 400, 401, 404),
)
async def create_conversation_items(
    conversation_id: ConversationId, body: NewItems, request: Request, state: StateDep
) -> HttpResponse:
    """Adds items at the end of a conversation, without asking a model."""
    added = await state.conversations.add(conversation_id, body.items, owner_of(request))
    return _json(page_of(_named(added), len(added)))


@router.get(_ITEM, summary="An item of a conversation", responses=whole_answer(Any, 401, 404))
async def get_conversation_item(
    conversation_id: ConversationId, item_id: ItemId, request: Request, state: StateDep
) -> HttpResponse:
    """Returns one item."""
    conversation = await state.conversations.get(conversation_id, owner_of(request))
    return HttpResponse(_item(conversation, item_id), media_type="application/json")


@router.delete(
    _ITEM,
    summary="Delete an item of a conversation",
    responses=whole_answer(ConversationCard, 401, 404),
)
async def delete_conversation_item(
    conversation_id: ConversationId, item_id: ItemId, request: Request, state: StateDep
) -> HttpResponse:
    """Deletes one item, and returns the conversation."""

    def change(one: Conversation) -> None:
        _item(one, item_id)
        del one.items[item_id]

    return _card(await state.conversations.change(conversation_id, owner_of(request), change))


def _item(conversation: Conversation, item_id: str) -> bytes:
    if item_id not in conversation.items:
        raise UnknownConversation("the conversation has no item with this id", param="item_id")
    return conversation.items[item_id]


def _named(items: dict[str, bytes]) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(item) for name, item in items.items()}


def _card(conversation: Conversation) -> HttpResponse:
    head = conversation.head
    return _json(ConversationCard(id=head.id, created_at=head.created_at, metadata=head.metadata))


def _json(answer: Any) -> HttpResponse:
    return HttpResponse(encode(answer), media_type="application/json")
