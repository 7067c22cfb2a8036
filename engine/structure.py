"""The form that a text must have: what is asked for, not yet what enforces it.

A request carries a `Structure` in its sampling parameters; the engine makes a grammar of it
(`engine.llm.structure`) and lets no token be drawn that does not fit. Free of torch and of wire
libraries.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Self

from engine.errors import InvalidParameter

MAX_CHARS = 1 << 17
"""Of a structure's text: a schema of some thousand fields."""


class StructureKind(StrEnum):
    """What a `Structure`'s text is."""

    JSON_SCHEMA = "json_schema"
    """A JSON Schema; `{}` stands for any JSON, `{"type": "object"}` for any object."""
    REGEX = "regex"
    """A regular expression that the whole text matches."""
    CHOICE = "choice"
    """A JSON array of strings, one of which is the text."""
    GRAMMAR = "grammar"
    """llama.cpp's GBNF, or llguidance's Lark."""
    TAGS = "tags"
    """`Tags` as JSON."""


@dataclass(frozen=True, slots=True)
class Structure:
    """What a text must look like from its first token to its last. Equal ones share a grammar.

    The text then ends where the form is complete: with an end-of-sequence token, which can be drawn
    nowhere else. `max_tokens` and stop strings may cut it off before.
    """

    kind: StructureKind
    text: str
    is_compact: bool = False
    """JSON has no optional spaces, only one behind each comma and colon."""
    param: str = field(default="structure", compare=False)
    """The field of the client's request that asked for it; errors name it."""

    @property
    def digest(self) -> str:
        """Names what is asked for, and not who asks: equal structures have equal digests."""
        asked = json.dumps([self.kind, self.text, self.is_compact])
        return hashlib.sha256(asked.encode()).hexdigest()

    def check_size(self) -> None:
        """
        Raises:
            InvalidParameter: the text is too long.
        """
        if len(self.text) > MAX_CHARS:
            raise InvalidParameter(
                f"{self.param} has {len(self.text)} characters; the limit is {MAX_CHARS}",
                param=self.param,
            )

    @classmethod
    def of_schema(
        cls,
        schema: Mapping[str, Any] | bool,
        *,
        is_compact: bool = False,
        param: str = "structure",
    ) -> Self:
        """JSON that the schema allows.

        Raises:
            InvalidParameter: it cannot be written down.
        """
        return cls(StructureKind.JSON_SCHEMA, _written(schema, param), is_compact, param)

    @classmethod
    def of_choice(cls, choices: Sequence[str], *, param: str = "structure") -> Self:
        """One of these strings."""
        return cls(StructureKind.CHOICE, json.dumps(list(choices)), param=param)


@dataclass(frozen=True, slots=True)
class Tag:
    """A piece of text of a given form: `begin`, JSON that the schema allows, `end`.

    Special tokens may be written out in `begin` and `end`, such as `<|python_tag|>`.
    """

    begin: str
    schema: Mapping[str, Any] | bool
    end: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """Text in which tags may stand, as tool calls do.

    Free text goes on until it has written a trigger; what follows must be a tag that begins with
    this trigger, and then the text is free again. Every tag begins with one of the triggers, each
    of which is a special token, or a text that holds none.
    """

    tags: Sequence[Tag]
    triggers: Sequence[str]
    has_text: bool = True
    """Whether there is free text. Without it there is nothing but tags, one at least."""
    at_least_one: bool = False
    """The text cannot end before there was one."""
    at_most_one: bool = False
    """The text ends behind the first tag."""
    separator: str = ""
    """Between two tags, where there is no free text."""
    answer: Mapping[str, Any] | bool | None = None
    """Schema of JSON that may stand in place of tags, where there is no free text."""

    def structure(self, *, param: str = "structure") -> Structure:
        """As a request carries it.

        Raises:
            InvalidParameter: a schema cannot be written down.
        """
        tags = [{"begin": tag.begin, "schema": tag.schema, "end": tag.end} for tag in self.tags]
        facts = {one.name: getattr(self, one.name) for one in fields(self)}
        text = _written({**facts, "tags": tags}, param)
        return Structure(StructureKind.TAGS, text, param=param)


def _written(value: Any, param: str) -> str:
    try:
        return json.dumps(value)
    except RecursionError:
        raise InvalidParameter(f"{param} is nested too deeply", param=param) from None
