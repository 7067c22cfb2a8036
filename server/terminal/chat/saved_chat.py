"""Writes a conversation to a file and reads it again."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from server.terminal.chat.conversation import Conversation

_FORM = "tandem-chat"
_MAX_BYTES = 256 << 20
"""A conversation may hold pictures."""
_ROLES = ("user", "assistant")


class SavedChatProblem(Exception):
    """The file cannot be written or read. `str(problem)` is one line."""


def save_chat(conversation: Conversation, path: Path) -> None:
    """Write what was said, for its owner's eyes only. Only a file with a conversation is written
    over.

    Raises:
        SavedChatProblem: the file holds something else, or cannot be written.
    """
    if path.exists():
        _read(path)
    saved = {
        "form": _FORM,
        "model": conversation.model,
        "system": conversation.system,
        "sampling": conversation.sampling,
        "messages": conversation.messages,
    }
    part = path.with_name(f"{path.name}.part")
    try:
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(file, "w", encoding="utf-8") as output:
            os.fchmod(output.fileno(), 0o600)
            json.dump(saved, output, indent=1, ensure_ascii=False)
        part.replace(path)
    except OSError as error:
        raise SavedChatProblem(f"{path} cannot be written: {error.strerror}") from None


def load_chat(conversation: Conversation, path: Path) -> str:
    """Replace what was said and the options by those of a file. Returns the model that it was said
    to; which model answers from now on is left to the caller.

    Raises:
        SavedChatProblem: it is not a conversation, or cannot be read.
    """
    saved = _read(path)
    conversation.reset()
    conversation.system = saved["system"]
    conversation.sampling = saved["sampling"]
    conversation.messages = saved["messages"]
    model: str = saved["model"]
    return model


def _read(path: Path) -> dict[str, Any]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
            raise SavedChatProblem(f"{path} is not a saved conversation")
        saved = json.loads(path.read_bytes())
    except OSError as error:
        raise SavedChatProblem(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        saved = None
    if not _is_chat(saved):
        raise SavedChatProblem(f"{path} is not a conversation that /save has written")
    return dict(saved)


def _is_chat(saved: Any) -> bool:
    return (
        isinstance(saved, dict)
        and saved.get("form") == _FORM
        and isinstance(saved.get("model"), str)
        and isinstance(saved.get("system"), str | None)
        and isinstance(saved.get("sampling"), dict)
        and isinstance(saved.get("messages"), list)
        and all(_is_message(one) for one in saved["messages"])
    )


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in _ROLES
        and isinstance(message.get("content"), str | list)
    )
