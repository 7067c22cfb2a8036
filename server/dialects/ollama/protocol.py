"""Bodies of Ollama's routes. Values that become fields of OpenAI's bodies are checked there."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from server.dialects.ollama.keep_alive import seconds_of
from server.dialects.ollama.options import ignored_options
from server.protocol.common import MAX_TOKEN_COUNT, ModelRequest, WireModel
from server.protocol.scores import Texts

_MAX_MESSAGES = 4096

_NO_EFFECT: Mapping[str, str] = {
    "truncate": "a conversation that is too long is refused, never cut",
    "shift": "a text ends where the context does",
}

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "template": ("",),
    "context": ([],),
    "width": (0,),
    "height": (0,),
    "steps": (0,),
}
"""Known fields that are refused, with the values that ask for nothing and pass. Null passes too."""

Options = dict[str, Any]


class OllamaRequest(ModelRequest):
    """The common fields of all routes."""

    _no_effect: ClassVar[Mapping[str, str]] = _NO_EFFECT
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = _UNSUPPORTED

    keep_alive: float | Annotated[str, Field(max_length=64)] | None = Field(
        None,
        description="How long the model stays awake without a request: seconds, or a duration such "
        "as 10m; negative is for ever, 0 lets it sleep at once. Default: the server's "
        "sleep_idle_seconds. Where there are admin keys, it needs one.",
    )
    options: Options | None = Field(
        None,
        max_length=128,
        description="num_predict, stop, seed and the sampler parameters. Options for loading the "
        "model, such as num_ctx, have no effect.",
    )

    @property
    def idle_s(self) -> float | None:
        """The idle seconds after which the model sleeps, if the request says so.

        Raises:
            InvalidParameter: `keep_alive` is no time.
        """
        return self.ttl if self.keep_alive is None else seconds_of(self.keep_alive)

    def ignored_fields(self) -> list[str]:
        return [*super().ignored_fields(), *ignored_options(self.options or {})]


class TextFields(OllamaRequest):
    """The common fields of `/api/chat` and `/api/generate`."""

    stream: bool | None = Field(None, description="Answer line by line. Default true.")
    format: Literal["", "json"] | dict[str, Any] | None = Field(
        None, description="`json`, or a JSON schema that the answer follows."
    )
    think: bool | Literal["low", "medium", "high", "max"] | None = Field(
        None, description="Whether a model that can reason does so."
    )
    logprobs: bool | None = Field(None, description="Return the log-probability of each token.")
    top_logprobs: int | None = Field(None, description="Alternatives per token.")


class OllamaMessage(WireModel):
    """A message of a conversation."""

    role: str = Field(max_length=64)
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = Field(None, max_length=64)
    tool_calls: list[dict[str, Any]] | None = Field(None, max_length=256)
    tool_name: str | None = Field(None, max_length=256)


class OllamaChatRequest(TextFields):
    """A conversation to answer. Without messages, it only asks whether the model is loaded."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "messages": [{"role": "user", "content": "Write one sentence about the sea."}]
            }
        }
    )

    messages: list[OllamaMessage] | None = Field(None, max_length=_MAX_MESSAGES)
    tools: list[dict[str, Any]] | None = Field(
        None, max_length=4096, description="Functions that the model may call."
    )


class OllamaGenerateRequest(TextFields):
    """A prompt to answer or, with `raw`, to continue. Without one, it only asks whether the model
    is loaded."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"prompt": "Write one sentence about the sea."}}
    )

    prompt: str | None = None
    images: list[str] | None = Field(None, max_length=64, description="Images, as base64.")
    system: str | None = Field(None, description="Comes before the prompt in the chat template.")
    raw: bool | None = Field(None, description="Use no chat template for the prompt.")


class OllamaEmbedRequest(OllamaRequest):
    """Texts to embed."""

    model_config = ConfigDict(json_schema_extra={"example": {"input": "The sky is blue."}})

    input: Texts
    truncate: bool | None = Field(
        None, description="Cut the end of a text that is too long. Default true, as in Ollama."
    )
    dimensions: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKEN_COUNT,
        description="Return only this many numbers of each embedding.",
    )


class OllamaEmbeddingsRequest(OllamaRequest):
    """A text to embed, in the form that clients used before `/api/embed`."""

    model_config = ConfigDict(json_schema_extra={"example": {"prompt": "The sky is blue."}})

    prompt: str = Field(min_length=1)


class OllamaShowRequest(WireModel):
    """A model to describe, for text or embeddings."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(None, max_length=256, description="Id of a served model.")
    name: str | None = Field(None, max_length=256, description="Older clients' name for `model`.")


class OllamaPullRequest(OllamaShowRequest):
    """A model that should be available."""

    stream: bool | None = Field(None, description="Answer line by line. Default true.")
