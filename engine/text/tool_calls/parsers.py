"""The parsers of calls, and the choice of one for a chat template."""

from collections.abc import Mapping
from typing import get_args

from engine.contract.text_settings import ToolCallParserName
from engine.text.tool_calls.gemma import FunctionGemmaParser, Gemma4Parser
from engine.text.tool_calls.harmony import HarmonyParser
from engine.text.tool_calls.hermes import HermesParser
from engine.text.tool_calls.json_calls import JsonCallsParser
from engine.text.tool_calls.llama3_json import Llama3JsonParser
from engine.text.tool_calls.mistral import MistralParser
from engine.text.tool_calls.parser import ToolCallParser
from engine.text.tool_calls.qwen3_coder import Qwen3CoderParser

TOOL_CALL_PARSERS: Mapping[ToolCallParserName, type[ToolCallParser]] = {
    "hermes": HermesParser,
    "qwen3_coder": Qwen3CoderParser,
    "llama3_json": Llama3JsonParser,
    "mistral": MistralParser,
    "gemma4": Gemma4Parser,
    "functiongemma": FunctionGemmaParser,
    "harmony": HarmonyParser,
    "json": JsonCallsParser,
}


assert set(TOOL_CALL_PARSERS) == set(get_args(ToolCallParserName))


_SIGNS: tuple[tuple[str, ToolCallParserName], ...] = (
    ("<|tool_call>", "gemma4"),
    ("<|channel|>", "harmony"),
    ("<start_function_call>", "functiongemma"),
    ("[TOOL_CALLS]", "mistral"),
    ("<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3_json"),
    ("<|start_header_id|>", "llama3_json"),
)
"""Signs in the text of a template that shows tools; the first one found decides."""


def parser_of_template(template: str) -> ToolCallParserName:
    """Return the parser for models with this chat template; `json` if there is no sign of
    another."""
    return next((name for sign, name in _SIGNS if sign in template), "json")
