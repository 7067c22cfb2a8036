"""`POST /v1/chat/completions`: whole, streamed, refused, interrupted."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from engine.contract.status import Phase
from engine.errors import EngineDead, ModelNotReady
from server.protocol.common import MAX_PARTS
from tests.helpers.server.fake_engine import Failure
from tests.helpers.server.fake_server import answer_of, error_of, until
from tests.helpers.server.text_server import (
    MODEL,
    TextServer,
    encoding_threads,
    events_of,
    text_info,
    write_tokenizer,
)

PATH = "/v1/chat/completions"


def texts_of(events: list[Any]) -> dict[int, str]:
    """Each choice's text, put together from its chunks."""
    texts: dict[int, str] = {}
    for chunk in events:
        for choice in chunk.get("choices", ()):
            content = choice["delta"].get("content") or ""
            texts[choice["index"]] = texts.get(choice["index"], "") + content
    return texts


async def test_whole_answer(server: TextServer) -> None:
    server.say("Hello 🦊")
    server.engine.num_cached_tokens = 4
    response = await server.chat(model=MODEL, max_tokens=50)
    assert response.status_code == 200, response.text
    answer = response.json()
    num_prompt = len(server.last_request.prompt_token_ids)
    num_output = len(server.encode("Hello 🦊")) + 1  # end-of-sequence counts, as in OpenAI
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("system_fingerprint").startswith("fp_")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hello 🦊",
                    "refusal": None,
                    "reasoning_content": None,
                    "reasoning": None,
                    "tool_calls": None,
                },
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
                "token_ids": None,
                "uncertainty": None,
                "repetition": None,
            }
        ],
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_output,
            "total_tokens": num_prompt + num_output,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "semantic_entropy": None,
        "kv_transfer_params": None,
    }
    assert "x-ignored-fields" not in response.headers


async def test_the_prompt_is_the_template_applied(server: TextServer) -> None:
    async def prompt(**fields: Any) -> str:
        answer_of(await server.chat(**fields))
        return server.last_prompt

    messages = [{"role": "developer", "content": "d"}, {"role": "user", "content": "u"}]
    both = "<|s|>system\nd<|e|>\n<|s|>user\nu<|e|>\n"
    assert await prompt(messages=messages) == both + "<|s|>assistant\n"
    assert await prompt(messages=messages, add_generation_prompt=False) == both
    kwargs = {"mood": "glad"}
    assert await prompt(
        messages=messages, chat_template_kwargs=kwargs, add_special_tokens=True
    ) == ("<|s|>" + both + "[glad]<|s|>assistant\n")
    messages.append({"role": "assistant", "content": "I th"})
    assert (
        await prompt(messages=messages, continue_final_message=True)
        == both + "<|s|>assistant\nI th"
    )


@pytest.mark.parametrize("n", [1, 3])
async def test_stream_equals_whole(server: TextServer, n: int) -> None:
    seed = random.randrange(1 << 30)
    server.engine.tokens_per_event = 1 + seed % 3
    for i in range(10):
        fields: dict[str, Any] = {"n": n, "seed": seed + i, "max_tokens": 30, "stop": ["e", "o b"]}
        whole = (await server.chat(**fields)).json()
        events = events_of(await server.chat(**fields, stream=True))
        texts = texts_of(events)
        ends = {
            c["index"]: (c["finish_reason"], c["stop_reason"])
            for e in events
            for c in e["choices"]
            if c["finish_reason"] is not None
        }
        for choice in whole["choices"]:
            index = choice["index"]
            assert choice["message"]["content"] == texts[index], f"seed {seed}"
            end = (choice["finish_reason"], choice["stop_reason"])
            assert end == ends[index], f"seed {seed}"
        assert sorted(texts) == list(range(n))


