"""The form that a text must have, as the request states it.

A request carries a `Structure` in its sampling parameters. The engine turns it into a grammar
(`engine.llm.structure`), which lets only fitting tokens be drawn. Imports neither torch nor wire
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
"""The most characters of a structure's text, enough for a schema with some thousand fields."""


class StructureKind(StrEnum):
    """The language of a `Structure`'s text."""

    JSON_SCHEMA = "json_schema"
    """A JSON Schema; `{}` allows any JSON, `{"type": "object"}` any object."""
    REGEX = "regex"
    """A regular expression that must match the whole text."""
    CHOICE = "choice"
    """A JSON array of strings; the text must be one of them."""
    GRAMMAR = "grammar"
    """A grammar in llama.cpp's GBNF or llguidance's Lark."""
    TAGS = "tags"
    """A `Tags` object as JSON."""


@dataclass(frozen=True, slots=True)
class Structure:
    """The form of a text from its first token to its last. Equal structures share a grammar.

    The text ends when the form is complete, with an end-of-sequence token, which cannot be drawn
    earlier. `max_tokens` and stop strings may cut it off before.
    """

    kind: StructureKind
    text: str
    is_compact: bool = False
    """Whether JSON has no optional spaces except one after each comma and colon."""
    param: str = field(default="structure", compare=False)
    """The field of the client's request that holds it; errors name this field."""

    @property
    def digest(self) -> str:
        """A digest of the form alone: equal structures have equal digests, whichever client sends
        them."""
        asked = json.dumps([self.kind, self.text, self.is_compact])
        return hashlib.sha256(asked.encode()).hexdigest()

    def check_size(self) -> None:
        """Check the length of the text.

        Raises:
            InvalidParameter: it is too long.
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
        """A structure for JSON that the schema allows.

        Raises:
            InvalidParameter: the schema is nested too deeply to be written as JSON.
        """
        return cls(StructureKind.JSON_SCHEMA, _written(schema, param), is_compact, param)

    @classmethod
    def of_choice(cls, choices: Sequence[str], *, param: str = "structure") -> Self:
        """A structure for one of these strings."""
        return cls(StructureKind.CHOICE, json.dumps(list(choices)), param=param)


@dataclass(frozen=True, slots=True)
class Tag:
    """A piece of text made of `begin`, JSON that the schema allows, and `end`.

    Special tokens may be written out in `begin` and `end`, such as `<|python_tag|>`.
    """

    begin: str
    schema: Mapping[str, Any] | bool
    end: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """Text that may contain tags, such as tool calls.

    After a trigger in free text, a tag that begins with this trigger must follow; then the text is
    free again. Every tag begins with one of the triggers. A trigger is a special token, or a text
    without special tokens.
    """

    tags: Sequence[Tag]
    triggers: Sequence[str]
    has_text: bool = True
    """Whether there is free text. Without it there are only tags, at least one."""
    at_least_one: bool = False
    """Whether the text must contain a tag."""
    at_most_one: bool = False
    """Whether the text ends after the first tag."""
    separator: str = ""
    """The text between two tags if there is no free text."""
    answer: Mapping[str, Any] | bool | None = None
    """A schema of JSON that may replace the tags if there is no free text."""

    def structure(self, *, param: str = "structure") -> Structure:
        """These tags as a structure for a request.

        Raises:
            InvalidParameter: a schema is nested too deeply to be written as JSON.
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
