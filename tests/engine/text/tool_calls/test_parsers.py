"""Each family's calls as its models write them, what is none, and that no cut changes anything."""

import json
import random
from collections.abc import Iterator, Sequence

import pytest

from engine.text.answer_pieces import Arguments, CallStart, Content, Piece, joined
from engine.text.tool_calls.parsers import TOOL_CALL_PARSERS

SCHEMAS = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    },
    "now": {"type": "object", "properties": {}},
}
PARIS = {"city": "Paris", "days": 3}
Message = tuple[str, list[tuple[str, str]]]
"""Content, and the name and arguments of each call."""


def parse(name: str, chunks: Sequence[str]) -> list[Piece]:
    parser = TOOL_CALL_PARSERS[name](SCHEMAS)
    pieces = [piece for chunk in chunks for piece in parser.add(chunk)]
    return joined([*pieces, *parser.finish()])


def message_of(pieces: Sequence[Piece]) -> Message:
    content, calls = "", []
    for piece in pieces:
        match piece:
            case Content(text):
                content += text
            case CallStart(index, function):
                assert index == len(calls)
                calls.append((function, ""))
            case Arguments(index, text):
                assert index == len(calls) - 1
                calls[index] = (calls[index][0], calls[index][1] + text)
    return content, calls


def cuts(text: str, rng: random.Random) -> Iterator[list[str]]:
    yield list(text)
    for size in (2, 3, 7):
        yield [text[i : i + size] for i in range(0, len(text), size)]
    for _ in range(20):
        places = sorted(rng.sample(range(len(text) + 1), min(len(text), rng.randrange(6))))
        yield [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def read(name: str, text: str) -> Message:
    """The message of a text, the same however it is cut."""
    whole = message_of(parse(name, [text]))
    rng = random.Random(text)
    for chunks in cuts(text, rng):
        assert message_of(parse(name, chunks)) == whole, chunks
    return whole


def calls_of(name: str, text: str) -> tuple[str, list[tuple[str, object]]]:
    content, calls = read(name, text)
    return content, [(function, json.loads(arguments)) for function, arguments in calls]


HERMES = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>'
)
QWEN3_CODER = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n"
    "3\n</parameter>\n</function>\n</tool_call>"
)
LLAMA = '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}'
MISTRAL = (
    '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}, '
    '"id": "a1b2c3d4e"}]'
)
FUNCTION_GEMMA = (
    "<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:3}<end_function_call>"
)
GEMMA4 = '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}<tool_call|>'
HARMONY = (
    "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    '{"city": "Paris", "days": 3}<|call|>'
)
ONE_CALL = {
    "hermes": HERMES,
    "qwen3_coder": QWEN3_CODER,
    "llama3_json": LLAMA,
    "mistral": MISTRAL,
    "functiongemma": FUNCTION_GEMMA,
    "gemma4": GEMMA4,
    "harmony": HARMONY,
    "json": '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}',
}


def test_every_parser_has_an_example() -> None:
    assert ONE_CALL.keys() == TOOL_CALL_PARSERS.keys()


@pytest.mark.parametrize("name", ONE_CALL)
def test_one_call(name: str) -> None:
    assert calls_of(name, ONE_CALL[name]) == ("", [("get_weather", PARIS)])
    assert calls_of(name, f"\n{ONE_CALL[name]}\n") == ("", [("get_weather", PARIS)])


@pytest.mark.parametrize(
    "name", ["hermes", "qwen3_coder", "mistral", "functiongemma", "gemma4", "harmony"]
)
def test_text_around_calls_is_content(name: str) -> None:
    text = f"Let me look.\n\n{ONE_CALL[name]}\n{ONE_CALL[name]}\n\nDone."
    content, calls = calls_of(name, text)
    assert content == "Let me look.\n\nDone."
    assert calls == [("get_weather", PARIS)] * 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {}, "name": "now"}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": null, "name": "now"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "now", "arguments": "{}"}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": "{}", "name": "now"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>'),
        ("hermes", '<tool_call>{"name": "now"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "now", "arguments": {}}'),
        ("hermes", '<tool_call>{"name": "now", "arguments": {}\n</tool_call>'),
        ("hermes", '<tool_call>[{"name": "now", "arguments": {}}]</tool_call>'),
        ("llama3_json", '<|python_tag|>{"name": "now", "parameters": {}}'),
        ("llama3_json", '{"type": "function", "name": "now", "parameters": {}}'),
        ("llama3_json", '{"name": "now", "arguments": {}}'),
        ("mistral", "[TOOL_CALLS]now{}"),
        ("mistral", "[TOOL_CALLS]now[ARGS]{}"),
        ("mistral", "[TOOL_CALLS]now[CALL_ID]a1b2c3d4e[ARGS]{}"),
        ("mistral", '[TOOL_CALLS]{"name": "now", "arguments": {}}'),
        ("functiongemma", "<start_function_call>call:now{}<end_function_call>"),
        ("gemma4", "<|tool_call>call:now{}<tool_call|>"),
        ("harmony", "<|channel|>commentary to=functions.now<|message|>{}"),
        ("harmony", "<|channel|>commentary to=functions.now json<|message|>{} <|call|>"),
        ("qwen3_coder", "<tool_call>\n<function=now>\n</function>\n</tool_call>"),
        ("qwen3_coder", "<function=now>\n</function>"),
        ("json", '```json\n{"name": "now", "parameters": {}}\n```'),
        ("json", '```\n[{"name": "now", "arguments": {}}]\n```'),
        ("json", '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'),
    ],
)
def test_other_ways_to_write_it(name: str, text: str) -> None:
    assert calls_of(name, text) == ("", [("now", {})])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", HERMES + '\n<tool_call>{"name": "now", "arguments": {}}</tool_call>'),
        ("llama3_json", LLAMA + '; {"name": "now", "parameters": {}}'),
        ("llama3_json", LLAMA + '\n{"name": "now", "parameters": {}}'),
        ("mistral", MISTRAL[:-1] + ', {"name": "now", "arguments": {}}]'),
        ("mistral", '[TOOL_CALLS]get_weather{"city": "Paris", "days": 3}[TOOL_CALLS]now{}'),
        ("gemma4", GEMMA4 + "<|tool_call>call:now{}<tool_call|>"),
        ("json", f'[{ONE_CALL["json"]}, {{"name": "now", "arguments": {{}}}}]'),
        ("json", f'{ONE_CALL["json"]}\n{{"name": "now", "arguments": {{}}}}'),
    ],
)
def test_several_calls(name: str, text: str) -> None:
    assert calls_of(name, text) == ("", [("get_weather", PARIS), ("now", {})])


