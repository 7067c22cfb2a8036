"""Conversations in the store: chains, their bounds, and what breaks them."""

from typing import Any

import pytest

from engine.errors import InvalidParameter, UnknownResponse
from server.http.owner import Owner
from server.protocol.response_items import MessageItem, read_items
from server.protocol.responses import OutputMessage, OutputTextPart, ResponseRequest
from server.responses.shape import ResponseShape
from server.responses.store import ResponseStore
from tests.helpers.clock import Clock


def make_store(**changes: Any) -> ResponseStore:
    bounds: dict[str, Any] = {
        "max_bytes": 1 << 20,
        "max_items": 100,
        "ttl_s": 60,
        "max_conversation_bytes": 1 << 20,
    }
    return ResponseStore(**(bounds | changes))


def add(
    store: ResponseStore,
    name: str,
    text: str,
    previous: str | None = None,
    owner: Owner | None = None,
) -> None:
    """A response `name` to `text`, which is answered by its capitals."""
    body = ResponseRequest.model_validate({"input": text, "previous_response_id": previous})
    shape = ResponseShape(body, name, model="m", stores=True, on_end=lambda response: None)
    response = shape.response
    response.status = "completed"
    part = OutputTextPart(text=text.upper())
    response.output = [OutputMessage(id=f"msg_{name}", status="completed", content=[part])]
    store.add(response, read_items(text), owner)


def texts(store: ResponseStore, name: str, owner: Owner | None = None) -> list[str]:
    items = store.conversation(f"resp_{name}", owner)
    assert all(isinstance(item, MessageItem) for item in items)
    return [item.content[0]["text"] for item in items]  # type: ignore[union-attr]


def test_conversations_branch() -> None:
    store = make_store()
    add(store, "a", "one")
    add(store, "b", "two", "resp_a")
    add(store, "c", "three", "resp_a")
    assert texts(store, "b") == ["one", "ONE", "two", "TWO"]
    assert texts(store, "c") == ["one", "ONE", "three", "THREE"]


def test_continuing_keeps_the_beginning() -> None:
    clock = Clock()
    store = make_store(ttl_s=10, clock=clock)
    add(store, "a", "one")
    for n in range(5):
        clock.now_s += 8
        add(store, f"a{n}", "more", "resp_a" if n == 0 else f"resp_a{n - 1}")
        assert len(texts(store, f"a{n}")) == 4 + 2 * n
    clock.now_s += 10
    with pytest.raises(UnknownResponse):
        store.conversation("resp_a4", None)
    assert len(store) == 0 and store.num_bytes == 0


def test_the_conversation_used_least_recently_makes_room() -> None:
    store = make_store(max_items=3)
    add(store, "a", "one")
    add(store, "b", "two")
    add(store, "c", "three")
    assert texts(store, "a")
    add(store, "d", "four")
    assert texts(store, "a") and texts(store, "c") and texts(store, "d")
    with pytest.raises(UnknownResponse):
        texts(store, "b")


def test_a_deleted_beginning_is_said() -> None:
    store = make_store()
    add(store, "a", "one")
    add(store, "b", "two", "resp_a")
    store.delete("resp_a", None)
    with pytest.raises(UnknownResponse, match="beginning"):
        store.conversation("resp_b", None)
    assert store.get("resp_b", None)


def test_owners_see_their_own_only() -> None:
    store = make_store()
    alice, bob = Owner(b"a"), Owner(b"b")
    add(store, "a", "one", owner=alice)
    assert texts(store, "a", alice) == ["one", "ONE"]
    for owner in (bob, None):
        for ask in (store.get, store.delete, store.conversation, store.input_items):
            with pytest.raises(UnknownResponse):
                ask("resp_a", owner)  # type: ignore[operator]


def test_bytes_are_bounded() -> None:
    store = make_store(max_bytes=10_000)
    for n in range(20):
        add(store, str(n), "x" * 1000)
        assert 0 < store.num_bytes <= 10_000
    assert 1 <= len(store) < 10
    before = store.num_bytes
    add(store, "huge", "x" * 10_000)
    assert store.num_bytes == before
    with pytest.raises(UnknownResponse):
        store.get("resp_huge", None)


def test_a_conversation_that_is_too_long_is_refused_before_it_is_read() -> None:
    store = make_store(max_conversation_bytes=8000)
    add(store, "0", "x" * 500)
    with pytest.raises(InvalidParameter, match="begin a new one"):
        for n in range(1, 20):
            add(store, str(n), "x" * 500, f"resp_{n - 1}")
            store.conversation(f"resp_{n}", None)
    assert n < 10