async def test_shape_of_a_stream(server: TextServer) -> None:
    server.say("ab c")
    response = await server.chat(
        stream=True, stream_options={"include_usage": True}, max_tokens=20, n=2
    )
    events = events_of(response)
    *chunks, usage = events
    head = {k: usage[k] for k in ("id", "created", "model", "system_fingerprint")}
    for chunk in events:
        assert chunk["object"] == "chat.completion.chunk"
        assert head.items() <= chunk.items()
    for index in range(2):
        mine = [c for e in chunks for c in e["choices"] if c["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert all("role" not in c["delta"] for c in mine[1:])
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + ["stop"]
        assert mine[-1]["delta"] == {}
        assert all(c["delta"]["content"] for c in mine[1:-1])
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 2 * (len(server.encode("ab c")) + 1)


async def test_usage_in_a_stream_only_if_asked_for(server: TextServer) -> None:
    for options in (None, {}, {"include_usage": False}, {"continuous_usage_stats": True}):
        events = events_of(await server.chat(stream=True, stream_options=options, max_tokens=3))
        assert all("usage" not in event and event["choices"] for event in events)
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = events_of(await server.chat(stream=True, stream_options=options, max_tokens=3))
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == 3


async def test_stop_strings_end_the_engines_work(server: TextServer) -> None:
    server.say("one two three four")
    server.engine.delay_s = 0.001
    for stream in (False, True):
        response = await server.chat(stop="thr", stream=stream, max_tokens=200)
        if stream:
            [text] = texts_of(events_of(response)).values()
        else:
            text = response.json()["choices"][0]["message"]["content"]
            assert response.json()["choices"][0]["stop_reason"] == "thr"
        assert text == "one two "
    assert len(server.engine.aborted) == 2
    assert not server.engine.live


async def test_one_choices_stop_string_leaves_the_others_alone(server: TextServer) -> None:
    server.say("aXb", "abcdefgh", "X")
    answer = (await server.chat(stop=["X"], n=3, max_tokens=100)).json()
    contents = [choice["message"]["content"] for choice in answer["choices"]]
    assert contents == ["a", "abcdefgh", ""]
    counted = len(server.encode("aX")) + len(server.encode("abcdefgh")) + 1 + 1
    assert answer["usage"]["completion_tokens"] == counted
    server.say("aXbbbbbbbbbbb", "cXdddddddddddddddd")
    server.engine.delay_s = 0.001
    answer = (await server.chat(stop=["X"], n=2, max_tokens=100)).json()
    assert [c["message"]["content"] for c in answer["choices"]] == ["a", "c"]
    aborted = server.engine.aborted
    assert aborted == [server.last_request.request_id]
    ended = [index for request_id, index in server.engine.ended if request_id in aborted]
    assert sorted(ended) == [0, 1]


async def test_logprobs(server: TextServer) -> None:
    server.say("ab")
    fields = {"logprobs": True, "top_logprobs": 2, "max_tokens": 2}
    answer = (await server.chat(**fields)).json()
    content = answer["choices"][0]["logprobs"]["content"]
    ids = server.encode("ab")
    assert [entry["token"] for entry in content] == ["a", "b"]
    assert content[0]["bytes"] == [97]
    assert content[0]["logprob"] == -0.5
    assert [top["logprob"] for top in content[0]["top_logprobs"]] == [-0.5, -1.5]
    assert answer["choices"][0]["logprobs"]["refusal"] is None
    streamed = [
        entry
        for event in events_of(await server.chat(**fields, stream=True))
        for choice in event["choices"]
        for entry in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == content
    named = (await server.chat(**fields, return_tokens_as_token_ids=True)).json()
    names = [e["token"] for e in named["choices"][0]["logprobs"]["content"]]
    assert names == [f"token_id:{i}" for i in ids]
    plain = (await server.chat(logprobs=True, max_tokens=2)).json()
    assert all(e["top_logprobs"] == [] for e in plain["choices"][0]["logprobs"]["content"])


async def test_prompt_logprobs_and_token_ids(server: TextServer) -> None:
    server.say("ab")
    answer = (await server.chat(prompt_logprobs=1, return_token_ids=True, max_tokens=2)).json()
    ids = server.last_request.prompt_token_ids
    assert answer["prompt_token_ids"] == ids
    assert answer["choices"][0]["token_ids"] == server.encode("ab")
    first, second, *_ = answer["prompt_logprobs"]
    assert first is None
    assert len(answer["prompt_logprobs"]) == len(ids)
    assert second == {
        str(ids[1]): {
            "logprob": -0.5,
            "rank": 1,
            "decoded_token": server.tokenizer.decode([ids[1]], skip_special_tokens=False),
        }
    }
    events = events_of(await server.chat(return_token_ids=True, max_tokens=2, stream=True))
    assert events[0]["prompt_token_ids"] == ids
    streamed = [i for e in events for c in e["choices"] for i in c.get("token_ids", ())]
    assert streamed == server.encode("ab")


async def test_echo_puts_the_continued_message_first(server: TextServer) -> None:
    server.say("ink so")
    messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "I th"}]
    fields = {"messages": messages, "continue_final_message": True, "echo": True}
    answer = (await server.chat(**fields)).json()
    assert answer["choices"][0]["message"]["content"] == "I think so"
    assert texts_of(events_of(await server.chat(**fields, stream=True))) == {0: "I think so"}


async def test_unknown_fields_are_named_in_a_header_and_the_log(
    server: TextServer, logs: list[Any]
) -> None:
    for stream in (False, True):
        response = await server.chat(tfs_z=2, user="u", tools=[], stream=stream, max_tokens=1)
        assert response.status_code == 200
        assert response.headers["x-ignored-fields"] == "tfs_z"
        assert logs[-1]["ignored_fields"] == "tfs_z"


async def test_the_model_may_be_left_out_if_there_is_one(
    server: TextServer, tokenizer_folder: Path
) -> None:
    for model in (None, "", MODEL):
        assert (await server.chat(model=model, max_tokens=1)).json()["model"] == MODEL
    error = error_of(await server.chat(model="gpt-4"), 404)
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert MODEL in error["message"]
    infos = [text_info(tokenizer_folder, name) for name in ("a", "b")]
    two = TextServer(tokenizer_folder, *infos)
    assert (await two.chat(model="b", max_tokens=1)).json()["model"] == "b"
    assert two.last_request.model == "b"
    assert "a, b" in error_of(await two.chat(), 400)["message"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"max_tokens": 10_000}, "messages", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "x " * 300}]}, "messages", None),
        ({"logit_bias": {"420": 1}}, "logit_bias", None),
        ({"stop_token_ids": [420]}, "stop_token_ids", None),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"priority": 1}, "priority", "unsupported_feature"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"messages": [{"role": "user", "content": "refuse me"}]}, "messages", None),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "invalid_value"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
