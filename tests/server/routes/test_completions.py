"""`POST /v1/completions`: batches, echo, older log-probabilities, streams."""

import asyncio
import random
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from tests.helpers.server.fake_engine import Failure
from tests.helpers.server.fake_server import error_of, until
from tests.helpers.server.text_server import BOS, MODEL, TextServer, events_of

PATH = "/v1/completions"


def choices_of(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    choices: list[Any] = response.json()["choices"]
    return choices


def joined(events: list[Any], key: str) -> dict[int, Any]:
    """`text`, or a list within `logprobs`, of each choice's chunks put together."""
    found: dict[int, Any] = {}
    for event in events:
        for choice in event["choices"]:
            part = choice["text"] if key == "text" else (choice["logprobs"] or {key: []})[key]
            index = choice["index"]
            found[index] = found[index] + part if index in found else part
    return found


async def test_whole_answer(server: TextServer) -> None:
    server.say(" jumps")
    response = await server.complete(prompt="the fox", model=MODEL)
    answer = response.json()
    num_prompt = len(server.encode("the fox")) + 1
    assert server.last_request.prompt_token_ids == [BOS, *server.encode("the fox")]
    assert answer.pop("id").startswith("cmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer.pop("system_fingerprint").startswith("fp_")
    assert answer == {
        "object": "text_completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "text": " jumps",
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
                "prompt_logprobs": None,
                "token_ids": None,
                "prompt_token_ids": None,
                "uncertainty": None,
                "repetition": None,
            }
        ],
        "kv_transfer_params": None,
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": len(server.encode(" jumps")) + 1,
            "total_tokens": num_prompt + len(server.encode(" jumps")) + 1,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


async def test_what_is_asked_of_samplers_does_not_hinder_the_tokens_of_a_prompt(
    server: TextServer,
) -> None:
    bare = {"model": MODEL, "prompt": random.choice(["the fox", "a dog jumps"])}
    fields = {"bad_words": ["fox", " the"], "negative_prompt": "a dog", "guidance_scale": 2}
    answers = [await server.post(f"{PATH}/render", **body) for body in (bare, bare | fields)]
    plain, full = (answer.json()[0]["token_ids"] for answer in answers)
    assert plain == full == [BOS, *server.encode(bare["prompt"])]


async def test_the_engine_is_told_who_asks(server: TextServer) -> None:
    await server.complete()
    assert server.last_request.client == "127.0.0.1"


async def test_sixteen_tokens_by_default(server: TextServer) -> None:
    response = await server.complete()
    assert response.json()["usage"]["completion_tokens"] == 16
    assert choices_of(response)[0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [[BOS, "ab"]]),
        (["ab", "c"], [[BOS, "ab"], [BOS, "c"]]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ],
    ids=str,
)
async def test_prompt_shapes(server: TextServer, prompt: Any, expected: list[Any]) -> None:
    await server.complete(prompt=prompt)
    ids = [
        [i for part in row for i in (server.encode(part) if isinstance(part, str) else [part])]
        for row in expected
    ]
    assert [r.prompt_token_ids for r in server.engine.requests] == ids
    if isinstance(prompt, str):
        await server.complete(prompt=prompt, add_special_tokens=False)
        assert server.last_request.prompt_token_ids == server.encode(prompt)


async def test_choices_of_a_batch_are_prompt_major(server: TextServer) -> None:
    letters = {(1 + i): letter for i, letter in enumerate("pqr")}

    def reply(request: Any, index: int) -> list[int]:
        return server.encode(letters[request.prompt_token_ids[0] - 4] * (index + 1))

    server.engine.reply = reply
    for stream in (False, True):
        response = await server.complete(prompt=[[5], [6], [7]], n=2, stream=stream)
        if stream:
            texts = joined(events_of(response), "text")
        else:
            texts = {c["index"]: c["text"] for c in choices_of(response)}
        assert texts == dict(enumerate(["p", "pp", "q", "qq", "r", "rr"]))
    usage = (await server.complete(prompt=[[5], [6], [7]], n=2)).json()["usage"]
    assert usage["prompt_tokens"] == 3
    assert usage["completion_tokens"] == 9 + 6


async def test_the_best_of_several_texts_come_at_the_end(server: TextServer) -> None:
    def reply(request: Any, index: int) -> list[int]:
        return server.encode("pqr"[index] * (3 - index))

    server.engine.reply = reply
    fields: dict[str, Any] = {"prompt": [[5], [6]], "n": 2, "best_of": 3}
    for more in ({}, {"logprobs": 1}):
        response = await server.complete(**fields, **more)
        found = {c["index"]: c["text"] for c in choices_of(response)}
        # To this engine all tokens are equally likely.
        assert found == dict(enumerate(["ppp", "qq"] * 2))
        assert response.json()["usage"]["completion_tokens"] == 2 * (3 + 2 + 1) + 6
        for choice in choices_of(response):
            tokens = None if choice["logprobs"] is None else choice["logprobs"]["tokens"]
            assert tokens is None if not more else "".join(tokens[:-1]) == choice["text"]
        events = events_of(await server.complete(**fields, **more, stream=True))
        assert joined(events, "text") == found
        assert len(events) == 4
    assert {r.sampling.n for r in server.engine.requests} == {3}


