"""The API page says what the code does: sampler parameters, parsers, the prompt for tools."""

from engine.text.reasoning import REASONING_MARKERS
from engine.text.tool_calls.parsers import TOOL_CALL_PARSERS
from server.protocol.chat import ChatCompletionRequest
from server.protocol.completions import CompletionRequest
from server.text.tool_prompt import TOOL_PROMPT
from tools import sampler_table


def test_the_table_of_sampler_parameters_is_the_engines():
    expected = sampler_table.page_with(sampler_table.table())
    assert sampler_table.PAGE.read_text() == expected, "run: python -m tools.sampler_table"


def test_the_page_shows_the_prompt_that_tells_of_tools():
    shown = TOOL_PROMPT.replace("{{", "{").replace("}}", "}")
    assert f"```\n{shown}\n```" in sampler_table.PAGE.read_text()


def test_the_page_has_a_row_for_every_parser():
    page = sampler_table.PAGE.read_text()
    for name in (*TOOL_CALL_PARSERS, *REASONING_MARKERS):
        assert f"\n| `{name}` " in page


def test_the_page_names_every_field_of_a_request_for_text():
    page = sampler_table.PAGE.read_text()
    for request in (ChatCompletionRequest, CompletionRequest):
        assert [name for name in request.model_fields if f"`{name}`" not in page] == []