async def test_bad_requests_get_a_400_before_the_first_byte(
    server: TextServer, fields: dict[str, Any], param: str, code: str | None, stream: bool
) -> None:
    error = error_of(await server.chat(**fields, stream=stream), 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert code in (None, error["code"])
    assert not server.engine.requests


async def test_the_engine_hears_what_the_text_must_look_like(server: TextServer) -> None:
    await server.chat(max_tokens=1, response_format={"type": "json_object"})
    structure = server.last_request.sampling.structure
    assert structure is not None and structure.text == '{"type": "object"}'
    await server.complete(max_tokens=1, grammar='root ::= "a"')
    structure = server.last_request.sampling.structure
    assert structure is not None and structure.param == "grammar"
    await server.complete(max_tokens=1)
    assert server.last_request.sampling.structure is None


async def test_a_model_without_chat_template_says_what_to_use(tmp_path: Path) -> None:
    server = TextServer(write_tokenizer(tmp_path, chat_template=None))
    assert "/v1/completions" in error_of(await server.chat(), 400)["message"]
    assert (await server.complete(max_tokens=1)).status_code == 200


async def test_a_model_without_tokenizer_is_a_503_not_a_crash(tmp_path: Path) -> None:
    server = TextServer(write_tokenizer(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{broken")
    error = error_of(await server.chat(max_tokens=1), 503)
    assert str(tmp_path) not in error["message"]
    write_tokenizer(tmp_path)
    assert (await server.chat(max_tokens=1)).status_code == 200


async def test_a_full_queue_is_a_429(tokenizer_folder: Path) -> None:
    server = TextServer(tokenizer_folder, engine={"max_num_seqs": 1}, max_queued_requests=1)
    server.engine.hold()
    waiting = [asyncio.create_task(server.chat(max_tokens=1)) for _ in range(2)]
    await until(lambda: len(server.engine.requests) == 2)
    for stream in (False, True):
        response = await server.chat(max_tokens=1, stream=stream)
        assert error_of(response, 429)["code"] == "queue_full"
        assert int(response.headers["retry-after"]) >= 1
    # Refused before any work: this text would fail later, for its length.
    long = [{"role": "user", "content": "x " * 1000}]
    assert error_of(await server.chat(messages=long), 429)["code"] == "queue_full"
    server.engine.release()
    assert [r.status_code for r in await asyncio.gather(*waiting)] == [200, 200]
    assert (await server.chat(max_tokens=1)).status_code == 200


async def test_loading_draining_and_refusing_engines_are_503s(server: TextServer) -> None:
    server.engine.set_status(MODEL, Phase.LOADING)
    response = await server.chat()
    assert error_of(response, 503)["code"] == "model_not_ready"
    assert "retry-after" in response.headers
    server.engine.set_status(MODEL, Phase.FAILED, detail="not a model")
    assert "not a model" in error_of(await server.chat(), 503)["message"]
    server.engine.set_status(MODEL, Phase.READY)
    server.engine.submit_error = ModelNotReady("it went away just now")
    assert error_of(await server.chat(stream=True), 503)["code"] == "model_not_ready"
    server.engine.submit_error = None
    assert server.state.admission.num_in_flight() == 0
    server.state.lifecycle.begin_drain()
    assert error_of(await server.chat(), 503)["code"] == "draining"


async def test_a_failure_before_any_token(server: TextServer) -> None:
    server.engine.failure = Failure(after=0)
    assert error_of(await server.chat(), 400)["code"] == "out_of_kv_blocks"
    [error] = events_of(await server.chat(stream=True))
    assert error["error"]["code"] == "out_of_kv_blocks"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_form_that_the_engine_refuses_is_a_400(server: TextServer, stream: bool) -> None:
    """What cannot be honoured is found out beside the steps: no stream has begun by then."""
    message = "response_format cannot be enforced: uniqueItems"
    server.engine.failure = Failure(code="invalid_value", message=message, param="response_format")
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"uniqueItems": True}}}
    error = error_of(await server.chat(stream=stream, response_format=asked), 400)
    assert (error["param"], error["message"]) == ("response_format", message)
    assert server.state.admission.num_in_flight() == 0
    server.engine.failure = None
    answer = await server.chat(stream=stream, response_format=asked, max_tokens=3)
    assert answer.status_code == 200
    assert not stream or answer.text.endswith("data: [DONE]\n\n")


async def test_a_failure_after_the_first_byte_is_an_event(server: TextServer) -> None:
    server.engine.failure = Failure(after=3, code="invariant_violation", message="secret")
    *chunks, error = events_of(await server.chat(stream=True, n=2))
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all(c["finish_reason"] is None for e in chunks for c in e["choices"])
    assert error["error"]["code"] == "invariant_violation"
    assert "secret" not in json.dumps(error)
    assert error_of(await server.chat(), 500)["code"] == "invariant_violation"
    await until(lambda: not server.engine.live)


async def test_the_engines_death_ends_every_request(server: TextServer) -> None:
    server.say("a" * 200)
    server.engine.delay_s = 0.01
    tasks = [
        asyncio.create_task(server.chat(stream=stream, max_tokens=200, n=n))
        for stream in (False, True)
        for n in (1, 2)
    ]
    await until(lambda: len(server.engine.live) == 4)
    await until(lambda: (made := server.engine.stats(MODEL)) is not None and made.num_steps > 20)
    server.engine.die()
    whole, whole_2, streamed, streamed_2 = await asyncio.gather(*tasks)
    for response in (whole, whole_2):
        assert error_of(response, 503)["code"] == EngineDead.code
    for response in (streamed, streamed_2):
        *chunks, error = events_of(response)
        assert chunks
        assert error["error"]["code"] == EngineDead.code
    assert error_of(await server.chat(), 503)["code"] == "model_not_ready"
    server.engine.revive()
    assert (await server.chat(max_tokens=1)).status_code == 200


async def test_a_hundred_clients_leave_at_once(server: TextServer) -> None:
    server.engine.hold()  # no answer ends by itself
    limits = httpx.Limits(max_connections=200)
    async with server.listening() as url, httpx.AsyncClient(base_url=url, limits=limits) as client:
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 200}
        tasks = [
            asyncio.create_task(client.post(PATH, json=body | {"stream": i % 2 == 0}))
            for i in range(100)
        ]
        await until(lambda: len(server.engine.live) == 100)
        for task in tasks:
            task.cancel()
        await until(lambda: not server.engine.live)
        server.engine.release()
        assert (await client.post(PATH, json=body | {"max_tokens": 1})).status_code == 200


