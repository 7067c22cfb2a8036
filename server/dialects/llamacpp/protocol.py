"""Bodies of llama-server's own routes. Most of its names are ours; this module has the others."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, Field, model_validator

from engine.contract.sampler_order import OTHER_SAMPLER_NAMES, SAMPLERS
from engine.errors import UnsupportedFeature
from server.embeddings.inputs import Inputs
from server.protocol.common import (
    NO_EFFECT_FIELDS,
    UNSUPPORTED_FIELDS,
    NumAlternatives,
    SamplingRequest,
    TokenLimitOrZero,
    WireModel,
)
from server.protocol.embeddings import UNSUPPORTED_EMBEDDING_FIELDS, EmbeddingModelRequest
from server.protocol.prompts import Prompts
from server.protocol.scores import check_either, either_of

MAX_EXTRA_FILES = 256
_MAX_UNKNOWN = 32
"""The most unknown samplers that are reported."""

_NO_EFFECT: Mapping[str, str] = {
    **NO_EFFECT_FIELDS,
    "cache_prompt": "known prefixes are always reused, which changes no text",
    "id_slot": "there are no slots to choose from; blocks of the cache are shared",
    "n_keep": "a text ends where the context does, and nothing is shifted",
    "n_discard": "a text ends where the context does, and nothing is shifted",
    "n_cache_reuse": "sets how much of the cache is reused, which changes no text",
    "return_progress": "reports how far the prompt has been read",
    "return_tokens": "answers always contain their tokens",
    "timings_per_token": "answers have timings; parts of a stream have none",
    "sse_ping_interval": "the server sends its own comments during silence",
    "response_fields": "answers have all fields",
    "speculative.n_min": "the operator chooses how texts are drafted, which changes none",
    "speculative.n_max": "the operator chooses how texts are drafted, which changes none",
    "speculative.p_min": "the operator chooses how texts are drafted, which changes none",
}
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **UNSUPPORTED_FIELDS,
    "image_data": ([],),
    "grammar_lazy": (False,),
    "grammar_triggers": ([],),
}
"""Known fields that are refused, with the values that ask for nothing and pass. Null passes too."""


_TEMPERATURE_LAST = [*(name for name in SAMPLERS if name != "temperature"), "temperature"]


def _with_known_samplers(data: dict[str, Any]) -> dict[str, Any]:
    """The body without unknown samplers, which are reported as ignored fields, and without a
    sampler's other name if its own name is there, too."""
    names = data.get("samplers")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return data
    known = [name for name in names if name in SAMPLERS or name in OTHER_SAMPLER_NAMES]
    unknown = [f"samplers.{name}" for name in names if name not in known]
    known = [name for name in known if OTHER_SAMPLER_NAMES.get(name) not in known]
    return {**data, "samplers": known, **dict.fromkeys(unknown[:_MAX_UNKNOWN])}


class LlamaTextRequest(SamplingRequest):
    """The common fields of requests for a text."""

    _no_effect: ClassVar[Mapping[str, str]] = _NO_EFFECT
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = _UNSUPPORTED
    limit_field: ClassVar[str] = "n_predict"

    n_predict: TokenLimitOrZero | None = Field(
        None,
        description="Most tokens to generate; -1, the default, means as many as the "
        "context has room for.",
    )
    max_tokens: TokenLimitOrZero | None = Field(None, description="OpenAI's name for n_predict.")
    n_probs: NumAlternatives | None = Field(
        None,
        description="Return each token's log-probability and this many alternatives.",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_frontends(cls, data: Any) -> Any:
        """The body without fields that frontends send to any server, if these have only one
        possible meaning."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        prompt = data.get("prompt")
        if isinstance(prompt, dict) and "multimodal_data" in prompt:
            raise UnsupportedFeature(
                "multimodal_data is not supported here; send images in the messages of a chat, to "
                "/v1/chat/completions",
                param="prompt.multimodal_data",
            )
        if data.get("max_new_tokens") in (data.get("n_predict"), data.get("max_tokens")):
            data.pop("max_new_tokens", None)
        if data.get("negative_prompt") == "":
            del data["negative_prompt"]
        if data.pop("temperature_last", None) is True and data.get("samplers") is None:
            data["samplers"] = _TEMPERATURE_LAST
        return _with_known_samplers(data)

    @model_validator(mode="after")
    def _check_num_texts(self) -> Self:
        if self.num_choices > 1:
            raise UnsupportedFeature(
                "this route writes one text; for several, use /v1/completions", param="n"
            )
        return self


class LlamaCompletionRequest(LlamaTextRequest):
    """A prompt to continue."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"prompt": "The sky is", "n_predict": 16}}
    )

    prompt: Prompts = Field(description="Text or token ids.")

    @model_validator(mode="after")
    def _check_num_prompts(self) -> Self:
        if len(self.prompt) > 1:
            raise UnsupportedFeature(
                "this route continues one prompt; for several, use /v1/completions", param="prompt"
            )
        return self


_TEXTS = (("content",), ("input",))


class LlamaEmbeddingRequest(EmbeddingModelRequest):
    """Texts to embed."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"content": "The sky is blue."}, **either_of(*_TEXTS)}
    )
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **UNSUPPORTED_EMBEDDING_FIELDS,
        "embd_normalize": (2,),
        "image_data": ([],),
    }

    content: Prompts | None = Field(None, description="Text, token ids, or a list of either.")
    input: Prompts | None = Field(None, description="OpenAI's name for content.")

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        check_either(self, *_TEXTS)
        return self

    @property
    def texts(self) -> Inputs:
        given = {"content": self.content, "input": self.input}
        return Inputs({name: texts for name, texts in given.items() if texts is not None})


class ExtraFile(WireModel):
    """Another file of the same project."""

    text: str
    filename: str | None = Field(None, max_length=1024, description="Default tmp.")


class LlamaInfillRequest(LlamaTextRequest):
    """The text before and after a gap to fill."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"input_prefix": "def f(", "input_suffix": "return a"}}
    )

    input_prefix: str
    input_suffix: str
    prompt: str | None = Field(None, description="The beginning of the text that fills the gap.")
    input_extra: list[ExtraFile] | None = Field(
        None, max_length=MAX_EXTRA_FILES, description="Other files, which come before the gap."
    )
