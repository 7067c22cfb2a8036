"""Fields that the request bodies of several routes share, and the treatment of unknown fields.

The models are pydantic's and strict about types: an explicit null means the default, and a field
that is in no table here is accepted and reported.
"""

from collections.abc import Container, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError

from engine.contract.generate_rules import check_end
from engine.errors import InvalidParameter, UnsupportedFeature
from server.protocol.group_fields import GroupFields, check_groups
from server.protocol.logit_bias import LogitBias, Word
from server.protocol.sampler_fields import OTHER_NAMES
from server.protocol.signal_fields import SignalFields, check_signals
from server.protocol.structure_fields import StructureFields

MAX_FIELDS, MAX_INNER_FIELDS = 1024, 64
"""The most fields of a body, and of an object in it whose fields are known: checking each field
takes microseconds, during which no other request is served."""
MAX_PARTS = 16_384
"""The most parts of all messages of a conversation."""
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1
MAX_TOKEN_COUNT = (1 << 31) - 1
MAX_PROMPT_TOKENS = 1 << 20
"""More tokens than models take; reading this many holds up other requests for a tenth of a
second."""
MAX_STOP_STRINGS = 16
MAX_LOGPROBS = 20
MAX_ALLOWED_TOKENS = 1 << 18
"""The most allowed tokens: as many as the largest vocabularies have."""
MAX_BAD_WORDS = 512
MAX_PATTERN_SIZE = 128
"""The longest pattern: looking for patterns takes time per token of an answer and size of a
pattern."""

NO_MODEL_READS = (
    "no model served here reads audio, video or files in messages; send text, or images to a model "
    "that takes them"
)
"""The message about parts of a message that are neither text nor images."""

NO_EFFECT_FIELDS: Mapping[str, str] = {
    "user": "names the end user to OpenAI's abuse monitoring",
    "safety_identifier": "names the end user to OpenAI's abuse monitoring",
    "store": "keeps the answer in OpenAI's account",
    "metadata": "labels a stored answer",
    "service_tier": "chooses OpenAI's price and latency tier",
    "prompt_cache_key": "steers OpenAI's cache routing; prefix caching here needs no hint",
    "guided_decoding_backend": "chooses vLLM's library for structured outputs",
    "prediction": "a hint that makes OpenAI's decoding faster, without changing its result",
}
"""OpenAI fields that are accepted and, by their meaning, change no answer of this server."""

UNSUPPORTED_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "suffix": ("",),
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "logits_processors": ([],),
    "prompt_embeds": (),
    "chat_template": (),
    "documents": ([],),
    "spaces_between_special_tokens": (True,),
    "truncation_side": ("left",),
    "include_reasoning": (True,),
    "separate_reasoning": (True,),
    "stream_reasoning": (True,),
    "reasoning_format": ("auto", "deepseek"),
    "thinking_token_budget": (-1,),
    "reasoning_budget_tokens": (-1,),
    "logprob_token_ids": ([],),
    "return_hidden_states": (False,),
    "regex": (),
    "ebnf": (),
    "stop_regex": ([], ""),
    "lora": ([],),
    "lora_path": (),
    "n_cmpl": (1,),
    "n_indent": (0,),
    "min_keep": (0, 1),
    "t_max_predict_ms": (-1, 0),
    "post_sampling_probs": (False,),
    "max_new_tokens": (),
    "sampling_seed": (),
    "do_sample": (True,),
    "num_beams": (1,),
    "no_repeat_ngram_size": (0,),
    "tfs": (1,),
    "typical": (1,),
    "top_a": (0,),
    "smoothing_factor": (0,),
    "temperature_last": (False,),
    "adaptive_target": (-1, -0.01),
}
"""Known fields that are refused, with the values that ask for nothing and pass. Null passes too. A
route with a field of that name accepts it."""

