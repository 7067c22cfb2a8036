"""From llama-server's bodies to ours. Pure functions."""

from collections.abc import Callable, Mapping
from typing import Any

from engine.errors import UnsupportedFeature
from server.dialects.dialect import openai_body
from server.dialects.llamacpp.protocol import (
    LlamaCompletionRequest,
    LlamaInfillRequest,
    LlamaTextRequest,
)
from server.protocol.completions import CompletionRequest

_TO_THE_END = -1
_RANDOM_SEEDS = (-1, 0xFFFFFFFF)
_GAPS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),
)
"""Tokens before the prefix, the suffix and what fills the gap: Qwen's and Gemma's, StarCoder's,
Granite's, DeepSeek's, Code Llama's."""


def completion_body(body: LlamaCompletionRequest) -> CompletionRequest:
    """Our body for a prompt to continue.

    Raises:
        RequestValidationError, EngineError: what is refused.
    """
    return openai_body(CompletionRequest, {**_fields(body), "prompt": body.prompt[0]})


def infill_body(
    body: LlamaInfillRequest, id_of: Callable[[str], int | None], encode: Callable[[str], list[int]]
) -> CompletionRequest:
    """Our body for a gap to fill.

    Args:
        id_of: a token's id by its text, if the vocabulary has it.
        encode: token ids of a text, without any that are added.

    Raises:
        UnsupportedFeature: the model has no tokens for that.
        RequestValidationError, EngineError: what is refused.
    """
    for names in _GAPS:
        before, behind, gap = (id_of(name) for name in names)
        if before is not None and behind is not None and gap is not None:
            break
    else:
        raise UnsupportedFeature(
            "this model has no tokens that mark a gap (such as <|fim_prefix|>), so it cannot fill "
            "one; use a model for code that has them, or /v1/completions",
            param="input_prefix",
        )
    prompt = [before, *encode(body.input_prefix), behind, *encode(body.input_suffix), gap]
    prompt += encode(body.prompt or "")
    ends = [*(body.stop_token_ids or ()), before, behind, gap]
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
