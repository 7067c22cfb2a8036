"""A busy server is asked again, and what else goes wrong is said in a line."""

import email.utils
import random
import time

import httpx
import pytest

from evaluation.endpoint import ATTEMPTS, Endpoint, RequestProblem
from evaluation.problem import EvaluationProblem
from tests.helpers.evaluation.word_server import WordServer

PATH = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


def busy(status=429, **headers):
    return httpx.Response(status, json={"error": {"message": "busy"}}, headers=headers)


async def ask(server):
    async with server.endpoint("secret") as endpoint:
        return await endpoint.post(PATH, BODY)


async def test_a_busy_server_is_asked_again_when_it_says():
    server = WordServer()
    seconds = random.randint(1, 50)
    date = email.utils.formatdate(time.time() + 20, usegmt=True)
    server.faults[PATH] = [
        busy(503),
        busy(429, **{"Retry-After": str(seconds)}),
        busy(503, **{"Retry-After": date}),
        busy(429, **{"Retry-After": "999"}),
    ]
    assert (await ask(server))["choices"][0]["message"]["content"] == "HI"
    first, second, third, fourth = server.slept
    assert (first, second, fourth) == (0.5, seconds, 60.0)
    assert 15 < third <= 20
    assert {headers["authorization"] for headers in server.headers} == {"Bearer secret"}


async def test_a_server_that_stays_busy():
    server = WordServer()
    server.faults[PATH] = [busy()] * ATTEMPTS
    with pytest.raises(RequestProblem, match="429: busy") as caught:
        await ask(server)
    assert caught.value.concerns_all
    assert len(server.slept) == ATTEMPTS - 1


async def test_no_server_is_said_at_once_but_a_broken_connection_is_tried_again():
    server = WordServer()
    server.faults[PATH] = [httpx.ConnectError("refused")]
    with pytest.raises(RequestProblem, match="no server answers at http://words"):
        await ask(server)
    assert server.slept == []
    server.faults[PATH] = [busy(), httpx.ReadError("broke")]
    await ask(server)
    assert server.slept == [0.5, 1.0]


@pytest.mark.parametrize(
    ("fault", "words", "concerns_all"),
    [
        (busy(400), "400: busy", False),
        (busy(401), "--api-key or TANDEM_API_KEY", True),
        (busy(404), "404", True),
        (httpx.Response(500, text="<p>\noops"), "500: <p> oops", False),
        (httpx.Response(200, text="<html>"), "OpenAI server", False),
        (httpx.ReadTimeout("slow"), "--timeout", False),
    ],
)
async def test_refusals(fault, words, concerns_all):
    server = WordServer()
    server.faults[PATH] = [fault]
    with pytest.raises(RequestProblem) as caught:
        await ask(server)
    assert words in str(caught.value)
    assert caught.value.concerns_all is concerns_all


async def test_the_first_text_model_is_taken():
    server = WordServer()
    cards = [{"id": "pictures", "architecture": {}}, {"id": "texts"}]
    server.faults["/v1/models"] = [httpx.Response(200, json={"data": some}) for some in (cards, [])]
    async with server.endpoint() as endpoint:
        assert await endpoint.first_model() == "texts"
        with pytest.raises(EvaluationProblem, match="no text model"):
            await endpoint.first_model()


@pytest.mark.parametrize("url", ["http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"])
async def test_an_address_may_end_in_v1(url):
    async with Endpoint(url) as endpoint:
        assert endpoint.url == "http://a:1"