INSTEAD = {
    "functions": "functions is deprecated and not supported here; send tools instead, each as "
    '{"type": "function", "function": {…}}, to /v1/chat/completions',
    "function_call": "function_call is deprecated and not supported here; send tool_choice "
    'instead, to /v1/chat/completions: "none", "auto", "required" or {"type": "function", '
    '"function": {"name": "…"}}',
} | {
    name: f"{name} is not supported here; send {instead} instead"
    for name, instead in {
        "regex": "structured_outputs with regex",
        "ebnf": "structured_outputs with grammar",
        "suffix": "input_prefix and input_suffix to /infill",
        "lora": "the adapter's name as model",
        "lora_path": "the adapter's name as model",
        "n_cmpl": "n",
        "max_new_tokens": "max_tokens",
        "sampling_seed": "seed",
        "do_sample": "temperature: 0",
        "num_beams": "use_beam_search and best_of",
        "typical": "typical_p",
    }.items()
}
"""Advice about refused fields that have a replacement, or another name here."""


T = TypeVar("T")


def given_or(value: T | None, default: T) -> T:
    """The value, or the default for null; 0 and false are kept."""
    return default if value is None else value


TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_COUNT)]


def integral(value: Any) -> Any:
    """The value, as an integer if it is a whole number: 5.0 is an integer in JSON, though not in
    Python."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_ids(value: Any) -> list[int] | None:
    """The token ids in an array, at most `MAX_PROMPT_TOKENS`; None if the value is anything else. A
    million ids take 50 ms, half of pydantic's time. True and false are integers in Python, but not
    here."""
    if not isinstance(value, list) or not 0 < len(value) <= MAX_PROMPT_TOKENS:
        return None
    types = set(map(type, value))
    if float in types:
        value = [integral(item) for item in value]
        types = set(map(type, value))
    fits = types == {int} and min(value) >= 0 and max(value) <= MAX_TOKEN_COUNT
    return value if fits else None


def _read_ids(value: Any, explain: ValidatorFunctionWrapHandler) -> Any:
    """The ids in an array. `explain` finds the mistake in anything else, or in an empty array."""
    if isinstance(value, list) and len(value) > MAX_PROMPT_TOKENS:
        sizes = {"max_length": MAX_PROMPT_TOKENS, "actual_length": len(value)}
        raise PydanticKnownError("too_long", {"field_type": "List", **sizes})
    ids = read_ids(value)
    if ids is None and isinstance(value, list):
        value = [integral(item) for item in value]
    return explain(value) if ids is None else ids


def _not_zero(limit: int) -> int:
    if limit == 0:
        raise PydanticCustomError(
            "token_limit",
            "must be at least 1, or -1 for as many tokens as the context has room for",
        )
    return limit


NumAlternatives = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
TokenLimitOrZero = Annotated[int, Field(ge=-1, le=MAX_TOKEN_COUNT)]
"""Most tokens to generate; -1 means as many as the context has room for."""
TokenLimit = Annotated[
    TokenLimitOrZero, AfterValidator(_not_zero), Field(json_schema_extra={"not": {"const": 0}})
]

_TokenIds = Annotated[list[TokenId], Field(max_length=MAX_PROMPT_TOKENS, fail_fast=True)]
TokenIds = Annotated[_TokenIds, WrapValidator(_read_ids, json_schema_input_type=_TokenIds)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
Priority = Annotated[
    int | None,
    Field(
        ge=-(1 << 31),
        le=(1 << 31) - 1,
        description="Lower values run first, then by arrival. Values other than 0 need "
        "--scheduling-policy priority. Default 0.",
    ),
]


def _stop_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopStrings = Annotated[
    list[StopString],
    Field(max_length=MAX_STOP_STRINGS),
    BeforeValidator(
        _stop_list,
        json_schema_input_type=StopString
        | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)],
    ),
]


class WireModel(BaseModel):
    """Base of everything that a client sends: strict types; unknown fields are kept separately."""

    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=()
    )
    _max_fields: ClassVar[int] = MAX_INNER_FIELDS

    @model_validator(mode="before")
    @classmethod
    def _check_num_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > cls._max_fields:
            raise InvalidParameter(
                f"an object has {len(data)} fields; the limit is {cls._max_fields}; send fewer"
            )
        return data


class RequestBody(WireModel):
    """The body of a request. Routes of other kinds than text have their own tables."""

    _max_fields: ClassVar[int] = MAX_FIELDS
    _no_effect: ClassVar[Mapping[str, str]] = NO_EFFECT_FIELDS
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = UNSUPPORTED_FIELDS
    _instead: ClassVar[Mapping[str, str]] = INSTEAD
    """Advice about refused fields."""
    _not_here: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Inherited fields that this body refuses, with the values that ask for nothing and pass."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        table = {**cls._unsupported, **cls._not_here}
        supported = cls.model_fields.keys() - cls._not_here.keys()
        _check_supported(data, table, cls._instead, supported)
        return {name: integral(value) for name, value in data.items()}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name in cls._not_here:
            properties.pop(name, None)
        return schema

    def ignored_fields(self) -> list[str]:
        """Names of the fields that the client sent and this server does not know."""
        known = self._no_effect.keys() | self._unsupported.keys()
        return [name for name in self.model_extra or {} if name not in known]


class ModelRequest(RequestBody):
    """A request to one of the served models."""

    model: str | None = Field(
        None,
        max_length=256,
        description="Id of a served model. May be left out if exactly one is served.",
    )
    ttl: float | None = Field(
        None,
        ge=-1,
        le=MAX_TOKEN_COUNT,
        description="LM Studio's field: seconds without a request after which the model sleeps; "
        "-1 is never. Default: the server's sleep_idle_seconds. Where there are admin keys, it "
        "needs one.",
    )


class StreamOptions(WireModel):
    """Whether a stream reports usage, at its end or in each chunk."""

    include_usage: bool | None = Field(
        None, description="Send a last chunk with the usage and no choices."
    )
    continuous_usage_stats: bool | None = Field(
        None, description="With include_usage: give the usage so far in every chunk."
    )


class RepetitionDetectionField(WireModel):
    """vLLM's field: when a text counts as repeating itself, and what to do then."""

    max_pattern_size: int = Field(
        ge=0, le=MAX_PATTERN_SIZE, description="Most tokens of a pattern; 0 looks for none."
    )
    min_pattern_size: int | None = Field(
        None, ge=0, le=MAX_PATTERN_SIZE, description="Fewest tokens of a pattern. Default 1."
    )
    min_count: int = Field(
        ge=2, le=MAX_TOKEN_COUNT, description="How often in a row a pattern must occur."
    )
    action: (
        Annotated[Literal["stop", "report"], Field(json_schema_extra={"maxLength": 6})] | None
    ) = Field(
        None,
        description="End the text there, or only report where it repeats itself. Default stop.",
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if 0 < self.max_pattern_size < (self.min_pattern_size or 1):
            raise InvalidParameter(
                f"min_pattern_size is {self.min_pattern_size}; it must be at most "
                f"max_pattern_size, here {self.max_pattern_size}",
                param="repetition_detection.min_pattern_size",
            )
        return self


class SamplingRequest(
    GroupFields,
    StructureFields,
    SignalFields,
    ModelRequest,
):
    """The common fields of chat and plain completions. Every field may be null, which means its
    default."""

    prompt_field: ClassVar[str] = "prompt"
    """The field that holds the prompt."""
    limit_field: ClassVar[str] = "max_tokens"
    """The field that limits the length of the answer."""
    _other_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "n_predict": ("max_completion_tokens", "max_tokens"),
        "beam_width": ("best_of",),
        **OTHER_NAMES,
    }
    """llama.cpp's field names that differ from ours."""

    max_completion_tokens: TokenLimit | None = Field(
        None, description="Most tokens to generate; wins over max_tokens."
    )
    min_tokens: int | None = Field(
        None,
        ge=0,
        le=MAX_TOKEN_COUNT,
        description="Do not end the text before this many tokens, whether by end-of-sequence, "
        "stop_token_ids or stop.",
    )
    seed: int | None = Field(
        None,
        ge=INT64_MIN,
        le=INT64_MAX,
        description="The same seed gives the same text, whatever else the server does.",
    )
    stop: StopStrings | None = Field(
        None, description="Strings that end the text; up to 16, none empty."
    )
    stop_token_ids: TokenIds | None = Field(
        None, max_length=256, description="Tokens that end the text."
    )
    include_stop_str_in_output: bool | None = Field(
        None, description="Keep the string or token that ended the text. Default false."
    )
    repetition_detection: RepetitionDetectionField | None = Field(
        None,
        description="End the text, with finish_reason repetition, once it keeps repeating the "
        "same tokens, or only report where it does.",
    )
    ignore_eos: bool | None = Field(
        None, description="Go on after end-of-sequence, up to max_tokens. Default false."
    )
    skip_special_tokens: bool | None = Field(
        None, description="Leave special tokens out of the text. Default true."
    )
    logit_bias: LogitBias | None = Field(
        None,
        description="Values added to the logits of these token ids. In the form of pairs, [text, "
        "bias] applies to each token of a text, and false as a bias forbids the "
        "token.",
    )
    allowed_token_ids: TokenIds | None = Field(
        None,
        min_length=1,
        max_length=MAX_ALLOWED_TOKENS,
        description="The only tokens that may be drawn. End-of-sequence must be listed to be "
        "drawn.",
    )
    bad_words: list[Word] | None = Field(
        None,
        max_length=MAX_BAD_WORDS,
        description="Words that the text must not contain, as the tokenizer writes each of them "
        "on its own and after a space.",
    )
    prompt_logprobs: NumAlternatives | None = Field(
        None,
        description="Log-probabilities of the prompt's tokens with this many alternatives. "
        "Not with stream.",
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    priority: Priority = None
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="Share cached prefixes only with requests of the same salt.",
    )
    prompt_cache_retention: (
        Annotated[
            Literal["in_memory", "in-memory", "24h"], Field(json_schema_extra={"maxLength": 9})
        ]
        | None
    ) = Field(
        None,
        description="24h: keep the prompt cached for a day, as far as there is room for what "
        "clients ask to keep. Default: as long as it is used often enough.",
    )
    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        le=MAX_TOKEN_COUNT,
        description="Keep only this many of the prompt's last tokens; -1 keeps as many as fit "
        "together with max_tokens.",
        json_schema_extra={"not": {"const": 0}},
    )
    add_special_tokens: bool | None = Field(
        None,
        description="Let the tokenizer add its special tokens, such as begin-of-sequence. "
        "Default: true for a plain prompt, false in chat, where the template writes "
        "them.",
    )
    return_tokens_as_token_ids: bool | None = Field(
        None, description="Write `token_id:<id>` for each token in log-probabilities."
    )
    return_token_ids: bool | None = Field(
        None, description="Return the token ids of the prompt and the text."
    )

    @property
    def own_names(self) -> Mapping[str, str]:
        """The request's field names where they differ from the engine's."""
        return {
            "prompt": self.prompt_field,
            "max_tokens": self.limit_field,
            "best_of": self.width_field,
        }

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name, others in self._other_names.items():
            value = getattr(self, name)
            for other in others:
                if None not in (value, getattr(self, other)) and value != getattr(self, other):
                    raise InvalidParameter(
                        f"{name} is {value} and {other} is {getattr(self, other)}; they mean the "
                        "same, so send one of them",
                        param=name,
                    )
        return self

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise InvalidParameter("stream_options needs stream: true", param="stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidParameter(
                "prompt_logprobs is not available with stream: true; leave one of them out",
                param="prompt_logprobs",
            )
        check_end(self.structure, bool(self.ignore_eos))
        check_groups(self, self.own_names)
        check_signals(self)
        if self.truncate_prompt_tokens == 0:
            raise InvalidParameter(
                "truncate_prompt_tokens must be -1 or at least 1", param="truncate_prompt_tokens"
            )
        return self


def check_num_parts(num_parts: int, param: str) -> None:
    """Check the number of a conversation's parts up to this field.

    Raises:
        InvalidParameter: there are more than a conversation may have.
    """
    if num_parts > MAX_PARTS:
        raise InvalidParameter(
            f"{param}: up to here the conversation has more than {MAX_PARTS} parts, the limit; "
            "join some of them",
            param=param,
        )


def _check_supported(
    data: Mapping[str, Any],
    table: Mapping[str, tuple[Any, ...]],
    instead: Mapping[str, str],
    supported: Container[str],
) -> None:
    """Refuse known fields that ask for something this server, or this route, cannot do.

    Raises:
        UnsupportedFeature: names the field.
    """
    for name in data.keys() & table.keys():
        if name in supported:
            continue
        value, neutral = data[name], table[name]
        if value is None or value in neutral:
            continue
        advice = instead.get(name, f"{name} is not supported here; leave it out")
        raise UnsupportedFeature(advice, param=name)
