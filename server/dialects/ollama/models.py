"""Served models as Ollama lists and describes them."""

import hashlib
from typing import Any

from engine.embedding_types import EmbeddingModelInfo
from engine.text.chat_format import ChatFormat
from engine.types import ModelInfo
from server.dialects.ollama.shape import timestamp

AnyTextInfo = ModelInfo | EmbeddingModelInfo
"""Of models that Ollama's routes can ask."""


def listed(info: AnyTextInfo) -> dict[str, Any]:
    """An entry of `/api/tags`. Sizes are not known here."""
    return {
        "name": info.name,
        "model": info.name,
        "modified_at": timestamp(info.created),
        "size": 0,
        "digest": hashlib.sha256(f"{info.name}|{info.config_hash}".encode()).hexdigest(),
        "details": _details(info),
    }


def running(info: AnyTextInfo) -> dict[str, Any]:
    """An entry of `/api/ps`: nothing expires."""
    return {
        **listed(info),
        "expires_at": "9999-12-31T23:59:59Z",
        "size_vram": 0,
        "context_length": info.max_model_len,
    }


def described(
    info: AnyTextInfo, template: str | None, chat_format: ChatFormat | None
) -> dict[str, Any]:
    """The answer of `/api/show`.

    Args:
        chat_format: None where there is no chat.
    """
    name = info.architecture
    facts: dict[str, Any] = {
        "general.architecture": name,
        f"{name}.context_length": info.max_model_len,
    }
    if isinstance(info, EmbeddingModelInfo):
        facts[f"{name}.embedding_length"] = info.dimensions
    return {
        "modelfile": "",
        "parameters": "",
        "template": template or "",
        "details": _details(info),
        "model_info": facts,
        "capabilities": _capabilities(info, chat_format),
        "modified_at": timestamp(info.created),
    }


def _capabilities(info: AnyTextInfo, chat_format: ChatFormat | None) -> list[str]:
    """By Ollama's names. Clients offer tools only where these are among them."""
    if isinstance(info, EmbeddingModelInfo):
        return ["embedding"]
    if chat_format is None:
        return ["completion"]
    thinks = chat_format.takes_effort or chat_format.thinking_switch is not None
    return ["completion", "tools", *(["thinking"] if thinks else [])]


def _details(info: AnyTextInfo) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "",
        "family": info.architecture,
        "families": [info.architecture],
        "parameter_size": "",
        "quantization_level": info.dtype,
    }
