"""llama-server's own routes over the scripted engine."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from tests.helpers.server.embedding_server import MAX_MODEL_LEN as MOST_EMBEDDED
from tests.helpers.server.embedding_server import EmbeddingServer
from tests.helpers.server.fake_embeddings import vector
from tests.helpers.server.fake_server import answer_of, error_of
from tests.helpers.server.text_server import MAX_MODEL_LEN, MODEL, TextServer, write_tokenizer


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Give the events of a stream, which ends without [DONE] here."""
    assert response.status_code == 200, response.text
    lines = [line for line in response.text.split("\n\n") if line]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def test_a_text_goes_to_the_contexts_end_unless_told_otherwise(server: TextServer) -> None:
    server.say("the fox jumps")
    prompt = "the fox"
    answer = (await server.post("/completion", prompt=prompt, seed=-1, cache_prompt=True)).json()
    sent = server.last_request
    assert sent.sampling.max_tokens == MAX_MODEL_LEN - len(sent.prompt_token_ids)
    assert (answer["content"], answer["stop"], answer["stop_type"]) == (
        "the fox jumps",
        True,
        "eos",
    )
    assert answer["model"] == MODEL
    assert answer["tokens"][:-1] == server.encode("the fox jumps")
    assert answer["tokens_predicted"] == len(answer["tokens"]) == answer["timings"]["predicted_n"]
    assert answer["tokens_evaluated"] == len(sent.prompt_token_ids)
    assert answer["generation_settings"] == {"seed": -1}
    assert answer["prompt"] == prompt
    assert answer["truncated"] is answer["has_new_line"] is False
    assert sent.sampling.seed is None


async def test_why_a_text_ended(server: TextServer) -> None:
    server.say("the quick brown fox")
    for fields, kind, word in (
        ({"stop": [" fox", " brown"]}, "word", " brown"),
        ({"n_predict": 2}, "limit", ""),
        ({}, "eos", ""),
    ):
        answer = (await server.post("/completion", prompt="a", **fields)).json()
        assert (answer["stop_type"], answer["stopping_word"]) == (kind, word)


async def test_a_streams_parts_join_to_the_whole(server: TextServer) -> None:
    body = {"prompt": "a", "n_predict": 30, "seed": 5, "n_probs": 2}
    whole = (await server.post("/completion", **body)).json()
    *parts, last = events_of(await server.post("/completions", **body, stream=True))
    assert {part["stop"] for part in parts} == {False}
    for name, nothing in (("content", ""), ("tokens", []), ("completion_probabilities", [])):
        joined = nothing
        for part in parts:
            joined = joined + part[name]
        assert joined == whole[name], name
    assert last["stop"] is True
    assert last["content"] == ""
    told = ("stop_type", "tokens_predicted", "tokens_evaluated", "has_new_line", "model")
    assert [last[name] for name in told] == [whole[name] for name in told]


async def test_probabilities(server: TextServer) -> None:
    server.say("the fox")
    answer = (await server.post("/completion", prompt="a", n_probs=3)).json()
    entries = answer["completion_probabilities"]
    assert [entry["id"] for entry in entries] == answer["tokens"]
    assert entries[0]["token"] == "the"
    assert bytes(entries[0]["bytes"]) == b"the"
    assert [len(entry["top_logprobs"]) for entry in entries] == [3] * len(entries)
    assert all(
        entry["top_logprobs"][0].keys() == {"id", "token", "bytes", "logprob"} for entry in entries
    )
    assert "completion_probabilities" not in (await server.post("/completion", prompt="a")).json()


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/completion", {"prompt": ["a", "b"]}, "prompt"),
        ("/completion", {"prompt": "a", "n": 2}, "n"),
        ("/completion", {"prompt": "a", "n_probs": 21}, "n_probs"),
        ("/completion", {"prompt": "a", "n_predict": -2}, "n_predict"),
        ("/completion", {"prompt": "a", "t_max_predict_ms": 5}, "t_max_predict_ms"),
        ("/completion", {"prompt": "a", "mirostat": 1}, "mirostat"),
        ("/completion", {"prompt": "a", "mirostat": False}, "mirostat"),
        ("/completion", {}, "prompt"),
        ("/infill", {"input_prefix": "a", "input_suffix": "b"}, "input_prefix"),
        ("/infill", {"input_prefix": "a"}, "input_suffix"),
        (
            "/infill",
            {"input_prefix": "", "input_suffix": "", "input_extra": [{}]},
            "input_extra[0].text",
        ),
        ("/apply-template", {}, "prompt"),
    ],
)
async def test_refusals(server: TextServer, path: str, body: dict[str, Any], param: str) -> None:
    error = error_of(await server.post(path, **body))
    assert error["param"] == param
    assert server.engine.requests == []


