"""Keeps OpenAI's conversations, which responses continue: in the files of their owners if there are
any, else in memory among the stored responses. Event loop only."""

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import structlog

from engine.errors import EngineError, InvalidParameter, UnknownConversation, UnsupportedFeature
from server.http.errors import log_unexpected
from server.http.expiring import ExpiringTable
from server.http.home import fresh_digits
from server.http.owner import Owner
from server.http.owner_files import OwnerFiles
from server.http.shape import encode
from server.protocol.response_items import MAX_ITEMS, Item, read_items
from server.protocol.responses import Response
from server.responses.store import StoredResponse, shown_item

log = structlog.get_logger(__name__)

_ID = re.compile(r"conv_[0-9a-f]{32}")
_ENDING = ".jsonl"
_OVERHEAD_BYTES = 1024


class Head(msgspec.Struct):
    """What a conversation is besides its items."""

    id: str
    created_at: int
    metadata: dict[str, str]


class Conversation:
    """A conversation: JSON of each of its items, oldest first, by the items' ids."""

    def __init__(self, head: Head, items: dict[str, bytes], owner: Owner | None) -> None:
        self.head = head
        self.items = items
        self.owner = owner

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.items.values()))

    def encoded(self) -> bytes:
        """A file of lines: the head, then the items."""
        return b"\n".join([msgspec.json.encode(self.head), *self.items.values()])

    @classmethod
    def decode(cls, data: bytes, owner: Owner | None) -> "Conversation":
        head, *items = data.split(b"\n")
        ids = map(msgspec.json.Decoder(_Named).decode, items)
        named = {one.id: item for one, item in zip(ids, items, strict=True)}
        return cls(msgspec.json.decode(head, type=Head), named, owner)


class _Named(msgspec.Struct):
    id: str


