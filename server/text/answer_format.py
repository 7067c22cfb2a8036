"""How the text of a chat's answers is read: which reasoning and which calls are looked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.text.answer_parser import AnswerParser
from engine.text.chat_format import ChatFormat
from engine.text.reasoning import REASONING_MARKERS, ReasoningMarkers, ReasoningReader
from engine.text.tool_calls.parser import ToolCallParser
from engine.text.tool_calls.table import TOOL_CALL_PARSERS
from server.protocol.chat import ChatCompletionRequest
from server.text.chat_prompt import offered_tools, parameters_of


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """Of one request; a parser for each of its completions.

    Attributes:
        reasoning: None where none is split off.
        is_open: the answer begins within the reasoning.
        calls: None where no tools are offered.
        schemas: of the offered functions' parameters, by name.
        max_calls: in one answer; None is any number.
    """

    reasoning: ReasoningMarkers | None = None
    is_open: bool = False
    calls: type[ToolCallParser] | None = None
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    max_calls: int | None = None

    @classmethod
    def of(
        cls, body: ChatCompletionRequest, chat_format: ChatFormat, prompt_end: str
    ) -> "AnswerFormat":
        """Of a chat.

        Args:
            prompt_end: the prompt's last characters.
        """
        tools = offered_tools(body)
        name = chat_format.reasoning_parser
        markers = REASONING_MARKERS[name] if name is not None else None
        is_open = markers is not None and (
            markers.is_open_within(body.messages[-1].text())
            if body.continue_final_message
            else markers.is_open_after(prompt_end)
        )
        return cls(
            reasoning=markers,
            is_open=is_open,
            calls=TOOL_CALL_PARSERS[chat_format.tool_call_parser] if tools else None,
            schemas={tool.function.name: parameters_of(tool) for tool in tools},
            max_calls=1 if body.parallel_tool_calls is False else None,
        )

    @property
    def is_plain(self) -> bool:
        """The whole text is content."""
        return self.reasoning is None and self.calls is None

    def special_texts(self) -> Sequence[str]:
        """What marks parts of an answer and may be written by special tokens."""
        texts = [] if self.reasoning is None else [*self.reasoning.tokens]
        return texts if self.calls is None else [*texts, *self.calls.markers]

    def parser(self) -> AnswerParser:
        """For one completion."""
        reasoning, calls = None, None
        if self.reasoning is not None:
            reasoning = ReasoningReader(self.reasoning, is_open=self.is_open)
        if self.calls is not None:
            calls = self.calls(self.schemas)
        return AnswerParser(reasoning, calls, self.max_calls)
