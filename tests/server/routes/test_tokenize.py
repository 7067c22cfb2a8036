"""`POST /tokenize` and `POST /detokenize`."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from server.text.encoding_pool import EncodingPool
from server.text.texts import ModelText, TextRegistry
from tests.helpers.server.text_server import (
    BOS,
    MAX_MODEL_LEN,
    MODEL,
    TextServer,
    encoding_threads,
    text_info,
    write_tokenizer,
)


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_text_there_and_back(server: TextServer, prefix: str) -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    text = "".join(rng.choice("ab é🦊\n<|s|>") for _ in range(50))
    plain = await server.post(f"{prefix}/tokenize", prompt=text, add_special_tokens=False)
    tokens = plain.json()["tokens"]
    assert plain.json() == {
        "count": len(tokens),
        "max_model_len": MAX_MODEL_LEN,
        "tokens": tokens,
        "token_strs": None,
    }
    back = await server.post(f"{prefix}/detokenize", tokens=tokens)
    assert back.json() == {"prompt": text, "content": text}, f"seed {seed}"


async def test_special_tokens_are_added_unless_refused(server: TextServer) -> None:
    with_bos = (await server.post("/tokenize", prompt="ab")).json()["tokens"]
    without = (await server.post("/tokenize", prompt="ab", add_special_tokens=False)).json()
    assert with_bos == [BOS, *without["tokens"]]
    assert (await server.post("/detokenize", tokens=with_bos)).json()["prompt"] == "<|s|>ab"


async def test_token_strings_are_the_vocabularys(server: TextServer) -> None:
    answer = (await server.post("/tokenize", prompt="the fox", return_token_strs=True)).json()
    assert answer["token_strs"] == ["<|s|>", "the", "Ġfox"]


async def test_messages_give_what_a_chat_would(server: TextServer) -> None:
    for fields in ({}, {"add_generation_prompt": False}, {"chat_template_kwargs": {"mood": "x"}}):
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], **fields}
        tokens = (await server.post("/tokenize", **body)).json()["tokens"]
        await server.chat(**body, max_tokens=1)
        assert tokens == server.last_request.prompt_token_ids


async def test_empty_input(server: TextServer) -> None:
    answer = await server.post("/tokenize", prompt="", add_special_tokens=False)
    assert answer.json()["tokens"] == []
    assert (await server.post("/detokenize", tokens=[])).json()["prompt"] == ""


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tokenize", {}, 400),
        ("/tokenize", {"prompt": []}, 400),
        ("/tokenize", {"prompt": ["a", 7]}, 400),
        ("/tokenize", {"prompt": ["a"] * 2049}, 400),
        ("/tokenize", {"prompt": "a", "content": "b"}, 400),
        ("/apply-template", {"prompt": ["a", "b"]}, 400),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, 400),
        ("/tokenize", {"messages": []}, 400),
        ("/tokenize", {"prompt": "a", "model": "nope"}, 404),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, 400),
        ("/detokenize", {}, 400),
        ("/detokenize", {"tokens": "a"}, 400),
        ("/detokenize", {"tokens": [420]}, 400),
        ("/detokenize", {"tokens": [-1]}, 400),
        ("/detokenize", {"tokens": [1], "model": "nope"}, 404),
    ],
    ids=str,
)
async def test_bad_requests(
    server: TextServer, path: str, body: dict[str, Any], status: int
) -> None:
    response = await server.post(path, **body)
    assert response.status_code == status
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("name", ["prompt", "content"])
async def test_each_text_of_a_list_is_tokenised(server: TextServer, name: str) -> None:
    texts = ["the fox"[: random.randint(0, 7)] for _ in range(random.randint(1, 5))]
    fields = {"return_token_strs": True, "with_pieces": random.random() < 0.5}
    each = [(await server.post("/tokenize", **{name: text}, **fields)).json() for text in texts]
    answer = (await server.post("/tokenize", **{name: texts}, **fields)).json()
    for field in ("count", "tokens", "token_strs"):
        assert answer[field] == [one[field] for one in each]
    both = await server.post("/tokenize", prompt=texts, content=texts, **fields)
    assert both.json()["count"] == [
        (await server.post("/tokenize", prompt=text)).json()["count"] for text in texts
    ]


async def test_the_first_of_several_models_where_none_is_named(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        write_tokenizer(folder)
    server = TextServer(folders[0], *(text_info(folder, folder.name) for folder in folders))
    answer = (await server.post("/tokenize", prompt="the fox")).json()
    assert answer == (await server.post("/tokenize", prompt="the fox", model="a")).json()
    back = await server.post("/detokenize", tokens=answer["tokens"][1:])
    assert back.json()["prompt"] == "the fox"
    assert (await server.complete()).status_code == 400


async def test_unknown_fields_are_named(server: TextServer) -> None:
    response = await server.post("/tokenize", prompt="a", colour=1)
    assert response.headers["x-ignored-fields"] == "colour"
    response = await server.post("/detokenize", tokens=[5], colour=1)
    assert response.headers["x-ignored-fields"] == "colour"


async def test_a_large_input_is_tokenised_in_a_thread(
    server: TextServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = encoding_threads(monkeypatch)
    text = "the quick brown fox " * 2000
    await server.post("/tokenize", prompt="the fox")
    tokens = (await server.post("/tokenize", prompt=text)).json()["tokens"]
    assert outside == [False, True]
    assert (await server.post("/detokenize", tokens=tokens[1:])).json()["prompt"] == text


async def test_a_model_is_loaded_once_whoever_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokenizer(tmp_path)
    loads: list[Path] = []
    load = ModelText.load

    async def load_and_count(path: Path, pool: EncodingPool) -> ModelText:
        loads.append(path)
        return await load(path, pool)

    monkeypatch.setattr(ModelText, "load", load_and_count)
    registry, info = TextRegistry(EncodingPool(1)), text_info(tmp_path)
    waiting = [asyncio.create_task(registry.get(info)) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(result is results[1] for result in results[2:])
    assert await registry.get(info) is results[1]
    assert len(loads) == 1
    await registry.aclose()


async def test_the_tokenizer_describes_itself(server: TextServer) -> None:
    info = (await server.client.get("/tokenizer_info")).json()
    assert info["tokenizer_class"] == "BPE"
    num_tokens = server.tokenizer.get_vocab_size()
    assert (info["model_max_length"], info["vocab_size"]) == (MAX_MODEL_LEN, num_tokens)
    assert (info["bos_token"], info["eos_token"], info["unk_token"]) == ("<|s|>", "<|e|>", None)
    assert "add_generation_prompt" in info["chat_template"]
    assert info["added_tokens_decoder"]["0"] == {
        "content": "<|s|>",
        "special": True,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "single_word": False,
    }
    assert (await server.client.get("/tokenizer_info", params={"model": MODEL})).json() == info
    response = await server.client.get("/tokenizer_info", params={"model": "nobody"})
    assert response.status_code == 404
