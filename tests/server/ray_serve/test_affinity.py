"""Which server a request is sent to, by what is in it."""

import json
import random
import secrets

import pytest

from engine.worker.replicas.router import Router
from server.http.home import HOME, fresh_digits
from server.ray_serve.affinity import home_of, homes_in, job_of


def text(num_chars: int) -> str:
    return "".join(random.choices("abcdefgh ", k=num_chars))


def chat(*contents: str, **more: object) -> bytes:
    messages = [{"role": "user", "content": content} for content in contents]
    return json.dumps({"model": "m", "messages": messages, **more}).encode()


def match(one: bytes, other: bytes) -> int:
    """How many blocks two bodies have in common."""
    pairs = zip(job_of(one).chain, job_of(other).chain, strict=False)
    return sum(a == b for a, b in pairs)


def test_conversations_share_the_blocks_of_their_common_beginning():
    system, first = text(2000), text(3000)
    short, long = chat(system, first), chat(system, first, text(900))
    assert match(short, long) == len(job_of(short).chain) >= 5000 // 256
    assert 0 < match(short, chat(system, text(3000))) <= 2100 // 256
    assert match(short, chat(text(2000), first)) == 0
    assert match(short, chat(system, first, tools=[{"name": text(300)}])) == 0


@pytest.mark.parametrize("change", [{"model": "other"}, {"cache_salt": "x"}], ids=["model", "salt"])
def test_what_shares_no_cache_shares_no_blocks(change):
    content = text(2000)
    assert match(chat(content), chat(content, **change)) == 0


@pytest.mark.parametrize("name", ["prompt", "input", "messages"])
def test_every_api_has_its_prompt(name):
    body = {"model": "m", name: text(1000)}
    assert len(job_of(json.dumps(body).encode()).chain) == 1000 // 256


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"[1]",
        b'"prompt"',
        b'{"prompt": null, "max_tokens": "x"}',
        b'{"messages": {"a": [1, {}]}}',
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--x--',
        b"\xff\x00\xfe",
    ],
)
def test_a_request_without_a_prompt_is_a_request_too(body):
    job = job_of(body)
    assert job.chain == [] and job.work > 0
    router = Router("ab", max_idle=10)
    running = router.begin(job, router.choose(job, "ab"))
    assert router.choose(job, "ab") != running.name


def test_an_id_names_the_server_that_made_it():
    names = [secrets.token_hex(4) for _ in range(3)]
    homes = [home_of(name) for name in names]
    assert len(set(homes)) == 3
    token = HOME.set(homes[1])
    try:
        short, long = fresh_digits(32), fresh_digits(48)
        assert (len(short), len(long)) == (32, 48) and short != fresh_digits(32)
    finally:
        HOME.reset(token)
    assert homes_in(f"/v1/responses/resp_{short}/cancel", b"") == {homes[1]}
    assert homes_in(f"/v1/images/files/{long}.png", b"") == {homes[1]}
    assert homes_in(f"/v1/images/img-{short}", b"") == {homes[1]}
    body = json.dumps({"input": "x", "previous_response_id": f"resp_{short}"}).encode()
    assert homes_in("/v1/responses", body) == {homes[1]}
    assert homes_in("/v1/responses", chat("resp_12 of a text")) == set()


def test_ids_of_a_server_alone_are_random_to_the_end():
    assert len({fresh_digits(32)[-8:] for _ in range(20)}) == 20
