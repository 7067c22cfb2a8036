"""What an answer is made of, and how much of it is let through."""

from engine.text.answer_parser import AnswerParser
from engine.text.answer_pieces import Arguments, CallStart, Content, Reasoning, joined
from engine.text.reasoning import REASONING_MARKERS, ReasoningReader
from engine.text.tool_calls.parsers import TOOL_CALL_PARSERS

CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def calls() -> object:
    return TOOL_CALL_PARSERS["hermes"]({"now": {"type": "object", "properties": {}}})


def test_calls_beyond_the_limit_are_left_out() -> None:
    for limit in (1, 2, None):
        answer = AnswerParser(None, calls(), limit)
        pieces = joined(answer.add(f"It is: {CALL}\n{CALL}\n{CALL}", is_last=True))
        assert pieces[0] == Content("It is:")
        expected = range(limit or 3)
        assert [one for one in pieces if isinstance(one, CallStart)] == [
            CallStart(number, "now") for number in expected
        ]
        assert [one for one in pieces if isinstance(one, Arguments)] == [
            Arguments(number, "{}") for number in expected
        ]
        assert answer.num_calls == len(expected)


def test_what_was_held_back_comes_with_the_last_part() -> None:
    answer = AnswerParser(None, calls())
    held = [*answer.add("a <tool_c", is_last=False), *answer.add("", is_last=True)]
    assert joined(held) == [Content("a <tool_c")]


def test_calls_are_looked_for_behind_the_reasoning() -> None:
    reasoning = ReasoningReader(REASONING_MARKERS["qwen3"], is_open=True)
    answer = AnswerParser(reasoning, calls())
    pieces = joined(answer.add(f"Perhaps {CALL}?</think>{CALL}", is_last=True))
    assert pieces == [Reasoning(f"Perhaps {CALL}?"), CallStart(0, "now"), Arguments(0, "{}")]
