"""Texts of a given form, as clients ask a real server for them."""

import asyncio
import json
import random
import re
from typing import Annotated

import httpx
import openai
import pydantic
import pytest

pytestmark = pytest.mark.e2e
MODEL = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "Invent a person. Answer with JSON: name, age, hobbies."}]


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=40)
    age: int = pydantic.Field(ge=0, le=130)
    hobbies: list[Annotated[str, pydantic.Field(max_length=20)]] = pydantic.Field(max_length=3)


def test_the_sdk_parses_a_model(client):
    for temperature in (0.0, 1.5):
        answer = client.chat.completions.parse(
            model=MODEL,
            messages=QUESTION,
            response_format=Person,
            temperature=temperature,
            n=2,
            max_tokens=400,
        )
        for choice in answer.choices:
            assert choice.finish_reason == "stop"
            assert isinstance(choice.message.parsed, Person)


def test_a_stream_is_the_same_text(client):
    asked = {
        "model": MODEL, "messages": QUESTION, "seed": 3, "max_tokens": 200,
        "response_format": {"type": "json_object"},
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0]
    chunks = list(client.chat.completions.create(**asked, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.message.content
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason
    if whole.finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"structured_outputs": {"choice": ["positive", "negative"]}}, "positive|negative"),
        ({"structured_outputs": {"regex": r"\d{3}-\d{4}"}}, r"\d{3}-\d{4}"),
        ({"grammar": 'root ::= "move " [a-h] [1-8]'}, "move [a-h][1-8]"),
        (
            {"json_schema": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
            r"\[.*\]",
        ),
    ],
)
def test_other_dialects(client, asked, pattern):
    answer = client.completions.create(
        model=MODEL, prompt="Well:", max_tokens=200, temperature=1.0, n=3, extra_body=asked
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert re.fullmatch(pattern, choice.text, re.DOTALL), choice.text


def test_what_was_cut_off_is_called_that(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, response_format={"type": "json_object"}, max_tokens=2
    )
    assert answer.choices[0].finish_reason == "length"
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model=MODEL, messages=QUESTION, response_format=Person, max_tokens=2
        )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "param", "named"),
    [
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "json_schema", "uniqueItems"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "regex"),
        ({"grammar": "root ::= nothing"}, "grammar", "nothing"),
        ({"json_schema": {"multipleOf": 999_983}}, "json_schema", "multipleOf"),
    ],
)
def test_what_cannot_be_honoured_is_a_400(server, asked, param, named, stream):
    body = {"model": MODEL, "prompt": "x", "stream": stream, **asked}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert named in answer.json()["error"]["message"]


async def test_neighbours_change_nothing(server):
    """Nor do those that leave, and those whose form is refused."""
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:

        async def ask(**fields):
            answer = await http.post(
                "/v1/completions",
                json={"model": MODEL, "prompt": "Name:", "seed": 5, "max_tokens": 40, **fields},
            )
            return answer.json()["choices"][0]["text"]

        asked = [
            {"json_schema": Person.model_json_schema()},
            {},
            {"structured_outputs": {"regex": "([a-z]+ ){3,9}"}},
        ]
        alone = [await ask(**fields) for fields in asked]
        noise = [
            asyncio.create_task(ask(seed=i, json_schema={"const": i}, prompt=f"{i}"))
            for i in range(6)
        ]
        leaving = asyncio.create_task(ask(json_schema={"type": "string", "pattern": "a{500}"}))
        together = asyncio.gather(*(ask(**fields) for fields in asked))
        await asyncio.sleep(0.2)
        leaving.cancel()
        assert await together == alone
        await asyncio.gather(*noise)
    server.wait_idle()


async def test_each_client_gets_its_own_form(server):
    """Many forms are asked for at once, and some of them cannot be followed."""
    limits = httpx.Limits(max_connections=20)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http:

        async def ask(**fields):
            body = {"model": MODEL, "prompt": "Say:", "max_tokens": 40, **fields}
            return await http.post("/v1/completions", json=body)

        async def good():
            for _ in range(6):
                word = "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=6))
                answer = await ask(structured_outputs={"regex": f"good{word}[0-9]{{3}}"})
                assert answer.status_code == 200, answer.text
                text = answer.json()["choices"][0]["text"]
                assert re.fullmatch(f"good{word}[0-9]{{3}}", text)

        async def hostile():
            for _ in range(2):
                first, number = random.randrange(10**6), random.randrange(1001, 1500)
                values = [{"a": {"b": [first + i]}} for i in range(number)]
                answer = await ask(json_schema={"enum": values})
                assert answer.status_code == 400, answer.text
                assert answer.json()["error"]["param"] == "json_schema"
                assert "too many ways" in answer.json()["error"]["message"]

        await asyncio.gather(*(good() for _ in range(6)), *(hostile() for _ in range(4)))
    server.wait_idle()
