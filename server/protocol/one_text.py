"""Chat fields in dialects whose answer is a single text without further data."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from engine.errors import InvalidParameter, UnsupportedFeature
from server.protocol.chat import ReasoningEffort
from server.protocol.common import INSTEAD, UNSUPPORTED_FIELDS, SamplingRequest
from server.protocol.sampler_fields import OTHER_NAMES

_NOT_HERE: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "return_uncertainty": (False,),
    "uncertainty_threshold": (),
}
_OF_CHATS: Mapping[str, tuple[Any, ...]] = {
    "max_tokens": (),
    "n_predict": (),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "semantic_entropy": (False,),
    "semantic_threshold": (),
    "embedding_model": (),
    "kv_transfer_params": (),
}
"""Fields that only chats have, with the values that ask for nothing and pass."""

TEXT_FIELDS = frozenset(SamplingRequest.model_fields) - {
    *_NOT_HERE,
    *("model", "stream", "stream_options"),
}
"""Fields that any dialect accepts about how to write a text."""
_CHAT_FIELDS = frozenset(("chat_template_kwargs", "reasoning_effort", "parallel_tool_calls"))


class OneTextRequest(SamplingRequest):
    """A request for one text. Fields that shape the text mean the same as in a chat. Fields that
    ask for more texts, or for more data about one, are refused by name."""

    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {**UNSUPPORTED_FIELDS, **_OF_CHATS}
    _not_here: ClassVar[Mapping[str, tuple[Any, ...]]] = _NOT_HERE
    _instead: ClassVar[Mapping[str, str]] = INSTEAD | {
        name: f"{name} is not supported here; ask /v1/chat/completions"
        for name in (_NOT_HERE.keys() | _OF_CHATS.keys())
    }

    _other_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "beam_width": ("best_of",),
        **OTHER_NAMES,
    }

    chat_template_kwargs: dict[str, Any] | None = Field(
        None, max_length=64, description="More variables for the chat template."
    )
    reasoning_effort: ReasoningEffort | None = Field(
        None, description="As in a chat; wins over the dialect's own field for it."
    )
    parallel_tool_calls: bool | None = Field(
        None, description="Let an answer have more than one call. Default true."
    )

    @model_validator(mode="after")
    def _check_reports(self) -> Self:
        if self.repetition_detection is not None and self.repetition_detection.action == "report":
            raise UnsupportedFeature(
                "repetitions are not reported here; leave action out, or ask /v1/chat/completions",
                param="repetition_detection.action",
            )
        return self

    def text_fields(self, form: dict[str, Any] | None, form_field: str) -> dict[str, Any]:
        """The fields that a chat takes unchanged, with the form that the dialect's own field
        requests.

        Args:
            form: the form as a `response_format`.

        Raises:
            InvalidParameter: `response_format` requests a form as well.
        """
        names = (TEXT_FIELDS | _CHAT_FIELDS) & self.model_fields_set
        fields = {name: value for name in names if (value := getattr(self, name)) is not None}
        if form is None:
            return fields
        if "response_format" in fields:
            raise InvalidParameter(
                f"response_format and {form_field} both set the form of the text; send one of them",
                param="response_format",
            )
        return {**fields, "response_format": form}
