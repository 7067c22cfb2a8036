"""Bodies of `/tokenize` and `/detokenize`, and the answer of `/tokenizer_info`, in vLLM's form."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from engine.errors import InvalidParameter
from server.protocol.chat import ChatTemplateOptions, Messages, check_parts
from server.protocol.common import ModelRequest, TokenIds
from server.protocol.prompts import MAX_PROMPTS

_SOURCES = {
    "prompt": ("messages",),
    "messages": ("prompt", "content"),
    "content": ("messages",),
}
"""The fields with what is to be tokenised, and the others that each excludes; prompt and content
may both be there if they are equal."""
_Texts = str | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]


class TokenizeRequest(ModelRequest, ChatTemplateOptions):
    """A request to tokenise either prompts or messages."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"prompt": "Hello world"},
            "anyOf": [
                {
                    "required": [name],
                    "properties": {
                        name: {"type": "array" if name == "messages" else ["string", "array"]},
                        **{other: {"type": "null"} for other in others},
                    },
                }
                for name, others in _SOURCES.items()
            ],
        }
    )

    prompt: _Texts | None = Field(
        None,
        description="Plain text, or several texts; for several, the answer has a list for each.",
    )
    messages: Messages | None = Field(None, description="A chat, rendered by the template.")
    content: _Texts | None = Field(
        None, description="llama-server's name for prompt; add_special is then false by default."
    )
    add_special_tokens: bool | None = Field(
        None,
        description="Let the tokenizer add its special tokens, such as begin-of-sequence. "
        "Default: true for a prompt, false for messages.",
    )
    add_special: bool | None = Field(
        None, description="llama-server's name for add_special_tokens."
    )
    with_pieces: bool | None = Field(
        None,
        description="As in llama-server: each entry of tokens is an id and its text. "
        "Default false.",
    )
    return_token_strs: bool | None = Field(
        None, description="Return the vocabulary's entry for each token. Default false."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_media(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            check_parts(data.get("messages"))
        return data

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if None not in (self.prompt, self.content) and self.prompt != self.content:
            raise InvalidParameter(
                "prompt and content mean the same and differ; send one of them",
                param="content",
            )
        if (self.text is None) == (self.messages is None):
            raise InvalidParameter("send either prompt or messages", param="prompt")
        return self

    @property
    def text(self) -> str | list[str] | None:
        """The text to tokenise as it is."""
        return self.content if self.prompt is None else self.prompt

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer adds its special tokens."""
        for asked in (self.add_special_tokens, self.add_special):
            if asked is not None:
                return asked
        return self.prompt is not None


class DetokenizeRequest(ModelRequest):
    """Token ids to turn into text; special tokens are kept."""

    model_config = ConfigDict(json_schema_extra={"example": {"tokens": [1, 2, 3]}})

    tokens: TokenIds = Field(description="Token ids.")


@dataclass(slots=True)
class Piece:
    """A token, as llama-server shows it.

    Attributes:
        piece: its text, or its bytes if they are not text.
    """

    id: int
    piece: str | list[int]


@dataclass(slots=True)
class Tokenized:
    """The prompt's tokens and the model's context length. For several prompts, there is a list for
    each."""

    count: int | list[int]
    max_model_len: int
    tokens: list[int] | list[Piece] | list[list[int]] | list[list[Piece]]
    token_strs: list[str] | list[list[str]] | None


@dataclass(slots=True)
class Detokenized:
    """The text of the tokens.

    Attributes:
        content: the same text by llama-server's name.
    """

    prompt: str
    content: str


@dataclass(slots=True)
class AddedToken:
    """A token that was added to those that the tokenizer learned, as transformers describes it."""

    content: str
    special: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    single_word: bool


@dataclass(slots=True, kw_only=True)
class TokenizerInfo:
    """How a model's text becomes tokens, by the names of tokenizer_config.json."""

    tokenizer_class: str
    """BPE, Unigram, WordPiece or WordLevel."""
    model_max_length: int
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    added_tokens_decoder: dict[int, AddedToken]
    """Added tokens by token id."""
    chat_template: str | None