async def test_what_nobody_knows_is_named(server: TextServer) -> None:
    server.say("x")
    body = {"prompt": "a", "id_slot": -1, "n_keep": 5, "min_keep": 0, "lora": [], "logprobs": 2}
    response = await server.post("/completion", **body, warp=1)
    assert response.headers["X-Ignored-Fields"] == "logprobs, warp"


async def test_what_frontends_send_to_every_server_is_taken(server: TextServer) -> None:
    for name in ("n_predict", "max_tokens"):
        server.say("fox")
        asked = {"prompt": "a", "max_new_tokens": 3, name: 3, "negative_prompt": ""}
        response = await server.post("/completion", **asked)
        assert (response.status_code, server.last_request.sampling.max_tokens) == (200, 3)
    different = {"prompt": "a", "max_new_tokens": 3, "n_predict": 4}
    for body in (different, {"prompt": "a", "max_new_tokens": 3}):
        response = await server.post("/completion", **body)
        assert response.json()["error"]["param"] == "max_new_tokens"


async def test_samplers_that_nobody_knows_are_left_out(server: TextServer) -> None:
    values = {"temperature": 0.5, "top_k": 5, "min_p": 0.1, "top_p": 0.5}
    known = random.sample(["temperature", "top_k", "min_p"], 3)
    sent = list(known)
    for name in ("tfs_z", "adaptive_p"):
        sent.insert(random.randrange(len(sent) + 1), name)
    response = await server.post("/completion", prompt="a", samplers=sent, **values)
    assert response.status_code == 200, response.text
    named = response.headers["X-Ignored-Fields"].split(", ")
    assert sorted(named) == ["samplers.adaptive_p", "samplers.tfs_z"]
    with_unknown = server.last_request.sampling
    await server.post("/completion", prompt="a", samplers=known, **values)
    assert server.last_request.sampling == with_unknown
    assert with_unknown.top_p == 1.0, "what is not listed does nothing"


async def test_a_sampler_may_have_both_of_its_names(server: TextServer) -> None:
    """SillyTavern's default list has both."""
    values = {"typical_p": random.uniform(0.1, 0.9), "top_k": 7}
    requests = []
    for names in (["top_k", "typical_p"], ["typ_p", "top_k", "typical_p"], ["top_k", "typ_p"]):
        answer_of(await server.post("/completion", prompt="a", samplers=names, **values))
        requests.append(server.last_request.sampling)
    assert requests[0] == requests[1] == requests[2]


async def test_temperature_may_come_last(server: TextServer) -> None:
    values = {"temperature": 0.5, "top_k": 5, "min_p": 0.1}
    await server.post("/completion", prompt="a", temperature_last=True, **values)
    assert server.last_request.sampling.order == ("top_k", "min_p", "temperature")
    await server.post("/completion", prompt="a", temperature_last=False, **values)
    assert server.last_request.sampling.order is None
    # Where samplers are listed, they are in their own order.
    listed = {"samplers": ["temperature", "top_k"], "temperature_last": True}
    await server.post("/completion", prompt="a", **values, **listed)
    assert server.last_request.sampling.order is None


