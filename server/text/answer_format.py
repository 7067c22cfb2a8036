"""How to read the text of a chat's answers: which reasoning and which calls to look for."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.contract.structure import StructureKind
from engine.errors import UnsupportedFeature
from engine.text.answer_parser import AnswerParser
from engine.text.chat_format import ChatFormat
from engine.text.reasoning import REASONING_MARKERS, ReasoningMarkers
from engine.text.tool_calls.json_calls import JsonCallsParser
from engine.text.tool_calls.parser import CallSyntax, ToolCallParser
from engine.text.tool_calls.parsers import TOOL_CALL_PARSERS
from server.protocol.chat import ChatCompletionRequest
from server.protocol.tools import FunctionTool
from server.text.chat_prompt import offered_tools, parameters_of


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """The answer format of one request; it makes a parser for each completion.

    Attributes:
        reasoning: its markers; None if no reasoning is split off.
        is_open: the answer begins within the reasoning.
        may_reason: the model may reason before it answers: the prompt has begun the reasoning, or
            the template could have switched it off and has not.
        calls: their parser; None if no tools are offered.
        tools: the tools that are offered.
        max_calls: the most calls in one answer; None sets no limit.
        must_call: the answer must contain a call.
    """

    reasoning: ReasoningMarkers | None = None
    is_open: bool = False
    may_reason: bool = False
    calls: type[ToolCallParser] | None = None
    tools: Sequence[FunctionTool] = ()
    max_calls: int | None = None
    must_call: bool = False

    @classmethod
    def of(
        cls, body: ChatCompletionRequest, chat_format: ChatFormat, prompt_end: str
    ) -> "AnswerFormat":
        """The answer format of a chat.

        Args:
            prompt_end: the prompt's last characters.
        """
        tools = offered_tools(body)
        calls = TOOL_CALL_PARSERS[chat_format.tool_call_parser]
        if calls.syntax is None and (body.must_call or body.structure is not None):
            calls = JsonCallsParser
        markers = _reasoning_markers(body, chat_format)
        is_open = may_reason = False
        if markers is not None and body.continue_final_message:
            is_open = may_reason = markers.is_open_within(body.messages[-1].text())
        elif markers is not None:
            is_open = markers.is_open_after(prompt_end)
            has_ended = prompt_end.rstrip().endswith(markers.closing)
            may_reason = is_open or (chat_format.thinking_switch is not None and not has_ended)
        return cls(
            reasoning=markers,
            is_open=is_open,
            may_reason=may_reason,
            calls=calls if tools else None,
            tools=tools,
            max_calls=1 if body.parallel_tool_calls is False else None,
            must_call=body.must_call,
        )

    def syntax(self, param: str = "tools") -> CallSyntax:
        """The syntax of a call.

        Raises:
            UnsupportedFeature: the notation's arguments cannot be held to a schema.
        """
        assert self.calls is not None
        if self.calls.syntax is None:
            raise UnsupportedFeature(
                "this model writes calls in its own notation, which cannot be held to a schema; "
                "leave strict out, set tool_choice to required, or start the server with "
                "--tool-call-parser json",
                param=param,
            )
        return self.calls.syntax

    @property
    def is_plain(self) -> bool:
        """Whether the whole text is content."""
        return self.reasoning is None and self.calls is None

    def special_texts(self) -> Sequence[str]:
        """Markers of parts of an answer that special tokens may write."""
        texts = [] if self.reasoning is None else [*self.reasoning.tokens]
        return texts if self.calls is None else [*texts, *self.calls.markers]

    def parser(self) -> AnswerParser:
        """A parser for one completion."""
        reasoning, calls = None, None
        if self.reasoning is not None:
            reasoning = self.reasoning.reader(is_open=self.is_open)
        if self.calls is not None:
            schemas = {t.function.name: parameters_of(t) for t in self.tools}
            calls = self.calls(schemas, must_call=self.must_call)
        return AnswerParser(reasoning, calls, self.max_calls)


def _reasoning_markers(
    body: ChatCompletionRequest, chat_format: ChatFormat
) -> ReasoningMarkers | None:
    """The markers of the reasoning; None also if the form of the answer excludes reasoning."""
    form = None if body.must_call else body.structure
    if form is not None and (form.kind is not StructureKind.JSON_SCHEMA or offered_tools(body)):
        return None
    name = chat_format.reasoning_parser
    return None if name is None else REASONING_MARKERS[name]