class ConversationStore:
    """The conversations of one app.

    Args:
        responses: the table of stored responses, which bounds conversations in memory, too. None
            keeps none in memory.
        files: where conversations are kept instead, until they are deleted.
        max_bytes: limit of a conversation.
    """

    def __init__(
        self,
        responses: "ExpiringTable[StoredResponse | Conversation] | None",
        files: OwnerFiles | None,
        max_bytes: int,
    ) -> None:
        self._table = responses
        self._files = files
        self._max_bytes = max_bytes
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._adding: set[asyncio.Task[None]] = set()

    async def create(
        self, items: Sequence[Item], metadata: dict[str, str], owner: Owner | None
    ) -> Conversation:
        """Begin a conversation.

        Raises:
            UnsupportedFeature: this server keeps none.
            InvalidParameter: it is too long, or its owner keeps too many.
        """
        if self._files is None and self._table is None:
            raise UnsupportedFeature(
                "no conversations are kept here; set --conversations-dir, or "
                "--response-store-bytes above 0"
            )
        head = Head(f"conv_{fresh_digits(32)}", int(time.time()), metadata)
        conversation = Conversation(head, _named(map(_shown, items)), owner)
        self._check_length(conversation, "items")
        await self._write(conversation)
        return conversation

    async def get(self, conversation_id: str, owner: Owner | None) -> Conversation:
        """The conversation of that id, with all that was added before this call.

        Raises:
            UnknownConversation: there is none, it has expired, or it belongs to somebody else.
        """
        async with self._locked(conversation_id):
            return await self._read(conversation_id, owner)

    async def read(self, conversation_id: str, owner: Owner | None) -> list[Item]:
        """The items, for a response that continues the conversation.

        Raises:
            UnknownConversation: as in `get`.
            InvalidParameter: the conversation is too long.
        """
        conversation = await self.get(conversation_id, owner)
        self._check_length(conversation, "conversation")
        items = [msgspec.json.decode(item) for item in conversation.items.values()]
        return read_items(items) if items else []

    async def add(
        self, conversation_id: str, items: Sequence[Item], owner: Owner | None
    ) -> dict[str, bytes]:
        """Add items. Returns them as the conversation has them.

        Raises:
            UnknownConversation: as in `get`.
            InvalidParameter: the conversation would be too long.
        """
        new = _named(map(_shown, items))

        def add(conversation: Conversation) -> None:
            conversation.items.update(new)
            self._check_length(conversation, "items")

        await self.change(conversation_id, owner, add)
        return new

    def add_later(
        self,
        conversation_id: str,
        items: Sequence[Item],
        response: Response,
        owner: Owner | None,
    ) -> None:
        """Add what a response read and wrote. Requests for the conversation from now on get that,
        too."""
        written = {item.id: encode(item) for item in response.output}
        new = _named(map(_shown, items)) | written

        async def add() -> None:
            try:
                await self.change(conversation_id, owner, lambda one: one.items.update(new))
            except EngineError as error:  # it was deleted meanwhile, or the owner's space is full
                log.warning("a response is not in its conversation", error=error.code)
            except Exception as error:
                log_unexpected(error)

        task = asyncio.create_task(add())
        self._adding.add(task)
        task.add_done_callback(self._adding.discard)

    async def change(
        self, conversation_id: str, owner: Owner | None, change: Callable[[Conversation], None]
    ) -> Conversation:
        """Change a conversation: all of `change`, or nothing if it raises.

        Raises:
            UnknownConversation: as in `get`.
            InvalidParameter: the owner keeps too much.
        """
        async with self._locked(conversation_id):
            old = await self._read(conversation_id, owner)
            head = msgspec.structs.replace(old.head)
            new = Conversation(head, dict(old.items), owner)
            change(new)
            await self._write(new)
            return new

    async def delete(self, conversation_id: str, owner: Owner | None) -> None:
        """Forget a conversation and its items.

        Raises:
            UnknownConversation: as in `get`.
        """
        async with self._locked(conversation_id):
            await self._read(conversation_id, owner)
            if self._files is not None:
                path = self._files.path(conversation_id + _ENDING, owner)
                await asyncio.to_thread(path.unlink)
            elif self._table is not None:
                self._table.pop(conversation_id)

    async def aclose(self) -> None:
        """Write what is still to be added."""
        await asyncio.gather(*self._adding)

    @asynccontextmanager
    async def _locked(self, conversation_id: str) -> AsyncIterator[None]:
        """One at a time, in the order of the calls."""
        lock = self._locks.setdefault(conversation_id, asyncio.Lock())
        async with lock:
            yield

    async def _read(self, conversation_id: str, owner: Owner | None) -> Conversation:
        found: StoredResponse | Conversation | None = None
        if _ID.fullmatch(conversation_id) is None:
            pass
        elif self._files is not None:
            found = await asyncio.to_thread(_read_file, self._files, conversation_id, owner)
        elif self._table is not None:
            found = self._table.get(conversation_id)
            if found is not None:
                self._table.renew(conversation_id)
        if not isinstance(found, Conversation) or found.owner != owner:
            raise UnknownConversation(
                "no conversation with this id is kept here: it was deleted, or has expired; begin "
                "a new one with POST /v1/conversations",
                param="conversation",
            )
        return found

    async def _write(self, conversation: Conversation) -> None:
        name = conversation.head.id
        if self._files is not None:
            await asyncio.to_thread(_write_file, self._files, conversation)
        elif self._table is not None:
            num_bytes = conversation.num_bytes + _OVERHEAD_BYTES
            if not self._table.put(name, conversation, num_bytes):
                raise InvalidParameter(
                    "the conversation does not fit into --response-store-bytes; send less of it"
                )

    def _check_length(self, conversation: Conversation, param: str) -> None:
        if conversation.num_bytes > self._max_bytes or len(conversation.items) > MAX_ITEMS:
            raise InvalidParameter(
                f"the conversation is longer than {self._max_bytes} bytes or {MAX_ITEMS} items, "
                "the limits; delete items, or begin a new one",
                param=param,
            )


def _shown(item: Item) -> dict[str, Any]:
    """An item with an id of its own: clients may send the same one twice."""
    return {**shown_item(item, ""), "id": f"item_{uuid.uuid4().hex}"}


def _named(items: Iterable[dict[str, Any]]) -> dict[str, bytes]:
    return {item["id"]: encode(item) for item in items}


def _read_file(files: OwnerFiles, name: str, owner: Owner | None) -> Conversation | None:
    try:
        return Conversation.decode(files.path(name + _ENDING, owner).read_bytes(), owner)
    except FileNotFoundError:
        return None


def _write_file(files: OwnerFiles, conversation: Conversation) -> None:
    files.write(conversation.head.id + _ENDING, conversation.encoded(), conversation.owner)
