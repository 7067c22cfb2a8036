"""Bodies of `/tokenize` and `/detokenize`, and what `/tokenizer_info` tells; shapes are vLLM's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import ConfigDict, Field, model_validator

from engine.errors import InvalidParameter
from server.protocol.chat import ChatTemplateOptions, Messages, check_parts
from server.protocol.common import ModelRequest, TokenIds


class TokenizeRequest(ModelRequest, ChatTemplateOptions):
    """Either a prompt or messages."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"prompt": "Hello world"},
            "oneOf": [
                {
                    "required": ["prompt"],
                    "properties": {"prompt": {"type": "string"}, "messages": {"type": "null"}},
                },
                {
                    "required": ["messages"],
                    "properties": {"messages": {"type": "array"}, "prompt": {"type": "null"}},
                },
            ],
        }
    )

    prompt: str | None = Field(None, description="Plain text.")
    messages: Messages | None = Field(None, description="A chat, put through the template.")
    add_special_tokens: bool | None = Field(
        None,
        description="Let the tokenizer add its own, such as begin-of-sequence. Default: true "
        "for a prompt, false for messages.",
    )
    return_token_strs: bool | None = Field(
        None, description="Return the vocabulary's entry of each token. Default false."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_media(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            check_parts(data.get("messages"))
        return data

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidParameter("give either prompt or messages", param="prompt")
        return self


class DetokenizeRequest(ModelRequest):
    """Token ids to turn into text; special tokens are kept."""

    model_config = ConfigDict(json_schema_extra={"example": {"tokens": [1, 2, 3]}})

    tokens: TokenIds = Field(description="Token ids.")


@dataclass(slots=True)
class Tokenized:
    """The prompt's tokens and how many the model takes."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


@dataclass(slots=True)
class Detokenized:
    """The text of the tokens."""

    prompt: str


@dataclass(slots=True)
class AddedToken:
    """A token beside those that were learned, as transformers describes it."""

    content: str
    special: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    single_word: bool


@dataclass(slots=True, kw_only=True)
class TokenizerInfo:
    """How a model's text becomes tokens; names are those of tokenizer_config.json."""

    tokenizer_class: str
    """BPE, Unigram, WordPiece or WordLevel."""
    model_max_length: int
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    added_tokens_decoder: dict[int, AddedToken]
    """By token id."""
    chat_template: str | None
