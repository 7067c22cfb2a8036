"""Converts llama-server's bodies to ours. All functions are pure."""

from collections.abc import Mapping
from typing import Any

from server.dialects.dialect import openai_body
from server.dialects.llamacpp.infill import GapTokens
from server.dialects.llamacpp.protocol import (
    LlamaCompletionRequest,
    LlamaInfillRequest,
    LlamaTextRequest,
)
from server.protocol.completions import CompletionRequest

_TO_THE_END = -1
_RANDOM_SEEDS = (-1, 0xFFFFFFFF)


def completion_body(body: LlamaCompletionRequest) -> CompletionRequest:
    """Our body for a prompt to continue.

    Raises:
        RequestValidationError, EngineError: the request is refused.
    """
    return openai_body(CompletionRequest, {**_fields(body), "prompt": body.prompt[0]})


def infill_body(
    body: LlamaInfillRequest, prompt: list[int], tokens: GapTokens
) -> CompletionRequest:
    """Our body for a gap to fill.

    Args:
        prompt: token ids from `infill_prompt`.

    Raises:
        RequestValidationError, EngineError: the request is refused.
    """
    ends = [*(body.stop_token_ids or ()), *tokens.ends]
    fields = {**_fields(body), "prompt": prompt, "stop_token_ids": ends}
    return openai_body(CompletionRequest, fields)


def _fields(body: LlamaTextRequest) -> Mapping[str, Any]:
    names = body.model_fields_set & type(body).model_fields.keys()
    names &= CompletionRequest.model_fields.keys()
    fields = {name: getattr(body, name) for name in names}
    if body.n_predict is None and body.max_tokens is None and body.max_completion_tokens is None:
        fields["max_tokens"] = _TO_THE_END
    if body.seed in _RANDOM_SEEDS:
        fields["seed"] = None
    return fields | {
        "logprobs": body.n_probs or None,
        "return_tokens_as_token_ids": True,
        "return_token_ids": True,
        "stream_options": {"include_usage": True} if body.stream else None,
    }
