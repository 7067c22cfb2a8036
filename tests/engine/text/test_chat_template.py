"""Rendered conversations against transformers' `apply_chat_template`."""

# ruff: noqa: E501 - templates are written as checkpoints write them

import random
from typing import Any

import pytest
from tokenizers import Tokenizer as RawTokenizer

from engine.errors import CorruptFile, EngineError, InvalidParameter, UnsupportedFeature
from engine.text.chat_template import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>

'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>

' }}{% endif %}"""

LLAMA31 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""

QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

PARTS = """{% for message in messages %}<{{ message.role }}>{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}|{% endif %}{% endfor %}{% endif %}
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""

EVERYTHING = """{% for message in messages %}
    {% if message.role == 'skip' %}{% continue %}{% endif %}
    {% generation %}
    [{{ loop.index }} {{ message.content }}]
    {% endgeneration %}
    {{ {'ü': [1, none, "<a>"], 'b': message.role} | tojson }}
    {{ message | tojson(indent=2, sort_keys=true) }}
    {% if loop.index > 2 %}{% break %}{% endif %}
{% endfor %}
{{ strftime_now('%Y-%m') }} {{ undefined_thing }} {{ documents is none }} {{ eos_token }} {{ 3 * 'x' }}
{{ dict(a=1).a }} {{ '%s' % 5 }} {{ messages | map(attribute='role') | join(',') }} {{ extra }}
"""

TEMPLATES = {
    "chatml": CHATML, "llama3": LLAMA3, "llama31": LLAMA31, "mistral": MISTRAL, "qwen3": QWEN3,
    "parts": PARTS, "everything": EVERYTHING,
}  # fmt: skip

USER = {"role": "user", "content": "  What is <b>1 + 1</b>? \n"}
ANSWER = {"role": "assistant", "content": "Two, «ü» 😀.\n "}
CHATS: dict[str, list[dict[str, Any]]] = {
    "question": [USER],
    "system": [{"role": "system", "content": " Be brief. "}, USER],
    "turns": [USER, ANSWER, {"role": "user", "content": "And 2 + 2?"}],
    "answer last": [USER, ANSWER],
    "two questions": [USER, USER],
    "reasoning": [USER, {**ANSWER, "reasoning": "hm\n"}],
    "thoughts in text": [USER, {"role": "assistant", "content": "<think>\na\n</think>\n\nb"}],
    "nulls": [{**USER, "name": None}, {"role": "assistant", "content": None, "tool_calls": None}],
    "odd role": [USER, {"role": "skip", "content": "x"}, ANSWER],
    "empty": [{"role": "user", "content": ""}],
    "no content": [{"role": "user"}],
    "no role": [{"content": "hi"}],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    ],
}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "ü", "parameters": {}}}]


class Oracle:
    """transformers, with a template of our choice."""

    def __init__(self, raw: RawTokenizer) -> None:
        from transformers import PreTrainedTokenizerFast

        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **SPECIAL)

    def render(self, template: str, chat: list[dict[str, Any]], **options: Any) -> str | None:
        """Render a chat; None if the template refuses."""
        import jinja2

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    chat, chat_template=template, tokenize=False, **options
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError):
            return None


@pytest.fixture
def oracle(byte_level: RawTokenizer) -> Oracle:
    return Oracle(byte_level)


def render(template: str, chat: list[dict[str, Any]], **options: Any) -> str | None:
    try:
        return ChatTemplate(template, SPECIAL).render(chat, **options)
    except InvalidParameter:
        return None


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_equals_transformers(oracle: Oracle, template: str, chat: str) -> None:
    source, messages = TEMPLATES[template], CHATS[chat]
    if chat == "parts" and template != "parts":
        # transformers leaves it to the caller to send what the template wants.
        messages = [{"role": "user", "content": "a\nb"}]
    ours = CHATS[chat]
    for options in (
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
        {"add_generation_prompt": True, "tools": TOOLS},
        {"add_generation_prompt": True, "enable_thinking": False, "date_string": "1 Jan 2000"},
        {"add_generation_prompt": True, "extra": [1, {"a": None}], "bos_token": "<other>"},
        {"add_generation_prompt": True, "continue_final_message": True},
    ):
        expected = oracle.render(source, messages, **options)
        assert render(source, ours, **options) == expected, options


def test_some_of_it_is_rendered(oracle: Oracle) -> None:
    """The comparison above is not one of refusals."""
    rendered = [oracle.render(t, c) is not None for t in TEMPLATES.values() for c in CHATS.values()]
    assert sum(rendered) > 0.7 * len(rendered)
    assert not all(rendered)


def test_the_message_of_the_template_is_told() -> None:
    with pytest.raises(InvalidParameter, match="roles must alternate user/assistant") as caught:
        ChatTemplate(MISTRAL, SPECIAL).render([USER, USER])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages.nothing.at_all }}", "has no attribute 'nothing'"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0]['content'] + 1 }}", "concatenate"),
        ("{{ messages | no_such_test_of_ours }}", None),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{% set ns = namespace(__class__=1) %}", "an underscore"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "an underscore"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "longer than"),
        ("{{ 'x' * 10 ** 12 }}", "repeats a text too many times"),
        ("{{ 10 ** 12 * ['x'] }}", "repeats a text too many times"),
        ("{{ 9 ** (9 ** 9) }}", "computes too large a power"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"),
        ("{{ undefined_thing() }}", "is undefined"),
        ("{{ undefined_thing | tojson }}", "serializable"),
        ("{{ raise_exception(messages) }}", "content"),
        ("{% include 'x' %}", "no loader"),
    ],
)
def test_whatever_goes_wrong_is_an_invalid_parameter(source: str, message: str | None) -> None:
    if message is None:
        with pytest.raises(CorruptFile, match="not valid Jinja"):
            ChatTemplate(source, SPECIAL)
        return
    with pytest.raises(InvalidParameter, match=message) as caught:
        ChatTemplate(source, SPECIAL).render([USER])
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("source", ["{% for %}", "{{", "{% if x %}", "(" * 3 + "{{ " + "(" * 5000])
def test_a_template_that_is_no_template(source: str) -> None:
    with pytest.raises(CorruptFile, match="chat template"):
        ChatTemplate(source, SPECIAL)


def test_options_that_exclude_each_other() -> None:
    template = ChatTemplate(CHATML, SPECIAL)
    with pytest.raises(InvalidParameter, match="is empty"):
        template.render([])
    with pytest.raises(InvalidParameter, match="cannot be combined"):
        template.render([USER], continue_final_message=True)
    with pytest.raises(InvalidParameter, match="must not contain messages"):
        template.render([USER], messages=[])


@pytest.mark.parametrize("final", [{"role": "assistant"}, {"role": "assistant", "content": []}])
def test_nothing_to_continue(final: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter, match="with text in it"):
        ChatTemplate(PARTS, SPECIAL).render(
            [USER, final], add_generation_prompt=False, continue_final_message=True
        )


def test_deeply_nested_arguments() -> None:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(InvalidParameter, match="nested too deeply"):
        ChatTemplate(CHATML, SPECIAL).render([USER], extra=nested)


def test_messages_are_not_changed() -> None:
    chat = [USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]
    before = repr(chat)
    ChatTemplate(PARTS, SPECIAL).render(
        chat, add_generation_prompt=False, continue_final_message=True
    )
    assert repr(chat) == before


def test_developer_is_system_to_templates_that_do_not_know_it() -> None:
    chat = [{"role": "developer", "content": "x"}, USER]
    assert "<|im_start|>system\nx" in ChatTemplate(CHATML, {}).render(chat)
    knowing = (
        "{% for m in messages %}{{ m.role }}{% if m.role == 'developer' %}!{% endif %}{% endfor %}"
    )
    assert ChatTemplate(knowing, {}).render(chat) == "developer!user"


@pytest.mark.parametrize(
    ("source", "content_format"),
    [
        (CHATML, "string"),
        (LLAMA31, "string"),
        (QWEN3, "string"),
        (PARTS, "parts"),
        (
            "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}",
            "parts",
        ),
        (
            "{% for m in messages %}{% for c in m['content'] | selectattr('type', 'equalto', 'text')"
            " %}{{ c.text }}{% endfor %}{% endfor %}",
            "parts",
        ),
        (
            "{% for m in messages %}{% set inner = m.content %}{% for c in inner %}{{ c.text }}"
            "{% endfor %}{% endfor %}",
            "parts",
        ),
        (
            "{% macro show(content) %}{% if content is string %}{{ content }}{% else %}"
            "{% for c in content %}{{ c.text }}{% endfor %}{% endif %}{% endmacro %}"
            "{% for m in messages %}{{ show(m.content) }}{% endfor %}",
            "parts",
        ),
        (
            "{% for m in messages %}{% for line in m.content.split('\\n') %}{{ line }}{% endfor %}"
            "{% endfor %}",
            "string",
        ),
        (
            "{% for t in tools %}{% for p in t.parameters %}{{ p }}{% endfor %}{% endfor %}",
            "string",
        ),
    ],
)
def test_content_format(source: str, content_format: str) -> None:
    assert ChatTemplate(source, {}).content_format == content_format


def test_strings_become_parts_where_only_parts_are_understood() -> None:
    source = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
    parts = [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]
    chat = [{"role": "user", "content": "ab"}, {"role": "user", "content": parts}]
    assert ChatTemplate(source, {}).render(chat) == "abxy"


def test_parts_that_are_no_text() -> None:
    chat = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(UnsupportedFeature, match="'image_url'"):
        ChatTemplate(CHATML, {}).render(chat)


def test_random_conversations_never_escape_as_another_error() -> None:
    values = [
        "",
        "x",
        None,
        3,
        -1.5,
        True,
        [],
        {},
        [None],
        {"type": "text"},
        [{"text": 4}],
        "</think>",
    ]
    keys = ["role", "content", "tool_calls", "reasoning_content", "name", ""]
    templates = [ChatTemplate(source, SPECIAL) for source in TEMPLATES.values()]
    for _ in range(1500):
        chat = [
            {random.choice(keys): random.choice(values) for _ in range(3)}
            for _ in range(random.randint(1, 4))
        ]
        try:
            random.choice(templates).render(
                chat, add_generation_prompt=False, continue_final_message=random.random() < 0.5
            )
        except EngineError:
            pass
        except Exception as error:
            pytest.fail(f"{chat}: {error!r}")
