"""`/v1/usage`, the lines of the access log, and the tree of a slow request."""

import random
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import httpx

from server.http.usage import MAX_DAYS, MAX_ROWS, OTHER, UsageTable, Used, User
from tests.helpers.server.fake_server import answer_of
from tests.helpers.server.image_server import ChainServer
from tests.helpers.server.text_server import MODEL, TextServer

DAY_S = 86_400


def as_key(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def ask(server: TextServer, key: str, num_words: int, **body: Any) -> dict[str, int]:
    """Ask with a key. Returns the answer's usage."""
    body |= {"prompt": "the fox " * num_words}
    answer = await server.client.post("/v1/completions", json=body, headers=as_key(key))
    usage: dict[str, int] = answer_of(answer)["usage"]
    return usage


async def rows(client: httpx.AsyncClient, key: str, **query: int) -> dict[str, Any]:
    answer = answer_of(await client.get("/v1/usage", params=query, headers=as_key(key)))
    assert [day["data"] for day in answer["days"]] in ([answer["data"]], [])
    return {row["api_key"]: row for row in answer["data"]}


async def test_each_key_sees_its_own_numbers_and_an_admin_key_all(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret-one  the web shop\n# nobody\nsecret-two\n")
    server = TextServer(
        tokenizer_folder,
        api_key_file=str(keys),
        admin_keys=["boss"],
        enable_runtime_loading=True,
    )
    sums: dict[str, list[int]] = {}
    for _ in range(6):
        key = random.choice(["secret-one", "secret-two", "boss"])
        n = random.randint(1, 3)
        usage = await ask(server, key, random.randint(1, 9), n=n, max_tokens=random.randint(1, 9))
        numbers = [1, usage["prompt_tokens"], usage["completion_tokens"], n]
        sums[key] = [a + b for a, b in zip(sums.get(key, [0] * 4), numbers, strict=True)]
    names = {"secret-one": "the web shop", "secret-two": "key-2", "boss": "admin-1"}
    of_all = await rows(server.client, "boss")
    assert of_all.keys() == {names[key] for key in sums}
    for key, (num_requests, *tokens, num_results) in sums.items():
        row = of_all[names[key]]
        assert (row["model"], row["operation"]) == (MODEL, "generate")
        assert (row["num_requests"], row["num_results"]) == (num_requests, num_results)
        assert [row["input_tokens"], row["output_tokens"]] == tokens
    for key in ("secret-one", "secret-two"):
        own = {name: row for name, row in of_all.items() if name == names[key]}
        assert await rows(server.client, key) == own
        assert await rows(server.client, key, days=0) == own
    assert (await server.client.get("/v1/usage")).status_code == 401


def test_usage_keeps_a_month_and_a_bounded_number_of_models() -> None:
    now_s = [1.7e9]
    table = UsageTable(lambda: now_s[0])
    for day in range(MAX_DAYS + 5):
        table.add(User("a", "m", "generate"), Used(num_requests=1, input_tokens=day))
        now_s[0] += DAY_S
    assert len(table.days) == MAX_DAYS
    assert list(table.days) == sorted(table.days)
    newest = table.days[max(table.days)]
    assert newest[User("a", "m", "generate")].input_tokens == MAX_DAYS + 4
    for number in range(MAX_ROWS + 50):
        table.add(User("a", f"model {number}", "generate"), Used(num_requests=1))
    for kept in (table.total, table.days[max(table.days)]):
        assert len(kept) == MAX_ROWS + 1
        assert kept[User("a", OTHER, "generate")].num_requests in (50, 51)
    assert table.total[User("a", "m", "generate")].num_requests == MAX_DAYS + 5


async def test_the_lines_of_a_request_say_who_asked_and_where_the_time_went(
    tokenizer_folder: Path, logs: list[MutableMapping[str, Any]]
) -> None:
    server = TextServer(
        tokenizer_folder, api_keys=["k"], access_log=True, slow_request_seconds=1e-6
    )
    usage = await ask(server, "k", 5, max_tokens=7)
    line, slow = (line for line in logs if line["event"] in ("request", "slow request"))
    assert (line["log_level"], slow["log_level"]) == ("info", "warning")
    assert (line["key"], line["model"], line["status"]) == ("key-1", MODEL, 200)
    assert line["num_prompt_tokens"] == usage["prompt_tokens"]
    assert line["num_generation_tokens"] == usage["completion_tokens"] == 7
    assert 0 <= line["queue_s"] <= line["first_token_s"] <= line["duration_s"]
    names = [text.partition(":")[0] for text in slow["phases"].splitlines()]
    assert names == [f"generate {MODEL}", "  queue", "  prefill", "  decode"]
    assert slow["phases"].endswith(", 7 tokens")


async def test_the_stages_of_a_chain_are_in_usage_and_log(
    logs: list[MutableMapping[str, Any]],
) -> None:
    server = ChainServer(slow_request_seconds=1e-6)
    answer_of(await server.chain({"operation": "enlarge"}, {"operation": "matte"}, n=2))
    [slow] = [line for line in logs if line["event"] == "slow request"]
    parts = ("queue", "image 0", "image 1", "denoise", "step 1", "decode", "file", "prepare")
    for name in (*parts, "enlarge enlarger", "matte cutter"):
        assert f"{name}: +" in slow["phases"]
    rows = answer_of(await server.client.get("/v1/usage"))["data"]
    found = {row["operation"]: (row["num_requests"], row["num_results"]) for row in rows}
    assert found == {"draw": (1, 2), "enlarge": (1, 2), "matte": (1, 2)}
    assert {row["api_key"] for row in rows} == {None}
