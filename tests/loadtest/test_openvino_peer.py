import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Sequence

import pytest

from loadtest.client import CompletionClient, Target
from loadtest.drive import drive
from loadtest.openvino_peer import PeerServer, Piece, Stepper
from loadtest.workload import PlannedRequest, peers_workload

CHARACTERS = "aé€😀b "


class BytePipeline:
    """Tokens are bytes: it continues every prompt with `CHARACTERS`, over and over.

    So most of its tokens are parts of characters. `burst` tokens come at a step.
    """

    def __init__(self, burst: int = 1) -> None:
        self._left: dict[int, list[int]] = {}
        self._burst = burst
        self.threads: set[int] = set()
        self.dropped: list[int] = []
        self.most = 0
        self.gate = threading.Event()
        self.gate.set()
        self.dropping = threading.Event()

    def add(self, number: int, prompt: str, max_tokens: int) -> int:
        if not prompt:
            raise ValueError("the prompt has no tokens")
        endless = CHARACTERS.encode() * max_tokens
        self._left[number] = list(endless[:max_tokens])
        return len(prompt)

    def step(self) -> dict[int, list[int]]:
        assert self.gate.wait(20)
        self.threads.add(threading.get_ident())
        self.most = max(self.most, len(self._left))
        if any(rest == [ord("a")] for rest in self._left.values()):
            raise RuntimeError("a step failed")
        found = {number: rest[: self._burst] for number, rest in self._left.items()}
        self._left = {n: rest[self._burst :] for n, rest in self._left.items()}
        self._left = {n: rest for n, rest in self._left.items() if rest}
        return found

    def decode(self, texts: Sequence[list[int]]) -> list[str]:
        return [bytes(text).decode(errors="replace") for text in texts]

    def drop(self, number: int) -> None:
        self.dropped.append(number)
        self._left.pop(number, None)
        self.dropping.set()


@contextlib.asynccontextmanager
async def serving(pipeline: BytePipeline) -> AsyncIterator[str]:
    peer = PeerServer(pipeline)
    server = await peer.start(0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        pipeline.gate.set()
        server.close()
        await asyncio.to_thread(peer.stop)


@pytest.mark.parametrize("burst", [1, 3])
def test_a_piece_for_every_token_and_no_half_characters(burst: int) -> None:
    pieces: list[Piece] = []
    done = threading.Event()

    def deliver(piece: Piece) -> None:
        pieces.append(piece)
        if piece.is_last:
            done.set()

    stepper = Stepper(BytePipeline(burst), flush=lambda: None)
    stepper.start()
    stepper.ask(1, "four", 30, deliver)
    assert done.wait(20)
    stepper.stop()
    assert len(pieces) == 30
    text = "".join(piece.text for piece in pieces)
    assert text == (CHARACTERS.encode() * 30)[:30].decode(errors="replace")
    whole = len("aé€😀b aé€😀b ")  # 24 of the 30 bytes; the others are cut in the 4 of a character
    assert {len(piece.text) for piece in pieces[:24]} == {0, 1}
    assert sum(len(piece.text) for piece in pieces[:24]) == whole
    assert pieces[-1].usage == {"prompt_tokens": 4, "completion_tokens": 30, "total_tokens": 34}


async def test_a_batch_over_http() -> None:
    pipeline = BytePipeline()
    workload = peers_workload(8, seed=3)
    async with serving(pipeline) as url:
        outcome = await drive(workload, CompletionClient(Target(url, "m")))
    assert [record.error for record in outcome.records] == [None] * 16
    for planned, record in zip(workload.requests, outcome.records, strict=True):
        assert record.output_tokens == 64
        assert record.prompt_tokens == len(planned.prompt)
        assert record.finish_reason == "length"
        # 64 bytes are four times 12 and 16: chunks without text are not counted as tokens.
        text = (CHARACTERS.encode() * 64)[:64].decode(errors="replace")
        assert len(record.text_s) == len(text)
    assert pipeline.most > 1, "requests were not batched"
    assert len(pipeline.threads) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stream": False}, "stream must be true"),
        ({"temperature": 0.5}, "temperature must be 0"),
        ({"ignore_eos": None}, "ignore_eos must be true"),
        ({"prompt": ["a"]}, "a text as its prompt"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"prompt": ""}, "ValueError: the prompt has no tokens"),
    ],
)
async def test_what_it_refuses(change: dict[str, object], message: str) -> None:
    async with serving(BytePipeline()) as url:
        client = CompletionClient(Target(url, "m", extra_body=change))
        outcome = await drive(peers_workload(1, 1, 1), client)
    assert str(outcome.records[0].error).startswith("HTTP 400: ")
    assert message in str(outcome.records[0].error)


async def test_another_path_and_no_json() -> None:
    async with serving(BytePipeline()) as url:
        elsewhere = CompletionClient(Target(url, "m", endpoint="chat"))
        outcome = await drive(peers_workload(1, 1, 1), elsewhere)
        assert outcome.records[0].error == "HTTP 404: there is only /v1/completions here"
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 3\r\n\r\n{{{")
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert "message" in json.loads(answer.split(b"\r\n\r\n")[1])["error"]


async def test_a_failed_step_ends_its_answers_and_no_others() -> None:
    async with serving(BytePipeline()) as url:
        client = CompletionClient(Target(url, "m"))
        one = [PlannedRequest(0, "x", 1), PlannedRequest(1, "x", 2)]
        outcome = await drive(_closed(one), client)
    assert outcome.records[0].error == "HTTP 400: RuntimeError: a step failed"
    assert outcome.records[1].error is None


async def test_a_client_that_leaves_ends_its_request() -> None:
    pipeline = BytePipeline()
    async with serving(pipeline) as url:
        pipeline.gate.clear()
        body = json.dumps(Target(url, "m").body(PlannedRequest(0, "x", 100_000))).encode()
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
        writer.write(head + body)
        await writer.drain()
        writer.transport.abort()
        pipeline.gate.set()
        assert await asyncio.to_thread(pipeline.dropping.wait, 20)
    assert pipeline.dropped == [0]


def _closed(requests: list[PlannedRequest]):  # type: ignore[no-untyped-def]
    from loadtest.workload import Workload

    return Workload("test", requests, 1)
