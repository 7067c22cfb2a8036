"""Guidance on the wire: which tokens the engine gets for a negative prompt, and what is refused."""

import asyncio
from typing import Any

import pytest

from engine.contract.groups import GuidanceParams
from tests.helpers.server.fake_server import until
from tests.helpers.server.text_server import TextServer

ROUTES = ["/v1/chat/completions", "/v1/completions"]


@pytest.mark.parametrize("route", ROUTES)
async def test_without_a_negative_prompt_the_last_token_guides(
    server: TextServer, route: str
) -> None:
    assert (await server.ask(route, guidance_scale=1.5)).status_code == 200
    request = server.last_request
    assert request.sampling.guidance == GuidanceParams(
        scale=1.5, negative_token_ids=tuple(request.prompt_token_ids[-1:])
    )
    for off in (None, 1, 1.0):
        assert (await server.ask(route, guidance_scale=off)).status_code == 200
        assert server.last_request.sampling.guidance is None


async def test_a_plain_negative_prompt_is_tokenised_as_the_prompt_is(server: TextServer) -> None:
    await server.complete(
        prompt=["a fox", "dogs"], guidance_scale=3, negative_prompt="the lazy dog"
    )
    await server.complete(prompt="the lazy dog")
    *guided, plain = server.engine.requests
    for request in guided:
        assert request.sampling.guidance == GuidanceParams(
            scale=3.0, negative_token_ids=tuple(plain.prompt_token_ids)
        )


async def test_a_negative_prompt_takes_the_place_of_system_messages(server: TextServer) -> None:
    system = {"role": "system", "content": "Be kind."}
    user = {"role": "user", "content": "hi"}
    instead = {"role": "system", "content": "Be rude."}
    await server.chat(messages=[system, user], guidance_scale=2, negative_prompt="Be rude.")
    guided = server.last_request
    await server.chat(messages=[instead, user])
    expected = tuple(server.last_request.prompt_token_ids)
    assert guided.sampling.guidance == GuidanceParams(scale=2.0, negative_token_ids=expected)
    await server.chat(messages=[system, user])
    assert guided.prompt_token_ids == server.last_request.prompt_token_ids


@pytest.mark.parametrize(
    ("fields", "num_places", "num_answers"),
    [({"prompt": ["a", "b"]}, 4, 2), ({"n": 3}, 6, 3), ({"n": 1, "best_of": 3}, 6, 1)],
)
async def test_each_guided_text_takes_two_places(
    server: TextServer, fields: dict[str, Any], num_places: int, num_answers: int
) -> None:
    server.engine.hold()
    task = asyncio.create_task(server.complete(guidance_scale=2, max_tokens=1, **fields))
    await until(lambda: len(server.engine.requests) == len(fields.get("prompt", "x")))
    assert server.state.admission.num_in_flight() == num_places
    server.engine.release()
    answer = (await task).json()
    assert len(answer["choices"]) == num_answers
    sampling = server.last_request.sampling
    assert (sampling.num_together, sampling.num_sequences) == (2, 2 * sampling.n)
