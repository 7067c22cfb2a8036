"""Contrastive search on the wire: what the engine gets, and what is refused."""

import asyncio
from pathlib import Path

import pytest

from engine.contract.groups import ContrastParams
from engine.contract.sampling_params import SamplingParams
from tests.helpers.server.fake_server import assert_refused, until
from tests.helpers.server.text_server import TextServer

ROUTES = ["/v1/chat/completions", "/v1/completions"]
SEARCH = {"penalty_alpha": 0.6, "top_k": 4}


@pytest.mark.parametrize("route", ROUTES)
async def test_penalty_alpha_and_top_k_ask_for_it(server: TextServer, route: str) -> None:
    extra = {"temperature": 0, "stop": ["x"], "repetition_detection": None, "n": 1}
    assert (await server.ask(route, **SEARCH, **extra)).status_code == 200
    sampling = server.last_request.sampling
    assert sampling.contrast == ContrastParams(alpha=0.6, width=4)
    assert (sampling.num_together, sampling.num_sequences) == (4, 4)
    neutral = SamplingParams(temperature=0.0, max_tokens=sampling.max_tokens)
    assert (sampling.top_k, sampling.temperature) == (neutral.top_k, neutral.temperature)
    for off in (None, 0, 0.0):
        assert (await server.ask(route, penalty_alpha=off, top_k=4)).status_code == 200
        assert server.last_request.sampling.contrast is None
        assert server.last_request.sampling.top_k == 4


async def test_each_token_that_is_tried_takes_a_place(tokenizer_folder: Path) -> None:
    server = TextServer(tokenizer_folder, engine={"max_num_seqs": 4})
    server.engine.hold()
    task = asyncio.create_task(server.complete(prompt=["a", "b"], **SEARCH, max_tokens=1))
    await until(lambda: len(server.engine.requests) == 2)
    assert server.state.admission.num_in_flight() == 8
    server.engine.release()
    assert (await task).status_code == 200
    assert_refused(
        await server.complete(**SEARCH | {"top_k": 5}), "top_k", "the model runs at most 4"
    )
