"""Conversations of the playground on disk, one file each, in a folder of their owner. The page
decides what a conversation is; here it is JSON with a title and a time."""

import os
import re
from contextlib import suppress
from pathlib import Path

import msgspec

from engine.errors import InvalidParameter
from server.http.owner import Owner
from server.http.owner_files import MAX_FILES, OwnerFiles

_MAX_TITLE = 200
_ID = re.compile(r"[0-9a-z]{1,64}")
_KEPT, _DELETED = ".json", ".deleted"


class Summary(msgspec.Struct, frozen=True):
    """What lists show of a conversation; the first line of its file. `updated` is in milliseconds,
    as browsers count."""

    id: str
    title: str
    updated: float


class ChatHistory:
    """The conversations among the owners' files; without them it keeps none. Blocking: call it in a
    thread."""

    def __init__(self, files: OwnerFiles | None) -> None:
        self._given = files

    @property
    def is_on(self) -> bool:
        return self._given is not None

    def summaries(self, owner: Owner | None) -> list[Summary]:
        """All conversations of an owner, newest first."""
        found = []
        for file in self._files.all(owner, _KEPT):
            with suppress(OSError, msgspec.MsgspecError), open(file.path, "rb") as opened:
                found.append(msgspec.json.decode(opened.readline(), type=Summary))
        return sorted(found, key=lambda one: one.updated, reverse=True)

    def deleted(self, owner: Owner | None) -> list[str]:
        """The ids of deleted conversations, so that every browser forgets its copy."""
        return [file.name.removesuffix(_DELETED) for file in self._files.all(owner, _DELETED)]

    def read(self, conversation_id: str, owner: Owner | None) -> bytes | None:
        """The JSON of a conversation; None if the owner has none of that id."""
        try:
            return self._path(conversation_id, owner).read_bytes().partition(b"\n")[2]
        except FileNotFoundError:
            return None

    def write(self, conversation_id: str, body: bytes, owner: Owner | None) -> None:
        """Keep a conversation, in place of an earlier state of it.

        Raises:
            InvalidParameter: it is no conversation, or the owner keeps too many.
        """
        path = self._path(conversation_id, owner)
        try:
            summary = msgspec.json.decode(body, type=Summary)
        except msgspec.MsgspecError as error:
            raise InvalidParameter(f"the body is not a conversation: {error}") from None
        if summary.id != conversation_id:
            raise InvalidParameter("id differs from the one in the path", param="id")
        summary = msgspec.structs.replace(summary, title=summary.title[:_MAX_TITLE])
        self._files.write(path.name, msgspec.json.encode(summary) + b"\n" + body, owner)
        path.with_suffix(_DELETED).unlink(missing_ok=True)

    def delete(self, conversation_id: str, owner: Owner | None) -> None:
        """Forget a conversation, if it is there."""
        path = self._path(conversation_id, owner)
        if not path.exists():
            return
        path.write_bytes(b"")
        path.rename(path.with_suffix(_DELETED))
        others = sorted(self._files.all(owner, _DELETED), key=lambda file: file.stat().st_mtime)
        for file in others[:-MAX_FILES]:
            os.unlink(file)

    @property
    def _files(self) -> OwnerFiles:
        assert self._given is not None
        return self._given

    def _path(self, conversation_id: str, owner: Owner | None) -> Path:
        if not _ID.fullmatch(conversation_id):
            raise InvalidParameter("an id has 1 to 64 small letters and digits", param="id")
        return self._files.path(f"{conversation_id}{_KEPT}", owner)
