"""Stores responses so that they can be continued or read again: see docs/decisions for the bounds.

Each stored response has its input and its output; a conversation is a chain of them. They are in
memory, and only their owner can read them. Event loop only.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from engine.errors import InvalidParameter, UnknownResponse
from server.http.expiring import ExpiringTable
from server.http.owner import Owner
from server.http.shape import encode
from server.protocol.response_items import MAX_ITEMS, Item, MessageItem, chat_parts, read_items
from server.protocol.responses import Response

_OVERHEAD_BYTES = 1024
"""Memory for the objects around a response's bytes."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A stored response.

    Invariant: `response` is in its last state.

    Attributes:
        items: JSON of the items in its request.
        response: JSON of the whole response.
        previous: id of the response that it continues.
        num_items: number of items in the request and in the response.
    """

    owner: Owner | None
    items: bytes
    response: bytes
    background: bool
    previous: str | None
    num_items: int

    @property
    def num_bytes(self) -> int:
        return len(self.items) + len(self.response) + _OVERHEAD_BYTES


class ResponseStore:
    """The stored responses of one app.

    Attributes:
        table: the responses, among what else shares their bounds.

    Args:
        max_bytes: limit of all responses together; 0 switches the store off.
        max_conversation_bytes: limit of a chain of responses that is read as one.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        max_items: int,
        ttl_s: float,
        max_conversation_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_on = max_bytes > 0
        self._max_conversation_bytes = max_conversation_bytes
        self.table: ExpiringTable[Any] = ExpiringTable(
            max_bytes=max_bytes, max_items=max_items, ttl_s=ttl_s, clock=clock
        )

    def __len__(self) -> int:
        return len(self.table)

    @property
    def num_bytes(self) -> int:
        return self.table.num_bytes

    def add(self, response: Response, items: Sequence[Item], owner: Owner | None) -> None:
        """Store a response that has ended. The least recently used ones are evicted."""
        prefix = f"item_{response.id.removeprefix('resp_')}"
        stored = StoredResponse(
            owner=owner,
            items=encode([shown_item(item, f"{prefix}{i:04x}") for i, item in enumerate(items)]),
            response=encode(response),
            background=response.background,
            previous=response.previous_response_id,
            num_items=len(items) + len(response.output),
        )
        self.table.put(response.id, stored, stored.num_bytes)

    def get(self, response_id: str, owner: Owner | None) -> StoredResponse:
        """The stored response of that id.

        Raises:
            UnknownResponse: there is none, it has expired, or it belongs to somebody else.
        """
        stored = self._find(response_id, owner)
        if stored is None:
            raise unknown_response()
        return stored

    def delete(self, response_id: str, owner: Owner | None) -> None:
        """Delete the response of that id.

        Raises:
            UnknownResponse: as in `get`.
        """
        self.get(response_id, owner)
        self.table.pop(response_id)

    def conversation(self, response_id: str | None, owner: Owner | None) -> list[Item]:
        """All items up to a response's last, oldest first; none without a response. All responses
        of the conversation count as newly stored.

        Raises:
            UnknownResponse: a response of the chain is missing.
            InvalidParameter: the conversation is too long.
        """
        items = [item for part in self._chain(response_id, owner) for item in part]
        return read_items(items) if items else []

    def input_items(self, response_id: str, owner: Owner | None) -> list[dict[str, Any]]:
        """The items that the model read for a response, oldest first.

        Raises:
            UnknownResponse, InvalidParameter: as in `conversation`.
        """
        stored = self.get(response_id, owner)
        before = [item for part in self._chain(stored.previous, owner) for item in part]
        own: list[dict[str, Any]] = msgspec.json.decode(stored.items)
        return [*before, *own]

    def _find(self, response_id: str, owner: Owner | None) -> StoredResponse | None:
        stored = self.table.get(response_id)
        return stored if isinstance(stored, StoredResponse) and stored.owner == owner else None

    def _chain(self, response_id: str | None, owner: Owner | None) -> list[list[dict[str, Any]]]:
        chain: list[tuple[str, StoredResponse]] = []
        num_bytes = num_items = 0
        while response_id is not None:
            stored = self._find(response_id, owner)
            if stored is None:
                raise _broken(is_first=not chain)
            chain.append((response_id, stored))
            num_bytes += stored.num_bytes
            num_items += stored.num_items
            if num_bytes > self._max_conversation_bytes or num_items > MAX_ITEMS:
                raise InvalidParameter(
                    f"the conversation is longer than {self._max_conversation_bytes} bytes or "
                    f"{MAX_ITEMS} items, the limits; begin a new one",
                    param="previous_response_id",
                )
            response_id = stored.previous
        # The newest last: a conversation's beginning is dropped first, then the rest of it.
        for name, _ in reversed(chain):
            self.table.renew(name)
        return [
            [*msgspec.json.decode(stored.items), *msgspec.json.decode(stored.response)["output"]]
            for _, stored in reversed(chain)
        ]


def unknown_response(param: str = "response_id") -> UnknownResponse:
    """The error for an id that is unknown, or belongs to somebody else."""
    return UnknownResponse(
        "no response with this id is stored here: it was not stored, was deleted, or has "
        "expired; send the whole conversation as input",
        param=param,
    )


def _broken(*, is_first: bool) -> UnknownResponse:
    if is_first:
        return unknown_response("previous_response_id")
    return UnknownResponse(
        "the beginning of that response's conversation was deleted or has expired; send the "
        "whole conversation as input",
        param="previous_response_id",
    )


def shown_item(item: Item, item_id: str) -> dict[str, Any]:
    """An item as the API lists it: with an id, this one unless it has its own, and a status, its
    text in parts."""
    shown = item.model_dump(exclude_none=True)
    shown.setdefault("id", item_id)
    shown.setdefault("status", "completed")
    if isinstance(item, MessageItem):
        kind = "output_text" if item.role == "assistant" else "input_text"
        shown["content"] = [
            {**part, "type": kind} if "text" in part else part
            for part in chat_parts(item.content, ())
        ]
        for part in shown["content"] if item.role == "assistant" else ():
            part["annotations"] = []
    return shown
