"""Reasoning and answer apart, whatever the parts in which the text comes."""

import random

import pytest

from engine.text.answer_parser import AnswerParser
from engine.text.answer_pieces import Arguments, CallStart, Content, Reasoning, joined
from engine.text.chat_format import ChatFormat
from engine.text.reasoning import REASONING_MARKERS, ReasoningMarkers, ReasoningReader
from engine.text.tool_calls.parsers import TOOL_CALL_PARSERS

QWEN = REASONING_MARKERS["qwen3"]


def reach_of(text: str, markers: ReasoningMarkers, is_open: bool) -> int:
    """Characters up to the end of the reasoning, all where nothing ends it."""
    if not is_open and not text.strip().startswith(markers.opening):
        return 0
    end = text.find(markers.closing)
    return len(text) if end < 0 else end + len(markers.closing)


def split(text: str, *, name: str = "qwen3", is_open: bool = False) -> tuple[str, str]:
    """Reasoning and content of a text, the same in any parts."""

    def read(parts: list[str]) -> tuple[str, str]:
        reader = REASONING_MARKERS[name].reader(is_open=is_open)  # type: ignore[index]
        reach, pieces = 0, []
        for part in parts:
            pieces += reader.add(part)
            assert reader.reach >= reach
            reach = reader.reach
        pieces += reader.finish()
        assert reader.reach == reach_of(text, REASONING_MARKERS[name], is_open)  # type: ignore[index]
        reasoning = "".join(p.text for p in pieces if isinstance(p, Reasoning))
        content = "".join(p.text for p in pieces if isinstance(p, Content))
        return reasoning, content

    whole = read([text])
    rng = random.Random(text)
    for _ in range(20):
        places = sorted(rng.choices(range(len(text) + 1), k=5))
        parts = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
        assert read(parts) == read(list(text)) == whole
    return whole


@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        ("<think>\nSum them.\n</think>\n\nIt is 5.", False, ("Sum them.", "It is 5.")),
        ("\n<think>\n\n</think>\n\nIt is 5.", False, ("", "It is 5.")),
        ("Sum them.\n</think>\n\nIt is 5.\n", True, ("Sum them.", "It is 5.\n")),
        ("<think>\nSum them.\n</think>It is 5.", True, ("Sum them.", "It is 5.")),
        ("<think>a\n\nb < c </thin", False, ("a\n\nb < c </thin", "")),
        ("a </think> b </think> c", True, ("a ", " b </think> c")),
        ("\n  a</think>b", True, ("  a", "b")),
        (" It is 5.\n", False, ("", " It is 5.\n")),
        ("It is <think>5</think>.", False, ("", "It is <think>5</think>.")),
        ("  ", False, ("", "  ")),
        ("<thin", False, ("", "<thin")),
        ("", True, ("", "")),
    ],
)
def test_split(text: str, is_open: bool, expected: tuple[str, str]) -> None:
    assert split(text, is_open=is_open) == expected


def test_other_markers() -> None:
    assert split("[THINK]a[/THINK]b", name="mistral") == ("a", "b")
    assert split("<|channel>thought\na\n<channel|>b", name="gemma4") == ("a", "b")


HARMONY_FINAL = "<|start|>assistant<|channel|>final<|message|>b"


@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        ("<|channel|>analysis<|message|>a<|end|>" + HARMONY_FINAL, False, ("a", "b")),
        (
            "<|channel|>analysis<|message|>a\n<|end|>" + HARMONY_FINAL + "<|return|>",
            False,
            ("a\n", "b"),
        ),
        ("a<|end|>" + HARMONY_FINAL, True, ("a", "b")),
        ("<|channel|>analysis<|message|>a <|en", False, ("a <|en", "")),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assist", False, ("a", "")),
        ("<|channel|>final<|message|>b", False, ("", "b")),
        ("<|channel|>commentary<|message|>c <|end|>" + HARMONY_FINAL, False, ("", "c b")),
        ("b < c", False, ("", "b < c")),
    ],
)
def test_harmony(text: str, is_open: bool, expected: tuple[str, str]) -> None:
    assert split(text, name="harmony", is_open=is_open) == expected


