"""Guidance on the wire: which tokens the engine gets for a negative prompt, and what is refused."""

import asyncio
from typing import Any

import pytest
from text_server import MAX_MODEL_LEN, TextServer, until

from engine.contract.sampling_params import GuidanceParams

ROUTES = ["/v1/chat/completions", "/v1/completions"]


async def _post(server: TextServer, route: str, **fields: Any) -> Any:
    return await (server.chat if "chat" in route else server.complete)(**fields)


@pytest.mark.parametrize("route", ROUTES)
async def test_without_a_negative_prompt_the_last_token_guides(
    server: TextServer, route: str
) -> None:
    assert (await _post(server, route, guidance_scale=1.5)).status_code == 200
    request = server.last_request
    assert request.sampling.guidance == GuidanceParams(
        scale=1.5, negative_token_ids=tuple(request.prompt_token_ids[-1:])
    )
    for off in (None, 1, 1.0):
        assert (await _post(server, route, guidance_scale=off)).status_code == 200
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


async def test_a_guided_text_takes_two_places(server: TextServer) -> None:
    server.engine.hold()
    task = asyncio.create_task(server.complete(prompt=["a", "b"], guidance_scale=2, max_tokens=1))
    await until(lambda: len(server.engine.requests) == 2)
    assert server.app.state.tandem.admission.num_in_flight() == 4
    server.engine.release()
    assert (await task).status_code == 200


@pytest.mark.parametrize(("fields", "num_answers"), [({"n": 3}, 3), ({"n": 1, "best_of": 3}, 1)])
async def test_several_guided_texts_take_two_places_each(
    server: TextServer, fields: dict[str, Any], num_answers: int
) -> None:
    server.engine.hold()
    task = asyncio.create_task(server.complete(guidance_scale=2, **fields))
    await until(lambda: len(server.engine.requests) == 1)
    assert server.app.state.tandem.admission.num_in_flight() == 6
    server.engine.release()
    answer = (await task).json()
    assert len(answer["choices"]) == num_answers
    sampling = server.last_request.sampling
    assert (sampling.n, sampling.num_together, sampling.num_sequences) == (3, 2, 6)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("guidance_scale", {"guidance_scale": -1}),
        ("guidance_scale", {"guidance_scale": 21}),
        ("guidance_scale", {"guidance_scale": 2, "use_beam_search": True}),
        ("negative_prompt", {"negative_prompt": "x"}),
        ("negative_prompt", {"negative_prompt": "x", "guidance_scale": 1}),
        ("negative_prompt", {"negative_prompt": "", "guidance_scale": 2}),
        ("negative_prompt", {"negative_prompt": "the fox " * MAX_MODEL_LEN, "guidance_scale": 2}),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_what_cannot_be_guided_is_refused(
    server: TextServer, route: str, param: str, fields: dict[str, Any]
) -> None:
    answer = await _post(server, route, **fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert server.engine.requests == []
