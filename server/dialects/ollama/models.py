"""Served models in Ollama's form: lists and descriptions."""

import hashlib
import re
import time
from dataclasses import dataclass
from typing import Any

from engine.contract.embed import EmbeddingModelInfo
from engine.contract.generate import ModelInfo
from engine.contract.status import ModelStatus
from engine.text.chat_format import ChatFormat
from server.dialects.ollama.shape import timestamp

_NEVER = "9999-12-31T23:59:59Z"

AnyTextInfo = ModelInfo | EmbeddingModelInfo
"""Facts about a model that Ollama's routes can use."""


def listed(info: AnyTextInfo) -> dict[str, Any]:
    """An entry of `/api/tags`."""
    return {
        "name": info.name,
        "model": info.name,
        "modified_at": timestamp(info.created),
        "size": info.file_bytes,
        "digest": _digest(info),
        "details": _details(info),
    }


@dataclass(frozen=True, slots=True)
class MemoryHeld:
    """The bytes that a model holds."""

    on_host: int
    on_gpus: int


def running(info: AnyTextInfo, status: ModelStatus, held: MemoryHeld) -> dict[str, Any]:
    """An entry of `/api/ps`."""
    left_s = None if status.sleep_after_s is None else status.sleep_after_s - status.idle_s
    return {
        **listed(info),
        "size": held.on_host + held.on_gpus,
        "expires_at": _NEVER if left_s is None else timestamp(time.time() + max(0.0, left_s)),
        "size_vram": held.on_gpus,
        "context_length": info.max_model_len,
    }


def described(
    info: AnyTextInfo, template: str | None, chat_format: ChatFormat | None
) -> dict[str, Any]:
    """The answer of `/api/show`.

    Args:
        chat_format: None if the model has no chat.
    """
    name = _family(info)
    facts: dict[str, Any] = {
        "general.architecture": name,
        "general.parameter_count": info.num_weights,
        f"{name}.context_length": info.max_model_len,
    }
    if isinstance(info, EmbeddingModelInfo):
        facts[f"{name}.embedding_length"] = info.dimensions
    return {
        "modelfile": "",
        "parameters": _parameters(info),
        "template": template or "",
        "details": _details(info),
        "model_info": facts,
        "capabilities": _capabilities(info, chat_format),
        "modified_at": timestamp(info.created),
    }


def _parameters(info: AnyTextInfo) -> str:
    """The sampler parameters of requests that set none, in the words of a Modelfile."""
    if isinstance(info, EmbeddingModelInfo):
        return ""
    others = {"repetition_penalty": "repeat_penalty"}
    values = info.default_sampling.items()
    return "\n".join(f"{others.get(name, name)} {value:g}" for name, value in values)


def _capabilities(info: AnyTextInfo, chat_format: ChatFormat | None) -> list[str]:
    """What the model can do, by Ollama's names. Clients offer tools only to models with `tools`."""
    if isinstance(info, EmbeddingModelInfo):
        return ["embedding"]
    if chat_format is None:
        return ["completion"]
    thinks = chat_format.takes_effort or chat_format.thinking_switch is not None
    has = {"completion": True, "tools": True, "thinking": thinks, "vision": info.pictures}
    return [name for name, is_there in has.items() if is_there]


def _digest(info: AnyTextInfo) -> str:
    """Digest of the files that answer under this name; for an adapter, of its own and its model's
    files."""
    digests = info.all_digests
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def _details(info: AnyTextInfo) -> dict[str, Any]:
    family = _family(info)
    return {
        "parent_model": "" if info.name == info.model else info.model,
        "format": info.file_format,
        "family": family,
        "families": [family],
        "parameter_size": _rounded(info.num_weights),
        "quantization_level": info.weight_type or info.dtype,
    }


def _family(info: AnyTextInfo) -> str:
    """llama.cpp's name of the architecture: the name of transformers' class without its ending,
    such as `llama` or `qwen3moe`."""
    return re.sub(r"(For[A-Z]\w*|(LM)?(Head)?Model)$", "", info.architecture).lower()


def _rounded(num_weights: int) -> str:
    """A number of weights as Ollama writes it: 134.5M, 8.0B."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if num_weights >= size:
            return f"{num_weights / size:.1f}{letter}"
    return str(num_weights) if num_weights else ""