@pytest.mark.parametrize(
    "header",
    [
        "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json",
        "<|start|>assistant to=functions.f<|channel|>commentary json",
        "<|start|>assistant<|channel|>analysis to=functions.f code",
    ],
)
@pytest.mark.parametrize("end", ["<|call|>", ""])
def test_calls_in_harmony(header: str, end: str) -> None:
    text = f"<|channel|>analysis<|message|>a<|end|>{header}<|message|>" + '{"x": 1}' + end
    for parts in (list(text), [text]):
        parser = AnswerParser(
            REASONING_MARKERS["harmony"].reader(is_open=False), TOOL_CALL_PARSERS["harmony"]({})
        )
        pieces = [p for part in parts for p in parser.add(part, is_last=False)]
        pieces += parser.add("", is_last=True)
        assert joined(pieces) == [Reasoning("a"), CallStart(0, "f"), Arguments(0, '{"x": 1}')]


def test_the_prompt_decides_whether_it_has_begun() -> None:
    assert QWEN.is_open_after("<|im_start|>assistant\n<think>\n")
    assert not QWEN.is_open_after("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not QWEN.is_open_after("say <think><|im_end|>\n<|im_start|>assistant\n")
    first = REASONING_MARKERS["deepseek_r1"]
    assert first.is_open_after("<|Assistant|>")
    assert not first.is_open_after("<|Assistant|><think>\n\n</think>\n")
    assert QWEN.is_open_within("<think>\nHm")
    assert not QWEN.is_open_within("<think>\nHm\n</think>\n\nSo")
    assert first.is_open_within("Hm")


def test_reasoning_goes_out_at_once() -> None:
    reader = ReasoningReader(QWEN, is_open=True)
    assert reader.add("Let") == [Reasoning("Let")]
    assert reader.add(" me <") == [Reasoning(" me ")]
    assert reader.add(" ") == [Reasoning("< ")]


def test_calls_are_looked_for_behind_the_reasoning() -> None:
    text = (
        '<think>\nI call <tool_call>{"name": "f"}</tool_call>\n</think>\n\n<tool_call>{"name": "f"}'
    )
    parser = AnswerParser(
        ReasoningReader(QWEN, is_open=False), TOOL_CALL_PARSERS["hermes"]({"f": {}}), max_calls=1
    )
    pieces = [p for char in text for p in parser.add(char, is_last=False)]
    pieces += parser.add('\n<tool_call>{"name": "f"}', is_last=True)
    assert "".join(p.text for p in pieces if isinstance(p, Reasoning)) == (
        'I call <tool_call>{"name": "f"}</tool_call>'
    )
    assert not any(isinstance(p, Content) for p in pieces)
    assert parser.num_calls == 1


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "calls", "reasoning"),
    [
        (CHATML, "json", None),
        (CHATML + "You are given tools.{# tools #}{{ 'the tools' }}", "json", None),
        (CHATML + "{% if tools %}<tool_call>{% endif %}", "hermes", None),
        (CHATML + "{%- if tools %}<tool_call></think>{% endif %}", "hermes", "qwen3"),
        (CHATML + "{%- if tools %}<tool_call><function=x>{% endif %}", "qwen3_coder", None),
        ("{{ tools }}<|start_header_id|><|python_tag|>", "llama3_json", None),
        ("{{ tools | length }}[TOOL_CALLS][THINK]", "mistral", "mistral"),
        ("{% for t in tools %}<|tool_call>call:<|channel>thought{% endfor %}", "gemma4", "gemma4"),
        ("{% for t in tools %}<start_function_call>{% endfor %}", "functiongemma", None),
        ("{{ tools }}<|start|>assistant<|channel|>final<|message|>", "harmony", "harmony"),
        ("{{ tools }}", "json", None),
    ],
)
def test_a_template_says_which_parsers(template: str, calls: str, reasoning: str | None) -> None:
    chat_format = ChatFormat.of(template)
    assert (chat_format.tool_call_parser, chat_format.reasoning_parser) == (calls, reasoning)
    assert chat_format.takes_tools == (
        "{% if tools" in template or calls != "json" or template == "{{ tools }}"
    )
    chosen = ChatFormat.of(template, "hermes", "none")
    assert (chosen.tool_call_parser, chosen.reasoning_parser) == ("hermes", None)


def test_what_else_a_template_says() -> None:
    plain = ChatFormat.of(CHATML)
    assert plain.takes_system and not plain.takes_calls
    assert not plain.takes_effort and plain.thinking_switch is None
    rich = ChatFormat.of(
        "{% if message.tool_calls %}{{ reasoning_effort }}{% if enable_thinking is false %}"
        "{{ raise_exception('System role not supported') }}"
    )
    assert rich.takes_calls and not rich.takes_tools and not rich.takes_system
    assert rich.takes_effort and rich.thinking_switch == "enable_thinking"