async def test_a_gap_is_put_as_llama_server_puts_it(tmp_path: Path) -> None:
    """The tokenizer has Qwen's tokens; llama-server's text is from `format_prompt_infill`."""
    names = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>"]
    server = TextServer(with_tokens(write_tokenizer(tmp_path), [*names, "<|file_sep|>"]))
    server.say("fox")
    ids = server.tokenizer.token_to_id
    body = {"input_prefix": "the ", "input_suffix": " fox", "prompt": "lazy"}
    extra = [{"filename": "a.py", "text": "x = 1\n"}, {"text": "y"}]
    stops = {"stop_token_ids": [9]}
    assert (await server.post("/infill", **body, input_extra=extra, **stops)).status_code == 200
    sent = server.last_request
    assert server.tokenizer.decode(sent.prompt_token_ids, skip_special_tokens=False) == (
        "<|repo_name|>myproject\n<|file_sep|>a.py\nx = 1\n<|file_sep|>tmp\ny"
        "<|file_sep|>filename\n<|s|><|fim_prefix|>the lazy<|fim_suffix|> fox<|fim_middle|>"
    )
    assert set(sent.sampling.stop_token_ids) == {9, *map(ids, names), ids("<|file_sep|>")}

    server = TextServer(with_tokens(write_tokenizer(tmp_path), ["<PRE>", "<SUF>", "<MID>"]))
    server.say("fox")
    assert (await server.post("/infill", **body, input_extra=extra[:1])).status_code == 200
    assert server.last_prompt == ("\n\n--- snippet ---\n\nx = 1\n<|s|><PRE>the lazy<SUF> fox<MID>")


