"""Converts Ollama's bodies to OpenAI's. All functions are pure."""

from collections.abc import Mapping
from typing import Any

from engine.contract.operations import EMBED, GENERATE
from engine.contract.request import Info
from engine.errors import UnsupportedFeature
from engine.worker.client import EngineClient
from server.dialects.dialect import openai_body
from server.dialects.ollama.options import option_fields
from server.dialects.ollama.protocol import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaMessage,
    TextFields,
)
from server.protocol.chat import ChatCompletionRequest
from server.protocol.completions import CompletionRequest

_DEFAULT_TAG = ":latest"

OWN_NAMES: Mapping[str, str] = {
    "max_tokens": "num_predict",
    "max_completion_tokens": "num_predict",
    "response_format": "format",
    "reasoning_effort": "think",
}
"""OpenAI's field names → Ollama's, for messages."""


def served_name(engine: EngineClient, name: str | None) -> str | None:
    """The id that a client means: Ollama's `name:latest` means `name`, unless a model has the
    longer name."""
    served = {status.model for status in engine.statuses()}
    infos: list[Info] = [*engine.made_for(GENERATE), *engine.made_for(EMBED)]
    served |= {each for info in infos for each in info.names}
    bare = (name or "").removesuffix(_DEFAULT_TAG)
    return bare if name not in served and bare in served else name


def chat_body(body: OllamaChatRequest, model: str | None) -> ChatCompletionRequest:
    """OpenAI's body for a conversation.

    Raises:
        RequestValidationError, EngineError: the request is refused.
    """
    messages = [_message(message) for message in body.messages or ()]
    return openai_body(
        ChatCompletionRequest,
        {**_text_fields(body, model), "messages": messages, "tools": body.tools or None},
    )


def generate_chat_body(body: OllamaGenerateRequest, model: str | None) -> ChatCompletionRequest:
    """OpenAI's body for a prompt with the chat template."""
    messages = [{"role": "user", "content": _content(body.prompt, body.images)}]
    if body.system:
        messages.insert(0, {"role": "system", "content": body.system})
    return openai_body(ChatCompletionRequest, {**_text_fields(body, model), "messages": messages})


def raw_body(body: OllamaGenerateRequest, model: str | None) -> CompletionRequest:
    """OpenAI's body for a prompt without a template.

    Raises:
        UnsupportedFeature: the body has a field that needs a chat.
    """
    fields = _text_fields(body, model)
    for name in ("system", "think", "logprobs", "images"):
        if getattr(body, name):
            raise UnsupportedFeature(
                f"{name} needs the chat template, which is not used for this prompt; leave {name} "
                "out",
                param=name,
            )
    return openai_body(CompletionRequest, {**fields, "logprobs": None, "prompt": body.prompt or ""})


def _text_fields(body: TextFields, model: str | None) -> dict[str, Any]:
    streams = body.stream is not False
    fields = {
        "model": model,
        "ttl": body.idle_s,
        "stream": streams,
        "stream_options": {"include_usage": True} if streams else None,
        "response_format": _response_format(body.format),
        "logprobs": body.logprobs,
        "top_logprobs": body.top_logprobs or None,
        "reasoning_effort": _effort(body.think),
    }
    return fields | option_fields(body.options or {})


def _effort(think: bool | str | None) -> str | None:
    if isinstance(think, bool):
        return "medium" if think else "none"
    return think


def _response_format(format: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if not format:
        return None
    if format == "json":
        return {"type": "json_object"}
    schema = {"name": "format", "schema": format, "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def _content(text: str | None, images: list[str] | None) -> str | list[dict[str, Any]]:
    """A message's content. Pictures come first, as in Ollama."""
    if not images:
        return text or ""
    pictures = [{"type": "image_url", "image_url": image} for image in images]
    return [*pictures, {"type": "text", "text": text}] if text else pictures


def _message(message: OllamaMessage) -> dict[str, Any]:
    fields = {
        "role": message.role,
        "content": _content(message.content, message.images),
        "name": message.tool_name,
        "reasoning_content": message.thinking or None,
        "tool_calls": [{"type": "function", **call} for call in message.tool_calls or ()] or None,
    }
    return {name: value for name, value in fields.items() if value is not None}
