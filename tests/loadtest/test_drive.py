import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from loadtest.client import CompletionClient, Target
from loadtest.drive import drive, probe_tokens, warm_up
from loadtest.interrupt import Interrupt
from loadtest.prompts import TokenEstimate
from loadtest.record import RequestRecord
from loadtest.workload import PlannedRequest, Workload


@pytest.fixture
async def client(fake_openai: Any) -> AsyncIterator[CompletionClient]:
    made = CompletionClient(Target(fake_openai.url, "m", timeout_s=10))
    yield made
    made.close()


def requests(count: int, max_tokens: int = 2, gap_s: float | None = None) -> list[PlannedRequest]:
    return [
        PlannedRequest(i, f"Words: {i} b", max_tokens, None if gap_s is None else i * gap_s)
        for i in range(count)
    ]


async def test_closed_loop_keeps_its_concurrency(
    fake_openai: Any, client: CompletionClient
) -> None:
    fake_openai.token_s = 0.02
    outcome = await drive(Workload("closed", requests(10), 4), client)
    assert [record.index for record in outcome.records] == list(range(10))
    assert all(record.error is None for record in outcome.records)
    assert fake_openai.max_in_flight == 4
    assert len(fake_openai.seen) == 10
    first_end_s = min(record.sent_s + (record.end_s or 0) for record in outcome.records[:4])
    assert max(record.sent_s for record in outcome.records[:4]) < first_end_s
    assert min(record.sent_s for record in outcome.records[4:]) >= first_end_s
    assert outcome.wall_s >= 3 * 2 * 0.02
    assert not outcome.interrupted


async def test_more_clients_than_requests(fake_openai: Any, client: CompletionClient) -> None:
    outcome = await drive(Workload("closed", requests(2), 32), client)
    assert len(outcome.records) == 2
    outcome = await drive(Workload("closed", [], 32), client)
    assert outcome.records == []


async def test_open_loop_does_not_wait_for_answers(
    fake_openai: Any, client: CompletionClient
) -> None:
    async def answer_when_all_are_here(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await fake_openai.wait_for_requests(8)
        await fake_openai.stream(body, writer)

    fake_openai.answer = answer_when_all_are_here
    outcome = await drive(Workload("open", requests(8, 1, gap_s=0.02), None), client)
    assert fake_openai.max_in_flight == 8
    assert all(record.error is None for record in outcome.records)
    for record in outcome.records:
        assert record.at_s == pytest.approx(record.index * 0.02)
        assert record.sent_s >= record.at_s
    arrivals = [seen.at for seen in fake_openai.seen]
    assert arrivals[-1] - arrivals[0] > 0.1


async def test_failures_do_not_stop_a_run(fake_openai: Any, client: CompletionClient) -> None:
    async def fail(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")

    fake_openai.answer = fail
    ended = []
    workload = Workload("closed", requests(6), 2)
    outcome = await drive(workload, client, on_end=ended.append)
    assert [record.error for record in outcome.records] == ["HTTP 500: "] * 6
    assert len(ended) == 6


@pytest.mark.parametrize("concurrency", [2, None])
async def test_an_interrupt_keeps_what_is_there(
    fake_openai: Any, client: CompletionClient, concurrency: int | None
) -> None:
    fake_openai.token_s = 0.02
    planned = requests(40, 4, gap_s=None if concurrency else 0.03)
    ended: list[RequestRecord] = []
    async with Interrupt() as interrupt:

        def on_end(record: RequestRecord) -> None:
            ended.append(record)
            if len(ended) == 3:
                interrupt.fire()

        outcome = await drive(
            Workload("w", planned, concurrency), client, interrupt=interrupt, on_end=on_end
        )
    assert outcome.interrupted
    assert outcome.num_planned == 40
    errors = [record.error for record in outcome.records]
    assert errors.count(None) >= 2
    assert 1 <= errors.count("interrupted") <= (concurrency or 40)
    assert len(errors) == errors.count(None) + errors.count("interrupted") < 40
    for _ in range(2000):  # 20 s
        if fake_openai.in_flight == 0:
            break
        await asyncio.sleep(0.01)
    assert fake_openai.in_flight == 0, "the server was not told"


async def test_an_interrupt_outside_of_a_run_cancels_the_rest() -> None:
    async def work() -> None:
        async with Interrupt() as interrupt:
            interrupt.fire()
            await asyncio.sleep(5)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(work())


async def test_warm_up_prompts_are_all_different(
    fake_openai: Any, client: CompletionClient
) -> None:
    fake_openai.token_s = 0.001
    await warm_up(client, 5, concurrency=2, seed=7)
    assert len({seen.body["prompt"] for seen in fake_openai.seen}) == 5
    assert fake_openai.max_in_flight == 2
    await warm_up(client, 0, concurrency=2, seed=7)
    assert len(fake_openai.seen) == 5
    await warm_up(client, 1, concurrency=1, seed=7, num_words=30, output_tokens=3)
    assert fake_openai.seen[-1].body["max_tokens"] == 3
    assert len(fake_openai.seen[-1].body["prompt"].split()) == 8 + 30 - 1


async def test_a_failed_warm_up_says_why(fake_openai: Any, client: CompletionClient) -> None:
    async def refuse(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 404 No\r\n\r\n{"error": {"message": "no model m"}}')

    fake_openai.answer = refuse
    with pytest.raises(RuntimeError, match="HTTP 404: no model m"):
        await warm_up(client, 1, concurrency=1, seed=0)
    with pytest.raises(RuntimeError, match="HTTP 404: no model m"):
        await probe_tokens(client, seed=0)


async def test_the_server_is_asked_what_words_cost(
    fake_openai: Any, client: CompletionClient
) -> None:
    fake_openai.fixed_tokens = 30
    assert await probe_tokens(client, seed=3) == TokenEstimate(fixed=30, per_word=1)