def test_gemma_values_become_json() -> None:
    text = (
        '<|tool_call>call:f{a:<|"|>say "hi" {to:me},\n<|"|>,b:[1,-2.5e3,true,None,<|"|>x<|"|>],'
        'c:{<|"|>d e<|"|>:{}, f: [] },g:bare word}<tool_call|>'
    )
    _, [(_, arguments)] = calls_of("gemma4", text)
    assert arguments == {
        "a": 'say "hi" {to:me},\n',
        "b": [1, -2500.0, True, None, "x"],
        "c": {"d e": {}, "f": []},
        "g": "bare word",
    }


def test_qwen3_coder_values_follow_the_schema() -> None:
    text = (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n12\n\n</parameter>\n"
        '<parameter=days>\n12\n</parameter>\n<parameter=more>\n{"a": [1]}\n</parameter>\n'
        '<parameter=word>\nno "json"\n</parameter>\n</function>\n</tool_call>'
    )
    _, [(_, arguments)] = calls_of("qwen3_coder", text)
    assert arguments == {"city": "12\n", "days": 12, "more": {"a": [1]}, "word": 'no "json"'}


@pytest.mark.parametrize("name", ONE_CALL)
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Paris is sunny.\n",
        "  indented\n\n",
        "a < b <tool_",
        "{",
        "[1, 2]",
        '{"answer": {"city": "Paris"}}',
        "```python\nprint(1)\n```",
        '```json\n{"a": 1}\n```\n',
    ],
)
def test_what_is_no_call_is_content_to_the_letter(name: str, text: str) -> None:
    assert read(name, text) == (text, [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "<tool_call>\nnot JSON\n</tool_call>"),
        ("hermes", '<tool_call>{"name": "now", "arg'),
        ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "now", "arguments": 5}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": [5], "name": "now"}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
        ("hermes", "<tool_call>"),
        ("llama3_json", '{"name": "unknown", "parameters": {}}'),
        ("llama3_json", '<|python_tag|>brave_search.call(query="x")'),
        ("mistral", "[TOOL_CALLS] []"),
        ("mistral", "[TOOL_CALLS]now and then"),
        ("mistral", "[TOOL_CALLS]"),
        ("gemma4", "<|tool_call>call now{}<tool_call|>"),
        ("functiongemma", "<start_function_call>call:{}<end_function_call>"),
        ("harmony", "<|channel|>commentary to=functions.now <|constr"),
        ("harmony", "<|channel|>commentary to=functions.now<|message|>Hm.<|call|>"),
        ("qwen3_coder", "<tool_call>\n<function=>\n</function>\n</tool_call>"),
        ("qwen3_coder", '<tool_call>{"name": "now"}</tool_call>'),
        ("json", '{"name": "unknown", "arguments": {}}'),
        ("json", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
    ],
)
def test_what_looks_like_a_call_is_content_to_the_letter(name: str, text: str) -> None:
    assert read(name, text) == (text, [])


def test_behind_a_marker_unknown_functions_are_calls() -> None:
    """The client can tell the model that there is none."""
    text = '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'
    assert read("hermes", text) == ("", [("unknown", "{}")])


