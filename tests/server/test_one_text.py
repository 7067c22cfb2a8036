"""A chat's fields in dialects that answer with one text: they act, or are refused by name."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from engine.contract.sampling_params import SamplingParams
from server.dialects.anthropic.protocol import MessagesRequest
from server.protocol.chat import ChatCompletionRequest
from server.protocol.one_text import TEXT_FIELDS
from server.protocol.responses import ResponseRequest
from tests.helpers.server.text_server import TextServer

ROUTES: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "hi", "max_output_tokens": 4},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
    "/api/chat": {"messages": [{"role": "user", "content": "hi"}], "stream": False},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def structured(sampling: SamplingParams) -> Any:
    return sampling.structure and sampling.structure.text


FIELDS: dict[str, tuple[Callable[[], Any], Callable[[SamplingParams], Any]]] = {
    "structured_outputs": (lambda: {"regex": "[ab]{9}"}, structured),
    "guided_json": (lambda: SCHEMA, structured),
    "guided_regex": (lambda: "[ab]{9}", structured),
    "guided_choice": (lambda: ["yes", "no"], structured),
    "guided_grammar": (lambda: 'root ::= "a"', structured),
    "grammar": (lambda: 'root ::= "a"', structured),
    "ignore_eos": (lambda: True, lambda s: s.ignore_eos),
    "min_tokens": (lambda: random.randint(1, 4), lambda s: s.min_tokens),
    "stop_token_ids": (lambda: [random.randint(2, 400)], lambda s: s.stop_token_ids),
    "seed": (lambda: random.getrandbits(40), lambda s: s.seed),
    "logit_bias": (lambda: {str(random.randint(0, 400)): 3.0}, lambda s: s.logit_bias),
    "bad_words": (lambda: ["fox"], lambda s: s.bad_words),
    "repetition_detection": (
        lambda: {"max_pattern_size": random.randint(1, 128), "min_count": 3},
        lambda s: s.repetition_detection,
    ),
    "min_p": (random.random, lambda s: s.min_p),
    "guidance_scale": (lambda: random.uniform(2, 9), lambda s: s.guidance and s.guidance.scale),
    "max_completion_tokens": (lambda: random.randint(1, 3), lambda s: s.max_tokens),
    "best_of": (lambda: random.randint(2, 9), lambda s: s.n),
}
REFUSED: dict[str, Any] = {
    "n": 2,
    "prompt_logprobs": 1,
    "return_token_ids": True,
    "return_uncertainty": True,
    "semantic_entropy": True,
    "echo": True,
    "regex": "a",
    "prompt_embeds": "x",
}


async def ask(server: TextServer, path: str, **fields: Any) -> Any:
    if path.startswith("/api/"):
        fields = {"options": {"num_predict": 4, **fields}}
    return await server.post(path, **ROUTES[path], **fields)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("path", ROUTES)
async def test_they_act_as_in_a_chat(server: TextServer, path: str, name: str) -> None:
    make, found = FIELDS[name]
    fields = {name: make()}
    assert (await server.chat(max_tokens=4, **fields)).status_code == 200
    expected = found(server.last_request.sampling)
    answer = await ask(server, path, **fields)
    assert answer.status_code == 200, answer.text
    assert found(server.last_request.sampling) == expected != found(SamplingParams())
    assert "x-ignored-fields" not in answer.headers


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_others_are_refused_by_name(server: TextServer, path: str, name: str) -> None:
    answer = await ask(server, path, **{name: REFUSED[name]})
    assert answer.status_code == 400, answer.text
    assert name in answer.json()["error"]["message"]
    assert not server.engine.requests
    assert (await ask(server, path, **{name: None})).status_code == 200


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_what_asks_for_nothing_passes(server: TextServer, path: str) -> None:
    answer = await ask(server, path, n=1, echo=False, logprobs=False, return_token_ids=False)
    assert answer.status_code == 200, answer.text
    assert "x-ignored-fields" not in answer.headers


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_stop_strings_and_template_variables(server: TextServer, path: str) -> None:
    server.say("the quick brown fox")
    kwargs = {"mood": "merry"}
    answer = await ask(server, path, stop=["brown"], chat_template_kwargs=kwargs)
    prompt = server.tokenizer.decode(server.last_request.prompt_token_ids)
    assert "[merry]" in prompt
    server.say("fox brown quick")
    answer = await server.post(path, **(ROUTES[path] | {"stop": ["brown"]}))
    assert "quick" not in answer.text and "fox" in answer.text
    many = {"stop_sequences": ["jumps"]} if path == "/v1/messages" else {}
    server.say("fox brown quick")
    answer = await server.post(path, **(ROUTES[path] | {"stop": "brown"} | many))
    assert "quick" not in answer.text


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("/v1/responses", {"text": {"format": {"type": "json_object"}}}),
        ("/v1/messages", {"output_config": {"format": {"type": "json_object"}}}),
    ],
)
async def test_two_forms_are_one_too_many(server: TextServer, path: str, own: Any) -> None:
    for other in (
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a"}},
    ):
        answer = await server.post(path, **ROUTES[path], **own, **other)
        assert answer.status_code == 400
        assert "send one of them" in answer.json()["error"]["message"]
    action = {"max_pattern_size": 4, "min_count": 3, "action": "report"}
    answer = await server.post(path, **ROUTES[path], repetition_detection=action)
    assert "repetition_detection.action" in answer.text or "action" in answer.text
    assert answer.status_code == 400


@pytest.mark.parametrize("body", [ResponseRequest, MessagesRequest])
def test_each_field_of_a_chat_is_known(body: type[ResponseRequest | MessagesRequest]) -> None:
    """No field can be left out by accident."""
    known = body.model_fields.keys() | body._unsupported.keys() | body._not_here.keys()
    assert ChatCompletionRequest.model_fields.keys() - known - {"messages"} == set()
    documented = body.model_json_schema()["properties"].keys()
    assert documented >= TEXT_FIELDS and not documented & body._not_here.keys()
