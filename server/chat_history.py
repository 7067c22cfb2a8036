"""Conversations of the playground on disk, one file each, in a folder of their owner. The page
decides what a conversation is; here it is JSON with a title and a time."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from engine.errors import InvalidParameter
from server.http.owner import Owner

MAX_CONVERSATIONS = 10_000
MAX_BYTES = 1 << 30
"""Most conversations of an owner, and their bytes together."""
_MAX_TITLE = 200
_ID = re.compile(r"[0-9a-z]{1,64}")
_EVERYBODY = "everybody"
_KEPT, _DELETED = ".json", ".deleted"


class Summary(msgspec.Struct, frozen=True):
    """What lists show of a conversation; the first line of its file. `updated` is in milliseconds,
    as browsers count."""

    id: str
    title: str
    updated: float


class ChatHistory:
    """The conversations in a folder; without one it keeps none. Blocking: call it in a thread."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @property
    def is_on(self) -> bool:
        return self._folder is not None

    def summaries(self, owner: Owner | None) -> list[Summary]:
        """All conversations of an owner, newest first."""
        found = []
        for file in self._files(owner):
            with suppress(OSError, msgspec.MsgspecError), open(file.path, "rb") as opened:
                found.append(msgspec.json.decode(opened.readline(), type=Summary))
        return sorted(found, key=lambda one: one.updated, reverse=True)

    def deleted(self, owner: Owner | None) -> list[str]:
        """The ids of deleted conversations, so that every browser forgets its copy."""
        return [file.name.removesuffix(_DELETED) for file in self._files(owner, _DELETED)]

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
        others = [file.stat().st_size for file in self._files(owner) if file.name != path.name]
        if len(others) >= MAX_CONVERSATIONS or sum(others) + len(body) > MAX_BYTES:
            raise InvalidParameter(
                f"more than {MAX_CONVERSATIONS} conversations or {MAX_BYTES >> 20} MiB of them are "
                "not kept here; delete some"
            )
        summary = msgspec.structs.replace(summary, title=summary.title[:_MAX_TITLE])
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        try:
            with open(handle, "wb") as file:
                file.write(msgspec.json.encode(summary) + b"\n" + body)
            os.replace(name, path)
            path.with_suffix(_DELETED).unlink(missing_ok=True)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def delete(self, conversation_id: str, owner: Owner | None) -> None:
        """Forget a conversation, if it is there."""
        path = self._path(conversation_id, owner)
        if not path.exists():
            return
        path.write_bytes(b"")
        path.rename(path.with_suffix(_DELETED))
        others = sorted(self._files(owner, _DELETED), key=lambda file: file.stat().st_mtime)
        for file in others[:-MAX_CONVERSATIONS]:
            os.unlink(file)

    def _files(self, owner: Owner | None, kind: str = _KEPT) -> "Iterator[os.DirEntry[str]]":
        with suppress(FileNotFoundError), os.scandir(self._folder_of(owner)) as files:
            yield from (file for file in files if file.name.endswith(kind))

    def _path(self, conversation_id: str, owner: Owner | None) -> Path:
        if not _ID.fullmatch(conversation_id):
            raise InvalidParameter("an id has 1 to 64 small letters and digits", param="id")
        return self._folder_of(owner) / f"{conversation_id}{_KEPT}"

    def _folder_of(self, owner: Owner | None) -> Path:
        assert self._folder is not None
        return self._folder / (_EVERYBODY if owner is None else owner.hex())
