"""Anthropic's own client, with the calls of its documentation, against the default model."""

import anthropic
import pytest

pytestmark = pytest.mark.e2e
MODEL = "smollm2-135m-instruct"


def test_its_documentation(server):
    with anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0) as client:
        arguments = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
        }
        greedy = {"extra_body": {"temperature": 0}}
        message = client.messages.create(**arguments, max_tokens=24, **greedy)
        assert "Paris" in message.content[0].text
        with client.messages.stream(**arguments, max_tokens=24, **greedy) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == final.content[0].text == message.content[0].text
        counted = client.messages.count_tokens(**arguments).input_tokens
        usage = final.usage
        assert counted == usage.input_tokens + usage.cache_read_input_tokens
        assert usage.output_tokens == message.usage.output_tokens
