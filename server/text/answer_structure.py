"""The form that a chat's answer must have: the requested one, and that of calls that are required
or must follow a schema."""

import json
from typing import Any

from engine.contract.generate_rules import check_end
from engine.contract.structure import Structure, StructureKind, Tag, Tags
from engine.errors import UnsupportedFeature
from engine.text.tool_calls.parser import CallSyntax
from server.protocol.chat import ChatCompletionRequest
from server.protocol.tools import FunctionTool, NamedToolChoice
from server.text.answer_format import AnswerFormat
from server.text.chat_prompt import parameters_of

_ANY_OBJECT = {"type": "object"}
_BREAK = "\n\n"
"""Separates reasoning from an answer of a given form."""


def answer_structure(body: ChatCompletionRequest, answers: AnswerFormat) -> Structure | None:
    """The structure of an answer; None if the model may write freely.

    The arguments of required calls follow their schemas; of other calls, only those of strict
    functions do. Reasoning may come before calls, and before plain JSON.

    Raises:
        InvalidParameter, UnsupportedFeature: names the field that asks for something impossible.
    """
    structure = _structure(body, answers)
    if structure is not None:
        structure.check_size()
        check_end(structure, bool(body.ignore_eos))
    return structure


def _structure(body: ChatCompletionRequest, answers: AnswerFormat) -> Structure | None:
    if body.must_call:
        return _calls(body, answers, answers.syntax())
    if body.structure is not None and answers.tools:
        return _calls(body, answers, answers.syntax(), answer=_schema(body.structure))
    if body.structure is not None:
        return _behind_reasoning(body.structure, answers)
    for tool in answers.tools:
        if tool.function.strict:
            return _calls(body, answers, answers.syntax(f"{tool.field}.strict"))
    return None


def _calls(
    body: ChatCompletionRequest,
    answers: AnswerFormat,
    syntax: CallSyntax,
    *,
    answer: Any = None,
) -> Structure:
    """The structure of a text with calls.

    Args:
        answer: schema of JSON that may be written in place of calls.
    """
    name = body.tool_choice.name if isinstance(body.tool_choice, NamedToolChoice) else None
    has_text = answers.may_reason if body.must_call else answer is None
    tags = [
        _tag(tool, syntax, is_strict=body.must_call or tool.function.strict is True)
        for tool in answers.tools
        if name in (None, tool.function.name)
    ]
    return Tags(
        tags=tags,
        triggers=[syntax.trigger],
        has_text=has_text,
        at_least_one=body.must_call,
        at_most_one=name is not None or answers.max_calls == 1,
        separator=syntax.separator,
        answer=answer,
    ).structure(param="tools")


def _tag(tool: FunctionTool, syntax: CallSyntax, *, is_strict: bool) -> Tag:
    begin = syntax.begin.format(name=tool.function.name)
    return Tag(begin, parameters_of(tool) if is_strict else _ANY_OBJECT, syntax.end)


def _behind_reasoning(structure: Structure, answers: AnswerFormat) -> Structure:
    if not (answers.may_reason and answers.reasoning):
        return structure
    closing = answers.reasoning.closing
    tag = Tag(closing + _BREAK, json.loads(structure.text))
    return Tags(tags=[tag], triggers=[closing], at_least_one=True, at_most_one=True).structure(
        param=structure.param
    )


def _schema(structure: Structure) -> Any:
    """The JSON schema of a requested structure.

    Raises:
        UnsupportedFeature: the structure is not JSON.
    """
    if structure.kind is not StructureKind.JSON_SCHEMA:
        raise UnsupportedFeature(
            f"{structure.param} cannot be combined with tools, because it does not ask for JSON; "
            "set tool_choice to none, or leave one of them out",
            param=structure.param,
        )
    return json.loads(structure.text)