async def test_metrics_are_the_sum_of_the_usages(server: TextServer) -> None:
    server.say("one two three")
    prompt_tokens = completion_tokens = 0
    for fields in ({}, {"n": 3}, {"stop": "two"}, {"stop": "w", "n": 2}, {"max_tokens": 2}):
        usage = (await server.chat(**fields)).json()["usage"]
        prompt_tokens += usage["prompt_tokens"]
        completion_tokens += usage["completion_tokens"]
    lines = (await server.client.get("/metrics")).text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    label = f'{{model_name="{MODEL}"}}'
    assert float(values[f"tandem_prompt_tokens_total{label}"]) == prompt_tokens
    assert float(values[f"tandem_generation_tokens_total{label}"]) == completion_tokens


async def test_long_conversations_are_refused_before_they_are_tokenised(
    server: TextServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = encoding_threads(monkeypatch)
    assert (await server.chat(max_tokens=1)).status_code == 200
    text = "the quick brown fox " * 2000
    parts = [{"type": "text", "text": text}]
    for messages in (
        [{"role": "user", "content": text}],
        [{"role": "user", "content": parts}],
        [{"role": "user", "content": "x"}] * 2000,
    ):
        error = error_of(await server.chat(messages=messages), 400)
        assert error["code"] == "context_length_exceeded"
    assert outside == [False]


async def test_the_official_client(server: TextServer, client: AsyncOpenAI) -> None:
    server.say("Hello there")
    messages: Any = [{"role": "user", "content": "hi"}]
    answer = await client.chat.completions.create(
        model=MODEL, messages=messages, logprobs=True, top_logprobs=1, n=2, stop=["z"]
    )
    assert [c.message.content for c in answer.choices] == ["Hello there"] * 2
    assert answer.choices[0].logprobs is not None
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=messages,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello there"
    assert chunks[-1].usage == answer.usage.model_copy(  # type: ignore[union-attr]
        update={
            "completion_tokens": answer.usage.completion_tokens // 2,  # type: ignore[union-attr]
            "total_tokens": chunks[-1].usage.total_tokens,  # type: ignore[union-attr]
        }
    )
    with pytest.raises(openai.NotFoundError, match="not served"):
        await client.chat.completions.create(model="nope", messages=messages)
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=10**6)
    assert caught.value.code == "context_length_exceeded"
    server.engine.failure = Failure(after=2)
    with pytest.raises(openai.APIError, match="blocks"):
        async for _ in await client.chat.completions.create(
            model=MODEL, messages=messages, stream=True
        ):
            pass


