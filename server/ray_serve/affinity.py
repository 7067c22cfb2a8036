"""Which server a request should go to, as far as its path and body say."""

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from engine.llm.cache.prefix_cache import chain_root, extend_chain
from engine.worker.replicas.job import ANSWER_TOKENS, Job

_BLOCK_BYTES = 256
"""Bytes of a prompt that are looked up together."""
_TOKEN_BYTES = 4
_HOME_DIGITS = 8
_ID = re.compile(rb"(?:resp_|conv_|img-|chatcmpl-|cmpl-|/images/files/)([0-9a-f]{32,48})\b")
_MAX_BODY = 1 << 20
"""Longer bodies, which hold pictures, are not looked at: that would delay streams."""
_PROMPTS = ("tools", "system", "instructions", "messages", "input", "prompt")
"""Fields that make up a prompt in one of the APIs, in the order in which templates write them."""


def home_of(unique_id: str) -> str:
    """The name of the server with that id of Ray's, in the ids that it makes."""
    return hashlib.blake2s(unique_id.encode(), digest_size=_HOME_DIGITS // 2).hexdigest()


def homes_in(path: str, body: bytes) -> set[str]:
    """The names of the servers that have made the ids in a request. Names of ids that are only
    text of a prompt cannot be told apart; they send the request to a server that can answer it."""
    texts = (path.encode(), body if len(body) <= _MAX_BODY else b"")
    return {id[-_HOME_DIGITS:].decode() for text in texts for id in _ID.findall(text)}


def job_of(body: bytes) -> Job:
    """What a request asks of the server that takes it. A body without a prompt, such as a form's,
    is a request like any other, which no cache helps."""
    fields = _fields(body)
    prompt = b"".join(_text(fields[name]) for name in _PROMPTS if fields.get(name))
    root = chain_root(_str_of(fields.get("cache_salt")), _str_of(fields.get("model")))
    asked = [fields.get(name) for name in ("max_tokens", "max_completion_tokens")]
    limits = [limit for limit in asked if isinstance(limit, int) and limit > 0]
    return Job(
        num_prompt_tokens=len(prompt) // _TOKEN_BYTES,
        work=min([*limits, ANSWER_TOKENS]),
        chain=extend_chain([], root, prompt, _BLOCK_BYTES),
        block_size=_BLOCK_BYTES // _TOKEN_BYTES,
    )


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(body if len(body) <= _MAX_BODY else b"{}")
    except (msgspec.MsgspecError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _text(value: Any) -> bytes:
    """A part of a prompt as bytes. The bytes of a longer part begin with those of its prefixes."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    parts: Iterable[Any] = value if isinstance(value, list) else [value]
    return b"".join(msgspec.json.encode(part) for part in parts)


def _str_of(value: Any) -> str | None:
    return value if isinstance(value, str) else None