def with_tokens(folder: Path, names: list[str]) -> Path:
    """Special tokens of these names at the end of the vocabulary."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(names)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


async def test_a_conversation_is_written_out_as_the_model_sees_it(server: TextServer) -> None:
    messages = [{"role": "user", "content": "hi é"}]
    answer = (await server.post("/apply-template", messages=messages)).json()
    assert answer == {"prompt": "<|s|>user\nhi é<|e|>\n<|s|>assistant\n"}


async def test_a_text_is_cut_into_pieces(server: TextServer) -> None:
    ids = server.encode("the é")
    assert (await server.post("/tokenize", content="the é")).json()["tokens"] == ids
    for fields in ({"add_special": True}, {"add_special_tokens": True}):
        tokens = (await server.post("/tokenize", content="the é", **fields)).json()["tokens"]
        assert tokens[1:] == ids
    pieces = (await server.post("/tokenize", content="the é", with_pieces=True)).json()["tokens"]
    assert [piece["id"] for piece in pieces] == ids
    assert pieces[0]["piece"] == "the"
    octets = b"".join(
        piece["piece"].encode() if isinstance(piece["piece"], str) else bytes(piece["piece"])
        for piece in pieces
    )
    assert octets.decode() == "the é"
    assert (await server.post("/detokenize", tokens=ids)).json()["content"] == "the é"
    both = await server.post("/tokenize", content="a", prompt="b")
    assert both.status_code == 400


async def test_a_model_describes_itself(server: TextServer) -> None:
    props = (await server.client.get("/props")).json()
    assert props["default_generation_settings"]["n_ctx"] == MAX_MODEL_LEN
    assert (props["model_alias"], props["bos_token"], props["eos_token"]) == (
        MODEL,
        "<|s|>",
        "<|e|>",
    )
    assert "<|s|>{{ m.role }}" in props["chat_template"]
    assert str(server.folder) not in json.dumps(props)
    assert (await server.client.get("/props?model=none")).status_code == 404


async def test_slots_are_texts_that_run(server: TextServer) -> None:
    async def busy() -> list[dict[str, Any]]:
        slots = (await server.client.get("/slots")).json()
        assert [slot["id"] for slot in slots] == list(range(server.settings.engine.max_num_seqs))
        return [slot for slot in slots if slot["is_processing"]]

    server.engine.delay_s = 0.002
    assert await busy() == []
    running = asyncio.create_task(server.post("/completion", prompt="a", n_predict=200))
    async with asyncio.timeout(10):
        while not (found := await busy()):  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    assert (found[0]["id"], found[0]["n_decoded"] > 0) == (0, True)
    assert (await server.client.delete(f"/v1/requests/{found[0]['id_task']}")).status_code == 200
    assert (await running).status_code == 499
    assert await busy() == []


async def test_paths_without_v1_are_the_same_routes(server: TextServer) -> None:
    conversation = {"messages": [{"role": "user", "content": "the fox"}]}
    server.say("the fox")
    for path, body in (
        ("/chat/completions", {**conversation, "temperature": 0}),
        ("/responses", {"input": "the fox", "temperature": 0}),
    ):
        for asked in (path, f"/v1{path}"):
            answer = (await server.post(asked, **body)).json()
            assert "the fox" in str(answer.get("output") or answer["choices"]), asked
        refused = await server.post(path, **body, max_output_tokens=0, max_tokens=0)
        assert (
            refused.json()
            == (await server.post(f"/v1{path}", **body, max_output_tokens=0, max_tokens=0)).json()
        )
    written = (await server.post("/apply-template", **conversation)).json()["prompt"]
    num_tokens = len(server.encode(written))
    for path, body in (
        ("/chat/completions/input_tokens", conversation),
        ("/responses/input_tokens", {"input": "the fox"}),
    ):
        for asked in (path, f"/v1{path}"):
            answer = (await server.post(asked, **body)).json()
            assert answer == {"object": "response.input_tokens", "input_tokens": num_tokens}


async def test_a_tokens_count_is_of_the_whole_conversation(server: TextServer) -> None:
    server.say("the fox")
    asked = {"input": "the quick", "instructions": "a"}
    first = (await server.post("/v1/responses", **asked)).json()
    counted = (await server.post("/v1/responses/input_tokens", **asked)).json()
    assert counted["input_tokens"] == first["usage"]["input_tokens"]
    then = {"input": "a", "previous_response_id": first["id"]}
    counted = (await server.post("/v1/responses/input_tokens", **then)).json()
    second = (await server.post("/v1/responses", **then)).json()
    assert counted["input_tokens"] == second["usage"]["input_tokens"]
    long = (await server.post("/v1/responses/input_tokens", input="the " * 300_000)).json()
    assert (long["error"]["param"], long["error"]["code"]) == ("input", "invalid_value")


async def test_slots_say_when_none_is_free(server: TextServer) -> None:
    asked = "/slots?fail_on_no_slot=1"
    assert (await server.client.get(asked)).status_code == 200
    server.engine.delay_s = 0.002
    total = server.settings.engine.max_num_seqs
    running = asyncio.create_task(
        server.post("/v1/completions", prompt="a", n=total, max_tokens=200)
    )
    async with asyncio.timeout(10):
        while (answer := await server.client.get(asked)).status_code == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "over_capacity")
    slots = (await server.client.get("/slots")).json()
    assert all(slot["is_processing"] for slot in slots)
    await server.client.delete(f"/v1/requests/{slots[0]['id_task']}")
    assert (await running).status_code == 499


async def test_embeddings(tokenizer_folder: Path) -> None:
    server = EmbeddingServer(tokenizer_folder)
    texts = ["the fox", "seven wizards"]
    wanted = [
        {"index": index, "embedding": [vector(server.ids(text))]}
        for index, text in enumerate(texts)
    ]
    for path in ("/embedding", "/embeddings"):
        for name in ("content", "input"):
            body = {name: texts, "embd_normalize": 2}
            assert (await server.post(path, **body)).json() == wanted
    for body, param in (
        ({"content": "a", "embd_normalize": 1}, "embd_normalize"),
        ({"content": "a", "input": "a"}, "input"),
        ({}, "content"),
        ({"content": ["a", ""]}, "content"),
        ({"content": ["a", "wizard " * MOST_EMBEDDED]}, "content"),
    ):
        response = await server.post("/embedding", **body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
