"""`logit_bias`: OpenAI's object of token ids, or llama-server's pairs, which may also contain
texts."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter
from pydantic_core import PydanticCustomError

MAX_BIASES = 1024
MAX_WORD_CHARS = 64
"""The most characters of a string that is tokenised for the sampler."""
MAX_TOKEN_ID = (1 << 31) - 1

Word = Annotated[str, Field(min_length=1, max_length=MAX_WORD_CHARS)]


def _is_key(value: Any) -> bool:
    if isinstance(value, str):
        return 1 <= len(value) <= MAX_WORD_CHARS
    # `in range(…)` would count up to a float.
    is_number = type(value) in (int, float)
    return is_number and 0 <= value <= MAX_TOKEN_ID and value == int(value)


def _is_bias(value: Any) -> bool:
    return value is False or (type(value) in (int, float) and -100 <= value <= 100)


def _checked(pair: list[Any]) -> list[Any]:
    if not (_is_key(pair[0]) and _is_bias(pair[1])):
        raise PydanticCustomError(
            "logit_bias_pair",
            f"must be a token id or a text of 1 to {MAX_WORD_CHARS} characters, and its bias: a "
            "number from -100 to 100, or false",
        )
    return [pair[0] if isinstance(pair[0], str) else int(pair[0]), pair[1]]


_KEY = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID},
        {"type": "string", "minLength": 1, "maxLength": MAX_WORD_CHARS},
    ]
}
_BIAS = {"anyOf": [{"type": "number", "minimum": -100, "maximum": 100}, {"const": False}]}
_Object = Annotated[
    dict[
        Annotated[str, Field(pattern=r"^[0-9]{1,10}$")],
        Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)],
    ],
    Field(max_length=MAX_BIASES, json_schema_extra={"additionalProperties": False}),
]
_Pair = Annotated[
    list[Any],
    Field(min_length=2, max_length=2, json_schema_extra={"prefixItems": [_KEY, _BIAS]}),
    AfterValidator(_checked),
]
_Pairs = Annotated[list[_Pair], Field(max_length=MAX_BIASES)]
_OBJECT: TypeAdapter[dict[str, float]] = TypeAdapter(_Object)
_PAIRS: TypeAdapter[list[list[Any]]] = TypeAdapter(_Pairs)


def _read(value: Any) -> list[list[Any]]:
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        # Checked before the single values.
        raise PydanticCustomError("logit_bias", f"must have at most {MAX_BIASES} items")
    if isinstance(value, list):
        return _PAIRS.validate_python(value, strict=True)
    biases = _OBJECT.validate_python(value, strict=True)
    return [[int(token_id), bias] for token_id, bias in biases.items()]


LogitBias = Annotated[
    list[list[Any]], BeforeValidator(_read, json_schema_input_type=_Object | _Pairs)
]
"""Pairs of a token id or a text, and its bias; false means never."""
