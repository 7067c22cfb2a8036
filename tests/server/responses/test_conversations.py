"""Conversations by OpenAI's own client, in memory and on disk."""

import asyncio
import random
import stat
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from server.http import owner_files
from tests.helpers.server.fake_server import error_of
from tests.helpers.server.text_server import MODEL, TextServer

ROUTE = "/v1/conversations"


@pytest.fixture(params=["in memory", "on disk"])
def server(request: pytest.FixtureRequest, tokenizer_folder: Path, tmp_path: Path) -> TextServer:
    folder = {"conversations_dir": tmp_path / "kept"} if request.param == "on disk" else {}
    return TextServer(tokenizer_folder, **folder)


def client_of(server: TextServer, key: str = "unused") -> AsyncOpenAI:
    return AsyncOpenAI(
        base_url="http://test/v1", api_key=key, max_retries=0, http_client=server.client
    )


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def texts(client: AsyncOpenAI, name: str) -> list[str]:
    items = [item async for item in client.conversations.items.list(name, order="asc", limit=2)]
    assert len({item.id for item in items}) == len(items)
    return [item.content[0].text for item in items]  # type: ignore[union-attr]


async def test_responses_continue_a_conversation_and_are_added_to_it(
    server: TextServer, client: AsyncOpenAI
) -> None:
    begin: Any = [{"type": "message", "role": "user", "content": "the fox"}]
    one = await client.conversations.create(items=begin, metadata={"topic": "demo"})
    assert (one.object, one.metadata) == ("conversation", {"topic": "demo"})
    server.say("dog")
    first = await client.responses.create(model=MODEL, conversation=one.id, input="jumps")
    assert first.conversation is not None and first.conversation.id == one.id
    assert await texts(client, one.id) == ["the fox", "jumps", "dog"]
    server.say("lazy")
    stream = await client.responses.create(
        model=MODEL, conversation={"id": one.id}, input="over", store=False, stream=True
    )
    assert [event async for event in stream][-1].type == "response.completed"
    turns = ["user\nthe fox", "user\njumps", "assistant\ndog", "user\nover"]
    prompt = "".join(f"<|s|>{turn}<|e|>\n" for turn in turns) + "<|s|>assistant\n"
    assert server.last_prompt == prompt
    assert await texts(client, one.id) == ["the fox", "jumps", "dog", "over", "lazy"]
    counted = await client.responses.input_tokens.count(
        model=MODEL, conversation=one.id, input="so?"
    )
    assert counted.input_tokens > len(server.last_request.prompt_token_ids)
    # A failed response leaves the conversation as it was.
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(model=MODEL, conversation=one.id, input="word " * 300)
    assert len(await texts(client, one.id)) == 5


async def test_items_and_metadata_change_and_all_is_deleted(
    client: AsyncOpenAI, tmp_path: Path
) -> None:
    one = await client.conversations.create()
    word = f"badger {random.randrange(10**9)}"
    item: Any = {"role": "user", "content": [{"type": "input_text", "text": word}], "id": "mine"}
    added = await client.conversations.items.create(one.id, items=[item, item])
    first, second = added.data
    assert added.first_id == first.id != second.id == added.last_id and not added.has_more
    assert await client.conversations.items.retrieve(first.id, conversation_id=one.id) == first
    left = await client.conversations.items.delete(first.id, conversation_id=one.id)
    assert left == one
    assert await texts(client, one.id) == [word]
    with pytest.raises(openai.NotFoundError):
        await client.conversations.items.retrieve(first.id, conversation_id=one.id)
    changed = await client.conversations.update(one.id, metadata={"a": "b"})
    assert changed.metadata == {"a": "b"} and changed.created_at == one.created_at
    assert await client.conversations.retrieve(one.id) == changed
    files = files_in(tmp_path)
    assert all(word in path.read_text() for path in files)
    assert not any(stat.S_IMODE(path.stat().st_mode) & 0o077 for path in files)
    assert (await client.conversations.delete(one.id)).deleted
    assert not any(path.exists() for path in files)
    with pytest.raises(openai.NotFoundError) as caught:
        await client.responses.create(model=MODEL, conversation=one.id, input="x")
    assert caught.value.code == "conversation_not_found"


async def test_responses_at_the_same_time_are_all_added(
    server: TextServer, client: AsyncOpenAI
) -> None:
    one = await client.conversations.create()
    server.say("yes")
    words = [f"word {i}" for i in range(8)]
    await asyncio.gather(
        *(client.responses.create(model=MODEL, conversation=one.id, input=w) for w in words)
    )
    found = await texts(client, one.id)
    assert sorted(found) == sorted([*words, *["yes"] * 8])
    assert all(found[found.index(word) + 1] == "yes" for word in words)


async def test_a_key_has_conversations_of_its_own_which_another_process_finds(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    def start() -> TextServer:
        return TextServer(tokenizer_folder, api_keys=("one", "two"), conversations_dir=tmp_path)

    server = start()
    mine, other = client_of(server, "one"), client_of(server, "two")
    one = await mine.conversations.create(metadata={"a": "b"})
    assert await client_of(start(), "one").conversations.retrieve(one.id) == one
    for call in (other.conversations.retrieve, other.conversations.delete):
        with pytest.raises(openai.NotFoundError):
            await call(one.id)
    with pytest.raises(openai.NotFoundError):
        await other.responses.create(model=MODEL, conversation=one.id, input="x")


async def test_conversations_are_bounded(
    server: TextServer, client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("conv_x", "..%2f..%2fa", "conv_" + "0" * 32):
        error_of(await server.client.get(f"{ROUTE}/{name}"), 404)
    for body in ({"items": [{"type": "odd"}]}, {"items": 3}, {"metadata": {"a": 1}}):
        assert error_of(await server.client.post(ROUTE, json=body))["param"].startswith(
            next(iter(body))
        )
    one = await client.conversations.create()
    monkeypatch.setattr(server.state.conversations, "_max_bytes", 1000)
    item: Any = {"role": "user", "content": "x" * 400}
    await client.conversations.items.create(one.id, items=[item])
    with pytest.raises(openai.BadRequestError, match="longer than 1000 bytes"):
        await client.conversations.items.create(one.id, items=[item])
    assert len(await texts(client, one.id)) == 1
    monkeypatch.setattr(owner_files, "MAX_FILES", 1)
    if server.state.chat_history.is_on:
        with pytest.raises(openai.BadRequestError, match="delete some"):
            await client.conversations.create()


async def test_a_server_may_keep_none(tokenizer_folder: Path) -> None:
    server = TextServer(tokenizer_folder, response_store_bytes=0)
    assert "--conversations-dir" in error_of(await server.post(ROUTE))["message"]