async def test_more_beams_than_the_model_runs_at_a_time(tokenizer_folder: Path) -> None:
    server = TextServer(tokenizer_folder, engine={"max_num_seqs": 3})
    async with server.client:
        error = error_of(await server.complete(use_beam_search=True, best_of=4))
        assert error["param"] == "best_of"
        assert (await server.complete(use_beam_search=True, best_of=3)).status_code == 200
    [request] = server.engine.requests
    assert request.sampling.num_sequences == 3


async def test_stream_equals_whole(server: TextServer) -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    for _ in range(20):
        server.engine.tokens_per_event = rng.randrange(1, 4)
        fields: dict[str, Any] = {
            "prompt": [[rng.randrange(2, 400) for _ in range(rng.randrange(1, 9))] for _ in "ab"],
            "n": rng.randrange(1, 3),
            "seed": rng.randrange(1 << 40),
            "max_tokens": rng.randrange(0, 25),
            "stop": rng.choice([None, ["e"], ["o", "the"]]),
            "echo": rng.random() < 0.5,
            "logprobs": rng.choice([None, 0, 2]),
            "skip_special_tokens": rng.random() < 0.5,
        }
        whole = choices_of(await server.complete(**fields))
        events = events_of(await server.complete(**fields, stream=True))
        texts = joined(events, "text")
        ends = {
            c["index"]: (c["finish_reason"], c["stop_reason"])
            for e in events
            for c in e["choices"]
            if c["finish_reason"] is not None
        }
        for choice in whole:
            index = choice["index"]
            assert choice["text"] == texts[index], f"seed {seed}"
            assert (choice["finish_reason"], choice["stop_reason"]) == ends[index], f"seed {seed}"
            for key, values in (choice["logprobs"] or {}).items():
                assert values == joined(events, key)[index], f"seed {seed}"


async def test_logprobs_in_the_older_shape(server: TextServer) -> None:
    server.say("ab 🦊")
    ids = server.encode("ab 🦊")
    logprobs = choices_of(await server.complete(logprobs=2, max_tokens=len(ids)))[0]["logprobs"]
    assert logprobs.keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert logprobs["tokens"][:2] == ["a", "b"]
    assert logprobs["token_logprobs"] == [-0.5] * len(ids)
    assert logprobs["text_offset"][:3] == [0, 1, 2]
    assert logprobs["text_offset"][-1] == 3  # every piece of the fox begins where the fox does
    assert logprobs["top_logprobs"][0]["a"] == -0.5
    assert len(logprobs["top_logprobs"][0]) == 2
    none = choices_of(await server.complete(logprobs=0, max_tokens=1))[0]["logprobs"]
    assert none["top_logprobs"] == [{"a": -0.5}]
    named = await server.complete(logprobs=1, max_tokens=1, return_tokens_as_token_ids=True)
    assert choices_of(named)[0]["logprobs"]["tokens"] == [f"token_id:{ids[0]}"]


async def test_echo_gives_the_prompt_with_its_logprobs(server: TextServer) -> None:
    server.say(" jumps over")
    prompt = "the fox"
    [choice] = choices_of(await server.complete(prompt=prompt, echo=True, logprobs=1, max_tokens=2))
    assert choice["text"].startswith(prompt)
    logprobs = choice["logprobs"]
    num_prompt = len(server.last_request.prompt_token_ids)
    assert len(logprobs["tokens"]) == num_prompt + 2
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert all(value == -0.5 for value in logprobs["token_logprobs"][1:])
    for token, offset in list(zip(logprobs["tokens"], logprobs["text_offset"], strict=True))[1:]:
        assert choice["text"][offset:].startswith(token)


