"""The message format of a model's chat template beyond plain messages.

It is read from the template's text, because the template itself is foreign code that runs
elsewhere.
"""

import re
from dataclasses import dataclass

from engine.contract.text_settings import (
    ReasoningParserName,
    ReasoningParserSetting,
    ToolCallParserName,
    ToolCallParserSetting,
)
from engine.text.tool_calls.parsers import parser_of_template

_REASONING_SIGNS: tuple[tuple[str, ReasoningParserName], ...] = (
    ("<|channel>", "gemma4"),
    ("<|channel|>", "harmony"),
    ("[THINK]", "mistral"),
    ("</think>", "qwen3"),
)


_CODE = re.compile(r"\{[{%](.*?)[}%]\}", re.DOTALL)


_STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


_NAME = re.compile(r"(?<![.\w])[a-z_]\w*")


_THINKING_SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates let callers switch reasoning on or off."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The ways in which a template writes calls and reasoning.

    Attributes:
        takes_tools: whether the template shows functions to the model.
        takes_calls: whether it shows earlier calls and their results.
        takes_system: whether the first message may be a system message.
        takes_effort: whether it uses `reasoning_effort`.
        thinking_switch: the variable that switches reasoning, if there is one.
        short_call_ids: whether ids of calls must have 9 letters and digits.
    """

    tool_call_parser: ToolCallParserName
    reasoning_parser: ReasoningParserName | None
    takes_tools: bool
    takes_calls: bool
    takes_system: bool
    takes_effort: bool
    thinking_switch: str | None
    short_call_ids: bool

    @classmethod
    def of(
        cls,
        template: str,
        tool_call_parser: ToolCallParserSetting = "auto",
        reasoning_parser: ReasoningParserSetting = "auto",
    ) -> "ChatFormat":
        """Find the format of a template, as far as the operator has not set it."""
        variables = _variables(template)
        takes_tools = "tools" in variables
        if tool_call_parser == "auto":
            tool_call_parser = parser_of_template(template) if takes_tools else "json"
        return cls(
            tool_call_parser=tool_call_parser,
            reasoning_parser=_reasoning_parser(template, reasoning_parser),
            takes_tools=takes_tools,
            takes_calls=takes_tools or "tool_calls" in template,
            takes_system="System role not supported" not in template,
            takes_effort="reasoning_effort" in variables,
            thinking_switch=next((s for s in _THINKING_SWITCHES if s in variables), None),
            short_call_ids="Tool call IDs should be alphanumeric" in template,
        )


def _variables(template: str) -> frozenset[str]:
    """Return the names that the template's code uses, except those of attributes."""
    code = " ".join(_CODE.findall(template))
    return frozenset(_NAME.findall(_STRING.sub("''", code)))


def _reasoning_parser(template: str, setting: ReasoningParserSetting) -> ReasoningParserName | None:
    if setting == "auto":
        return next((name for sign, name in _REASONING_SIGNS if sign in template), None)
    return None if setting == "none" else setting