@pytest.mark.parametrize(
    ("name", "text", "content", "arguments"),
    [
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": "b', "", '{"a": "b'),
        ("hermes", '<tool_call>{"name": "now", "arguments": {a: 1}}</tool_call>!', "!", "{a: 1}}"),
        ("llama3_json", '{"name": "now", "parameters": {"a": 01}}', "", '{"a": 01}}'),
        ("mistral", '[TOOL_CALLS]now{"a": }', "", '{"a": }'),
        ("gemma4", '<|tool_call>call:now{a:<|"|>b', "", '{"a": "b'),
        ("gemma4", "<|tool_call>call:now{a}<tool_call|>!", "!", "{a}"),
        ("gemma4", "<|tool_call>call:now{a:5", "", '{"a": 5'),
        ("harmony", HARMONY.partition("Pa")[0].replace("get_weather", "now"), "", '{"city": "'),
        ("qwen3_coder", "<function=now>\n<parameter=a>\nb", "", '{"a": b'),
        ("qwen3_coder", "<function=now>\nwhat?</function>!", "!", "{what?"),
    ],
)
def test_arguments_that_are_no_json_are_what_the_model_wrote(
    name: str, text: str, content: str, arguments: str
) -> None:
    assert read(name, text) == (content, [("now", arguments)])


def test_a_call_after_a_broken_one_is_found() -> None:
    text = f"<tool_call>oops <tool_call>{{]{HERMES}"
    assert calls_of("hermes", text) == ("<tool_call>oops <tool_call>{]", [("get_weather", PARIS)])


@pytest.mark.parametrize("name", ONE_CALL)
def test_arguments_go_out_as_they_come(name: str) -> None:
    """Announced before the arguments' end, and no more than a marker held back."""
    text = ONE_CALL[name]
    parser = TOOL_CALL_PARSERS[name](SCHEMAS)
    before = text[: text.index("Par") + 3]
    pieces = [piece for char in before for piece in parser.add(char)]
    content, [(function, arguments)] = message_of(joined(pieces))
    assert (content, function) == ("", "get_weather")
    assert arguments.endswith("Par")


@pytest.mark.parametrize("name", ONE_CALL)
def test_text_goes_out_at_once(name: str) -> None:
    parser = TOOL_CALL_PARSERS[name](SCHEMAS)
    said = [message_of(parser.add(word))[0] for word in ("It", " is", " sunny", " <", " b", ".")]
    assert said[:3] == ["It", " is", " sunny"]
    assert "".join(said) == "It is sunny < b."


@pytest.mark.parametrize(
    "name", [name for name, parser in TOOL_CALL_PARSERS.items() if parser.syntax is not None]
)
def test_a_required_call_that_is_cut_off_is_no_text(name: str) -> None:
    """Wherever `max_tokens` cuts it, and whatever the parts are in which it comes."""
    syntax = TOOL_CALL_PARSERS[name].syntax
    assert syntax is not None
    arguments = json.dumps(PARIS)
    whole = syntax.separator.join(
        syntax.begin.format(name=each) + arguments + syntax.end for each in ("get_weather", "now")
    )
    rng = random.Random(random.getrandbits(64))
    for end in range(len(whole) + 1):
        for chunks in ([whole[:end]], next(cuts(whole[:end], rng))):
            parser = TOOL_CALL_PARSERS[name](SCHEMAS, must_call=True)
            pieces = [piece for chunk in chunks for piece in parser.add(chunk)]
            content, calls = message_of(joined([*pieces, *parser.finish()]))
            assert content == "", (chunks, content)
            assert [call[0] for call in calls] == ["get_weather", "now"][: len(calls)]
            assert all(arguments.startswith(call[1]) for call in calls), calls
    assert len(calls) == 2


_SCRAPS = (
    '{"name": "now", "arguments": {}}', '{"name": "get_weather", "parameters": {"city": "é🦊"}}',
    "{", "}", "[", "]", '"', "\\", ":", ",", ";", " ", "\n", "name", "arguments", "null", "1", "-",
    "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "now",
    "<start_function_call>call:now{", "<escape>", "<end_function_call>", "<|tool_call>call:now{",
    '<|"|>', "<tool_call|>", "<function=now>", "<parameter=a>", "</parameter>", "</function>",
    "```json\n", "```", '{"name": "now", "arguments": ', "a:", "text", *ONE_CALL.values(),
)  # fmt: skip


@pytest.mark.parametrize("name", ONE_CALL)
def test_random_texts_in_random_parts(name: str) -> None:
    """Any text, however it is cut, gives one message, and none of its words are lost."""
    rng = random.Random(random.getrandbits(64))
    for _ in range(150):
        text = "".join(rng.choices(_SCRAPS, k=rng.randrange(1, 14)))
        content, calls = read(name, text)
        if not calls:
            assert content == text
        assert text.count("🦊") == content.count("🦊") + sum(a.count("🦊") for _, a in calls)


@pytest.mark.parametrize("name", ONE_CALL)
@pytest.mark.parametrize(
    "scrap", ["[", '{"a":', "<tool_call>", '{"name": "now", "arguments": {"a":']
)
def test_deep_and_repeated_beginnings_end_without_an_error(name: str, scrap: str) -> None:
    frame = ONE_CALL[name].partition("{")[0]
    for text in (scrap * 3000, frame + scrap * 3000, (frame + scrap) * 500):
        parse(name, [text])
