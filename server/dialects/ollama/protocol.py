"""Bodies of Ollama's routes. What becomes a field of OpenAI's is checked there."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from server.dialects.ollama.options import ignored_options
from server.protocol.common import MAX_TOKEN_COUNT, ModelRequest, WireModel
from server.protocol.scores import Texts

_MAX_MESSAGES = 4096

_NO_EFFECT: Mapping[str, str] = {
    "keep_alive": "models stay loaded until they are unloaded",
    "truncate": "a conversation that is too long is refused, never cut",
    "shift": "a text ends where the context does",
}

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "template": ("",),
    "context": ([],),
    "images": ([],),
    "width": (0,),
    "height": (0,),
    "steps": (0,),
}
"""Known fields that are refused, with the values that ask for nothing and pass. Null passes too."""

Options = dict[str, Any]


class OllamaRequest(ModelRequest):
    """What all routes share."""

    _no_effect: ClassVar[Mapping[str, str]] = _NO_EFFECT
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = _UNSUPPORTED

    options: Options | None = Field(
        None,
        max_length=128,
        description="num_predict, stop, seed and the sampler parameters. Those of the model's "
        "loading, such as num_ctx, have no effect.",
    )

    def ignored_fields(self) -> list[str]:
        return [*super().ignored_fields(), *ignored_options(self.options or {})]


class TextFields(OllamaRequest):
    """What `/api/chat` and `/api/generate` share."""

    stream: bool | None = Field(None, description="Answer line by line. Default true.")
    format: Literal["", "json"] | dict[str, Any] | None = Field(
        None, description="`json`, or a JSON schema that the answer follows."
    )
    think: bool | Literal["low", "medium", "high", "max"] | None = Field(
        None, description="Whether a model that can think does."
    )
    logprobs: bool | None = Field(None, description="Return the log-probability of each token.")
    top_logprobs: int | None = Field(None, description="Alternatives per token.")


class OllamaMessage(WireModel):
    """One message."""

    role: str = Field(max_length=64)
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = Field(None, max_length=64)
    tool_calls: list[dict[str, Any]] | None = Field(None, max_length=256)
    tool_name: str | None = Field(None, max_length=256)


class OllamaChatRequest(TextFields):
    """A conversation to answer. Without messages it only asks whether the model is there."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"messages": [{"role": "user", "content": "Say hello."}]}}
    )

    messages: list[OllamaMessage] | None = Field(None, max_length=_MAX_MESSAGES)
    tools: list[dict[str, Any]] | None = Field(
        None, max_length=4096, description="Functions that the model may call."
    )


class OllamaGenerateRequest(TextFields):
    """A prompt to answer, or with `raw` to continue. Without one it only asks whether the model is
    there."""

    model_config = ConfigDict(json_schema_extra={"example": {"prompt": "Say hello."}})

    prompt: str | None = None
    system: str | None = Field(None, description="Comes before the prompt in the chat template.")
    raw: bool | None = Field(None, description="Put no chat template around the prompt.")


class OllamaEmbedRequest(OllamaRequest):
    """Texts to embed."""

    model_config = ConfigDict(json_schema_extra={"example": {"input": "The sky is blue."}})

    input: Texts
    truncate: bool | None = Field(
        None, description="Cut a text that is too long at its end. Default true, as in Ollama."
    )
    dimensions: int | None = Field(
        None, ge=1, le=MAX_TOKEN_COUNT, description="Only the first so many numbers."
    )


class OllamaEmbeddingsRequest(OllamaRequest):
    """A text to embed, as clients asked before `/api/embed`."""

    model_config = ConfigDict(json_schema_extra={"example": {"prompt": "The sky is blue."}})

    prompt: str = Field(min_length=1)


class OllamaShowRequest(WireModel):
    """A model to describe, of either kind."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(None, max_length=256, description="Id of a served model.")
    name: str | None = Field(None, max_length=256, description="Older clients' `model`.")


class OllamaPullRequest(OllamaShowRequest):
    """A model to be there."""

    stream: bool | None = Field(None, description="Answer line by line. Default true.")