async def test_scoring_as_lm_eval_does_it(server: TextServer) -> None:
    """Token ids, echo and no new tokens: the sum of a continuation's log-probabilities."""
    prompts = [server.encode("the lazy dog"), server.encode("the quick fox")]
    for max_tokens in (0, 1):
        response = await server.complete(
            prompt=prompts, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0, seed=1234
        )
        for ids, choice in zip(prompts, choices_of(response), strict=True):
            logprobs = choice["logprobs"]
            scores = logprobs["token_logprobs"][: len(ids)]
            assert scores == [None] + [-0.5] * (len(ids) - 1)
            assert len(logprobs["tokens"]) == len(ids) + max_tokens
            for scored, top in list(zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True))[
                1:
            ]:
                assert max(top, key=top.get) == scored
        assert response.json()["usage"]["completion_tokens"] == 2 * max_tokens
    [choice] = choices_of(await server.complete(prompt="the dog", echo=True, max_tokens=0, n=1))
    assert choice["text"] == "the dog"
    assert choice["finish_reason"] == "length"
    [silent] = choices_of(await server.complete(prompt="the dog", max_tokens=0))
    assert silent["text"] == ""


async def test_echo_with_several_completions_and_streams(server: TextServer) -> None:
    fields = {"prompt": "the fox", "echo": True, "logprobs": 1, "n": 3, "max_tokens": 0}
    whole = choices_of(await server.complete(**fields))
    assert [c["text"] for c in whole] == ["the fox"] * 3
    assert whole[0]["logprobs"] == whole[2]["logprobs"]
    events = events_of(await server.complete(**fields, stream=True))
    assert joined(events, "text") == dict.fromkeys(range(3), "the fox")
    assert joined(events, "tokens")[2] == whole[0]["logprobs"]["tokens"]


@pytest.mark.parametrize("stop", [None, ["zebra"]])
async def test_a_character_that_is_cut_off_leaves_no_trace(
    server: TextServer, stop: list[str] | None
) -> None:
    text = "the fox 🦊🏳"
    server.say(text)
    for max_tokens in range(1, len(server.encode(text)) + 1):
        fields: dict[str, Any] = {"max_tokens": max_tokens, "stop": stop}
        [choice] = choices_of(await server.complete(**fields))
        assert text.startswith(choice["text"])
        events = events_of(await server.complete(**fields, stream=True))
        assert "".join(event["choices"][0]["text"] for event in events) == choice["text"]
        answer = (await server.chat(**fields)).json()["choices"][0]
        assert answer["message"]["content"] == choice["text"]
    assert choice["text"] == text


async def test_echo_of_token_ids_and_of_a_truncated_prompt(server: TextServer) -> None:
    ids = server.encode("the lazy dog")
    [choice] = choices_of(await server.complete(prompt=ids, echo=True, max_tokens=0))
    assert choice["text"] == "the lazy dog"
    response = await server.complete(
        prompt="the lazy dog", echo=True, max_tokens=0, truncate_prompt_tokens=1
    )
    assert choices_of(response)[0]["text"] == server.tokenizer.decode(ids[-1:])
    marked = await server.complete(
        prompt=[BOS, *ids], echo=True, max_tokens=0, skip_special_tokens=False
    )
    assert choices_of(marked)[0]["text"] == "<|s|>the lazy dog"


async def test_prompt_logprobs_in_vllms_shape(server: TextServer) -> None:
    ids = server.encode("the fox")
    [choice] = choices_of(
        await server.complete(prompt=ids, prompt_logprobs=2, max_tokens=1, return_token_ids=True)
    )
    assert choice["prompt_token_ids"] == ids
    first, second, *_ = choice["prompt_logprobs"]
    assert first is None
    assert second[str(ids[1])] == {"logprob": -0.5, "rank": 1, "decoded_token": " fox"}
    assert len(second) == 2
    assert choice["logprobs"] is None


async def test_tokens_beyond_the_tokenizer_are_harmless(server: TextServer) -> None:
    server.say_tokens([419, 410, *server.encode("a"), 419])
    [choice] = choices_of(await server.complete(logprobs=3, max_tokens=4, prompt=[419]))
    assert choice["text"] == "a"
    error = error_of(await server.complete(prompt=[1, 420]))
    assert "420" in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt": []},
        {"prompt": None},
        {"prompt": ["a", ""]},
        {"max_tokens": 1000},
        {"prompt": "x " * 500},
        {"logprobs": True},
        {"suffix": "z"},
        {"best_of": 2, "n": 3},
        {"best_of": 2, "use_beam_search": True, "temperature": 0.5},
        {"best_of": 2, "use_beam_search": True, "max_tokens": 0},
        {"stream": True, "prompt_logprobs": 1},
    ],
    ids=lambda fields: str(fields)[:30],
)
async def test_bad_requests(server: TextServer, fields: dict[str, Any]) -> None:
    for stream in (False, True):
        error = error_of(await server.complete(**{"stream": stream, **fields}))
        assert error["type"] == "invalid_request_error"
    assert not server.engine.requests


async def test_one_bad_prompt_refuses_the_whole_batch(server: TextServer) -> None:
    response = await server.complete(prompt=[[5], [6] * 300])
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert not server.engine.requests