@pytest.mark.parametrize(
    "name", ["add_special_tokens", "options", "messages", "self", "", "a b", "bos_token"]
)
async def test_template_kwargs_of_any_name_are_no_fault_of_ours(
    server: TextServer, name: str
) -> None:
    response = await server.chat(chat_template_kwargs={name: 1}, max_tokens=1)
    assert response.status_code in (200, 400), response.text


@pytest.mark.parametrize("depth", [100, 300, 500, 900, 2000])
async def test_deep_nesting_is_no_fault_of_ours(server: TextServer, depth: int) -> None:
    deep = '{"a":' * depth + "1" + "}" * depth
    user = '{"role":"user","content":"x"}'
    call = '{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":%s}}]}'
    for body in (
        f'{{"messages":[{user}],"zz":{deep}}}',
        f'{{"messages":[{user}],"chat_template_kwargs":{{"mood":{deep}}}}}',
        f'{{"messages":[{call % deep}]}}',
        f'{{"messages":[{call % json.dumps(deep)}]}}',
    ):
        response = await server.client.post(
            PATH, content=body, headers={"Content-Type": "application/json"}
        )
        assert response.status_code in (200, 400), response.text


USER = {"role": "user", "content": "hi"}
TOOL_OF_MANY = {"type": "function", "function": {f"x{i}": 1 for i in range(65)}}
CALL = {"function": {"name": "f", "arguments": "{}"}}
MANY_CALLS = {"role": "assistant", "tool_calls": [CALL] * 256}
MANY_VALUES = {
    "role": "assistant",
    "tool_calls": [{"function": {"name": "f", "arguments": f"[{'1,' * 70_000}1]"}}] * 2,
}
MANY_PARTS = {"role": "user", "content": [{"type": "text", "text": "x"}] * (MAX_PARTS // 8)}


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (PATH, {"messages": [USER], **{f"x{i}": 1 for i in range(1024)}}, "has 1025 fields"),
        ("/tokenize", {f"x{i}": 1 for i in range(1025)}, "has 1025 fields"),
        (PATH, {"messages": [USER | {f"x{i}": 1 for i in range(63)}]}, "has 65 fields"),
        (PATH, {"messages": [USER], "tools": [TOOL_OF_MANY]}, "has 65 fields"),
        (PATH, {"messages": [USER, *[MANY_CALLS] * 17]}, "messages[17].tool_calls"),
        (PATH, {"messages": [USER, MANY_VALUES, MANY_VALUES]}, "262144 values"),
        (PATH, {"messages": [MANY_PARTS] * 8 + [USER, MANY_PARTS]}, "messages[9].content"),
        ("/tokenize", {"messages": [MANY_PARTS] * 9}, "messages[8].content"),
        ("/v1/responses", {"input": [MANY_PARTS] * 9}, "input[8].content"),
        ("/v1/messages", {"messages": [MANY_PARTS] * 9, "max_tokens": 1}, "messages[8].content"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_takes_long_to_read_is_refused_by_its_size(
    server: TextServer, path: str, body: dict[str, Any], said: str
) -> None:
    error = (await server.post(path, **body)).json()["error"]
    assert said in f"{error['message']} {error.get('param')}"
    assert server.engine.requests == []


async def test_logs_hold_no_prompts_unless_asked(tokenizer_folder: Path, logs: list[Any]) -> None:
    for wanted in (False, True):
        logs.clear()
        server = TextServer(tokenizer_folder, log_prompts=wanted)
        server.say("the answer")
        messages = [{"role": "user", "content": "the question"}]
        for stream in (False, True):
            await server.chat(messages=messages, stream=stream)
            await server.complete(prompt="the question", stream=stream)
        lines = [line for line in logs if line["event"] == "request"]
        assert len(lines) == 4
        for line in lines:
            assert ("the question" in str(line)) == wanted
            assert ("the answer" in str(line)) == wanted
            assert line["num_generation_tokens"] == len(server.encode("the answer")) + 1
            assert line["model"] == MODEL


async def test_faults_of_ours_are_logged_once(server: TextServer, logs: list[Any]) -> None:
    server.engine.submit_error = RuntimeError("bug")
    response = await server.chat()
    assert error_of(response, 500)["code"] == "internal_error"
    assert [line["event"] for line in logs].count("request failed") == 1
    server.engine.submit_error = None
    server.engine.failure = Failure(after=1, code="internal_error", message="bug")
    events_of(await server.chat(stream=True))
    assert [line["event"] for line in logs].count("request failed") == 2
