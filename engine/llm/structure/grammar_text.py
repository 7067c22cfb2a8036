"""Turns a structure into the text of its grammar, as llguidance reads it.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md describes the language.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher

from engine.contract.structure import Structure, StructureKind
from engine.errors import InvalidParameter
from engine.llm.structure.gbnf_lark import lark_of_gbnf
from engine.llm.structure.json_schema import readable_schema
from engine.llm.structure.token_names import TokenNames

WHITESPACE = r"[ \n\t]{0,20}"
"""The whitespace between JSON's tokens: enough for indentation, but bounded."""
_SPACED = {"whitespace_pattern": WHITESPACE}
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_LARK = re.compile(
    r"^\s*(?:%(?:llguidance|import|ignore)\b|[?!]?start\b(?:\[[^]\n]*\])?\s*:(?!:=))", re.MULTILINE
)
"""Matches what only llguidance's language has, so that the text is not GBNF."""
_FREE_TEXT = "TEXT: /(.|\\n)*/"


def grammar_text(structure: Structure, tokens: TokenNames) -> str:
    """Write the grammar of a structure.

    Args:
        tokens: the names of the model's tokens, for grammars and tags.

    Raises:
        InvalidParameter: the structure is too large, or not valid for its kind.
    """
    structure.check_size()
    try:
        return _text(structure, tokens)
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidParameter(
            f"{structure.param} cannot be read: {str(error)[:200]}", param=structure.param
        ) from error
    except RecursionError:
        raise InvalidParameter(
            f"{structure.param} is nested too deeply; nest it less", param=structure.param
        ) from None


def _text(structure: Structure, tokens: TokenNames) -> str:
    text = structure.text
    match structure.kind:
        case StructureKind.JSON_SCHEMA:
            options = _COMPACT if structure.is_compact else _SPACED
            schema = readable_schema(json.loads(text), structure.param)
            schema = _with_options(schema, options)
            return json.dumps({"grammars": [{"json_schema": schema}]})
        case StructureKind.REGEX:
            return LLMatcher.grammar_from_regex(text)
        case StructureKind.CHOICE:
            return f"start: {_alternatives(json.loads(text))}"
        case StructureKind.GRAMMAR:
            return text if _LARK.search(text) else lark_of_gbnf(text, tokens)
        case StructureKind.TAGS:
            tags = json.loads(text)
            for tag in tags["tags"]:
                tag["schema"] = readable_schema(tag["schema"], structure.param)
            if tags["answer"] is not None:
                tags["answer"] = readable_schema(tags["answer"], structure.param)
            return _TagGrammar(tokens.special).text(tags)


def _alternatives(choices: Sequence[str]) -> str:
    if not choices:
        raise ValueError("the list of choices is empty")
    return " | ".join(map(json.dumps, choices))


def _with_options(schema: Any, options: Mapping[str, Any] = _SPACED) -> dict[str, Any]:
    """Add options to a schema, first as an object, since only an object can carry them."""
    if isinstance(schema, bool):
        schema = {"allOf": [schema]}
    return {**schema, "x-guidance": options}


class _TagGrammar:
    """The grammar of `engine.contract.structure.Tags`."""

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self._special = dict(special_tokens)
        names = sorted(self._special, key=len, reverse=True)
        self._cuts = re.compile("|".join(map(re.escape, names))) if names else None

    def text(self, tags: Mapping[str, Any]) -> str:
        """Write the grammar of tags in the form of `Tags.structure`."""
        return "\n".join(["%llguidance {}", *self._rules(tags), ""])

    def _rules(self, tags: Mapping[str, Any]) -> list[str]:
        if not tags["tags"]:
            raise ValueError("the list of tags is empty")
        if tags["has_text"]:
            return self._rules_with_text(tags)
        bodies = [self._body(self._parts(tag["begin"]), tag) for tag in tags["tags"]]
        rules = [f"tag: {' | '.join(bodies)}"]
        separator = " ".join(self._parts(tags["separator"]))
        start = "tag" if tags["at_most_one"] else f"tag ({separator} tag)*"
        if tags["answer"] is not None:
            start += f" | %json {json.dumps(_with_options(tags['answer']))}"
        return [f"start: {start}", *rules]

    def _rules_with_text(self, tags: Mapping[str, Any]) -> list[str]:
        """Write the rules of tags in free text. A trigger is a special token, or a lexeme that ends
        as soon as it is written."""
        rules, alternatives, first_ids = [], [], set()
        for number, trigger in enumerate(tags["triggers"]):
            begun = [tag for tag in tags["tags"] if tag["begin"].startswith(trigger)]
            if not begun or not trigger:
                raise ValueError(f"no tag begins with the trigger {trigger!r}")
            first, *rest = self._parts(trigger)
            if rest:
                raise ValueError(
                    f"the trigger {trigger!r} must be one special token, or text without any"
                )
            bodies = [self._body(self._parts(tag["begin"][len(trigger) :]), tag) for tag in begun]
            if first.startswith("<["):
                first_ids.add(first)
                head = f"TEXT {first}"
            else:
                rules.append(f"trigger_{number}[lazy]: TEXT {first}")
                head = f"trigger_{number}"
            rules.append(f"tag_{number}: {head} ({' | '.join(bodies)})")
            alternatives.append(f"tag_{number}")
        self._check_triggers(tags)
        others = sorted(set(self._special.values()) - {int(one[2:-2]) for one in first_ids})
        other = f"(TEXT <[{','.join(map(str, others))}]>)*" if others else ""
        some = f"({other} ({' | '.join(alternatives)}))"
        end = "" if tags["at_most_one"] else f"{some}* {other} TEXT"
        start = f"{some} {end}" if tags["at_least_one"] else f"{some} {end} | {other} TEXT"
        return [f"start: {start}", _FREE_TEXT, *rules]

    def _check_triggers(self, tags: Mapping[str, Any]) -> None:
        for tag in tags["tags"]:
            if not any(tag["begin"].startswith(trigger) for trigger in tags["triggers"]):
                raise ValueError(f"the tag {tag['begin']!r} begins with no trigger")

    def _body(self, begin: Sequence[str], tag: Mapping[str, Any]) -> str:
        schema = json.dumps(_with_options(tag["schema"]))
        return " ".join([*begin, f"%json {schema}", *self._parts(tag["end"])])

    def _parts(self, text: str) -> list[str]:
        """Split a text into strings and special tokens."""
        parts, at = [], 0
        for found in self._cuts.finditer(text) if self._cuts is not None else ():
            parts += [json.dumps(text[at : found.start()])] if found.start() > at else []
            parts.append(f"<[{self._special[found[0]]}]>")
            at = found.end()
        return [*parts, *([json.dumps(text[at:])] if at < len(text) else [])]