async def test_one_failing_prompt_ends_the_whole_batch(server: TextServer) -> None:
    server.engine.delay_s = 0.001
    server.engine.failure = Failure(after=2)
    response = await server.complete(prompt=[[5], [6], [7]], max_tokens=50)
    assert response.json()["error"]["code"] == "out_of_kv_blocks"
    *_, error = events_of(await server.complete(prompt=[[5], [6], [7]], stream=True))
    assert error["error"]["code"] == "out_of_kv_blocks"
    await until(lambda: not server.engine.live)


async def test_a_refusal_within_a_batch_takes_back_what_was_submitted(server: TextServer) -> None:
    submit = server.engine.submit
    server.engine.hold()

    def refuse_third(request: Any) -> Any:
        if request.request_id.endswith("-2"):
            raise RuntimeError("bug")
        return submit(request)

    server.engine.submit = refuse_third  # type: ignore[method-assign]
    response = await server.complete(prompt=[[5], [6], [7]])
    assert response.status_code == 500
    assert "bug" not in response.text
    assert len(server.engine.aborted) == 2


@pytest.fixture
def narrow_server(tokenizer_folder: Path) -> TextServer:
    """Twenty places, of which one request takes eight."""
    return TextServer(tokenizer_folder, engine={"max_num_seqs": 4}, max_queued_requests=16)


@pytest.mark.parametrize("stream", [False, True])
async def test_many_prompts_enter_a_few_at_a_time(narrow_server: TextServer, stream: bool) -> None:
    server = narrow_server
    server.engine.hold()
    prompts = [[random.randint(5, 300)] for _ in range(random.randint(30, 60))]
    n = random.randint(1, 3)
    many = asyncio.create_task(server.complete(prompt=prompts, n=n, max_tokens=4, stream=stream))
    await until(lambda: len(server.engine.requests) == 8 // n)
    others = [asyncio.create_task(server.complete(prompt=[9])) for _ in range(12)]
    await until(lambda: len(server.engine.requests) == 8 // n + 12)
    server.engine.release()
    assert [(await other).status_code for other in others] == [200] * 12
    answer = await many
    texts = joined(events_of(answer), "text") if stream else choices_of(answer)
    assert len(texts) == len(prompts) * n
    sent = [one.prompt_token_ids for one in server.engine.requests if one.prompt_token_ids != [9]]
    assert sent == [ids for ids in prompts if ids != [9]]
    await until(lambda: server.state.admission.num_in_flight() == 0)


async def test_the_engine_never_has_more_of_a_request_than_its_share(
    narrow_server: TextServer,
) -> None:
    server = narrow_server
    numbers_live = []
    submit = server.engine.submit

    def note(request: Any) -> Any:
        stream = submit(request)
        numbers_live.append(len(server.engine.live))
        return stream

    server.engine.submit = note  # type: ignore[method-assign]
    server.engine.delay_s = 0.001
    response = await server.complete(prompt=[[5]] * 40, max_tokens=3)
    assert len(choices_of(response)) == 40
    assert max(numbers_live) == 8


async def test_prompts_that_wait_for_others_are_not_sent_once_nobody_asks(
    narrow_server: TextServer,
) -> None:
    server = narrow_server
    server.engine.hold()
    task = asyncio.create_task(server.complete(prompt=[[5]] * 40, stream=True))
    await until(lambda: len(server.engine.requests) == 8)
    task.cancel()
    await asyncio.wait([task])
    await until(lambda: server.state.admission.num_in_flight() == 0)
    assert len(server.engine.requests) == len(server.engine.aborted) == 8


async def test_heartbeats_while_waiting(tokenizer_folder: Any) -> None:
    server = TextServer(tokenizer_folder, heartbeat_interval_s=0.02)
    server.engine.first_delay_s = 0.1
    response = await server.complete(stream=True, max_tokens=2)
    assert response.text.startswith(": ping\n\n")
    assert events_of(response)


async def test_a_continued_usage_chunk(server: TextServer) -> None:
    options = {"include_usage": True}
    *chunks, last = events_of(
        await server.complete(stream=True, stream_options=options, prompt=["a", "b"], max_tokens=3)
    )
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 6
    assert last["object"] == "text_completion"


async def test_the_official_client(server: TextServer, client: AsyncOpenAI) -> None:
    server.say(" jumps over")
    answer = await client.completions.create(model=MODEL, prompt="the fox", echo=True, logprobs=1)
    assert answer.choices[0].text == "the fox jumps over"
    stream = await client.completions.create(model=MODEL, prompt="the fox", stream=True)
    texts = [chunk.choices[0].text async for chunk in stream]
    assert "".join(texts) == " jumps over"
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).id == MODEL
