"""Serves OpenVINO GenAI at `POST /v1/completions`, for the comparison of text.

    $PEERS_DIR/openvino/bin/python -m loadtest.openvino_peer MODEL.gguf --port 8107 --threads 2

OpenVINO's own server is a separate C++ program that is on no package index. This one puts its
pipeline with continuous batching behind minimal HTTP: streamed, greedy answers, one request per
connection, and only the fields that `client.py` sends. It needs nothing but the standard library
and openvino_genai.

One thread steps the pipeline and turns tokens into text; another runs an event loop for HTTP:

    handler → ask() → │ inbox │ → Stepper: add, step, decode → │ one call │ → queues → sockets
"""

import argparse
import asyncio
import json
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

PATH = "/v1/completions"

_MAX_REQUEST_BYTES = 2**20
_LONGEST_SENDING_S = 1.0
"""How long to wait for the event loop to send: a stopping loop sends nothing."""
_REPLACEMENT = "\ufffd"
_ASSUMED: dict[str, Any] = {"stream": True, "temperature": 0, "ignore_eos": True}
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Connection: close\r\n\r\n"
)


class Pipeline(Protocol):
    """Computes tokens step by step, on one thread. A number identifies each request."""

    def add(self, number: int, prompt: str, max_tokens: int) -> int:
        """Begin a request; returns the tokens of its prompt. Raises ValueError for a bad one."""

    def step(self) -> dict[int, list[int]]:
        """Advance all requests; returns the new tokens of those that have some."""

    def decode(self, texts: Sequence[list[int]]) -> list[str]:
        """The text of each list of tokens."""

    def drop(self, number: int) -> None:
        """End a request that is still running."""


class OpenVinoPipeline:
    """A `ContinuousBatchingPipeline` of a GGUF file or an OpenVINO folder, on the CPU."""

    def __init__(self, model: Path, *, threads: int, cache_gib: int) -> None:
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = cache_gib
        scheduler.max_num_seqs = 64
        scheduler.max_num_batched_tokens = 512
        self._genai = openvino_genai
        self._pipe = openvino_genai.ContinuousBatchingPipeline(
            str(model), scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self._tokenizer = self._pipe.get_tokenizer()
        self._handles: dict[int, Any] = {}

    def add(self, number: int, prompt: str, max_tokens: int) -> int:
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = max_tokens, True, False
        token_ids = self._tokenizer.encode(prompt).input_ids
        self._handles[number] = self._pipe.add_request(number, token_ids, config)
        return int(token_ids.shape[1])

    def step(self) -> dict[int, list[int]]:
        self._pipe.step()
        found = {}
        for number, handle in list(self._handles.items()):
            tokens: list[int] = []
            while handle.can_read():
                for output in handle.read().values():
                    tokens += output.generated_ids
            if tokens:
                found[number] = tokens
            status = handle.get_status()
            if status == self._genai.GenerationStatus.IGNORED:
                raise RuntimeError("OpenVINO gave a request up: its cache has no room for it")
            if status != self._genai.GenerationStatus.RUNNING:
                del self._handles[number]
        return found

    def decode(self, texts: Sequence[list[int]]) -> list[str]:
        decoded: list[str] = self._tokenizer.decode(list(texts))
        return decoded

    def drop(self, number: int) -> None:
        if handle := self._handles.pop(number, None):
            handle.cancel()


@dataclass(slots=True)
class Piece:
    """The text that a token adds to an answer, with the usage at its end; or an error."""

    text: str = ""
    usage: dict[str, int] | None = None
    error: str | None = None

    @property
    def is_last(self) -> bool:
        return self.usage is not None or self.error is not None


@dataclass(slots=True)
class _Answer:
    """A request in the pipeline, and how far its text has been sent.

    A token may be part of a character, and its text may depend on the tokens before it. So the new
    text is what `tokens[start:]` decodes to beyond `tokens[start:sent]`.
    """

    deliver: Callable[[Piece], None]
    max_tokens: int
    num_prompt_tokens: int
    tokens: list[int] = field(default_factory=list)
    start: int = 0
    sent: int = 0

    def new_text(self, before: str, now: str, *, done: bool) -> str:
        """The text to send; empty while the text ends within a character."""
        if len(now) <= len(before) or (now.endswith(_REPLACEMENT) and not done):
            return ""
        self.start, self.sent = self.sent, len(self.tokens)
        return now[len(before) :]

    def usage(self) -> dict[str, int]:
        count = len(self.tokens)
        total = self.num_prompt_tokens + count
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": count,
            "total_tokens": total,
        }


@dataclass(frozen=True, slots=True)
class _Ask:
    number: int
    prompt: str
    max_tokens: int
    deliver: Callable[[Piece], None]


class Stepper(threading.Thread):
    """Steps the pipeline while there are requests, and delivers a piece for every token.

    `flush` is called after each step that delivered something.
    """

    def __init__(self, pipeline: Pipeline, flush: Callable[[], None]) -> None:
        super().__init__(name="stepper", daemon=True)
        self._pipeline = pipeline
        self._flush = flush
        self._inbox: queue.SimpleQueue[_Ask | int | None] = queue.SimpleQueue()
        self._answers: dict[int, _Answer] = {}

    def ask(
        self, number: int, prompt: str, max_tokens: int, deliver: Callable[[Piece], None]
    ) -> None:
        """Begin a request, from any thread; `deliver` is called on the stepper's thread."""
        self._inbox.put(_Ask(number, prompt, max_tokens, deliver))

    def drop(self, number: int) -> None:
        """Give up an answer that nobody waits for, from any thread."""
        self._inbox.put(number)

    def stop(self) -> None:
        self._inbox.put(None)
        self.join()

    def run(self) -> None:
        while self._take_in():
            if self._answers:
                try:
                    self._deliver(self._pipeline.step())
                except Exception as error:
                    self._fail(error)
            self._flush()

    def _take_in(self) -> bool:
        """Take in new requests, waiting if there is no other work. Returns False at the end."""
        wait = not self._answers
        while wait or not self._inbox.empty():
            wait = False
            message = self._inbox.get()
            if message is None:
                return False
            if isinstance(message, _Ask):
                self._begin(message)
            elif self._answers.pop(message, None):
                self._pipeline.drop(message)
        return True

    def _begin(self, ask: _Ask) -> None:
        try:
            count = self._pipeline.add(ask.number, ask.prompt, ask.max_tokens)
        except Exception as error:
            ask.deliver(Piece(error=f"{type(error).__name__}: {error}"))
            return
        self._answers[ask.number] = _Answer(ask.deliver, ask.max_tokens, count)

    def _deliver(self, tokens: dict[int, list[int]]) -> None:
        """Deliver new tokens in rounds of one token per answer; most steps are one round."""
        left = {number: list(new) for number, new in tokens.items() if number in self._answers}
        while left:
            answers = {number: self._answers[number] for number in left}
            for number, answer in answers.items():
                answer.tokens.append(left[number].pop(0))
            before = [answer.tokens[answer.start : answer.sent] for answer in answers.values()]
            now = [answer.tokens[answer.start :] for answer in answers.values()]
            texts = self._pipeline.decode([*before, *now])
            pairs = zip(texts[: len(before)], texts[len(before) :], strict=True)
            for (number, answer), pair in zip(answers.items(), pairs, strict=True):
                self._send(number, answer, pair)
            left = {n: rest for n, rest in left.items() if rest and n in self._answers}

    def _send(self, number: int, answer: _Answer, texts: tuple[str, str]) -> None:
        done = len(answer.tokens) >= answer.max_tokens
        piece = Piece(answer.new_text(*texts, done=done))
        if done:
            piece.usage = answer.usage()
            del self._answers[number]
        answer.deliver(piece)

    def _fail(self, error: Exception) -> None:
        """End all answers after a failed step, because the cause could be any of them."""
        for number, answer in self._answers.items():
            answer.deliver(Piece(error=f"{type(error).__name__}: {error}"))
            self._pipeline.drop(number)
        self._answers.clear()


class PeerServer:
    """Serves HTTP on an event loop; the stepper has a thread of its own."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._stepper = Stepper(pipeline, self._flush)
        self._delivered: list[tuple[asyncio.Queue[Piece], Piece]] = []
        self._numbers = 0

    async def start(self, port: int) -> asyncio.Server:
        self._loop = asyncio.get_running_loop()
        self._stepper.start()
        return await asyncio.start_server(self._serve, "127.0.0.1", port, backlog=128)

    def stop(self) -> None:
        self._stepper.stop()

    def _flush(self) -> None:
        """Wake the loop once a step, not once a token, and wait while it sends.

        Called on the stepper's thread. OpenVINO keeps Python's lock while it steps, so without
        waiting the sockets would be served only every few steps.
        """
        if self._delivered:
            sent = threading.Event()
            self._loop.call_soon_threadsafe(self._hand_out, self._delivered, sent)
            self._delivered = []
            sent.wait(_LONGEST_SENDING_S)

    def _hand_out(
        self, delivered: list[tuple["asyncio.Queue[Piece]", Piece]], sent: threading.Event
    ) -> None:
        for pieces, piece in delivered:
            pieces.put_nowait(piece)
        # Runs after the handlers that the pieces have just woken.
        self._loop.call_soon(sent.set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path, body = await _read_request(reader)
            if path != PATH:
                writer.write(_refusal(404, f"there is only {PATH} here"))
            else:
                await self._answer(_checked(body), writer)
        except ValueError as error:
            writer.write(_refusal(400, str(error)))
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client left
        finally:
            writer.close()

    async def _answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        number, self._numbers = self._numbers, self._numbers + 1
        pieces: asyncio.Queue[Piece] = asyncio.Queue()

        def deliver(piece: Piece) -> None:
            self._delivered.append((pieces, piece))

        self._stepper.ask(number, body["prompt"], body["max_tokens"], deliver)
        try:
            piece = await pieces.get()
            if piece.error is not None:
                writer.write(_refusal(400, piece.error))
                return
            writer.write(_HEAD)
            while True:
                writer.write(_event(piece))
                if piece.is_last:
                    break
                await writer.drain()
                piece = await pieces.get()
            await writer.drain()
        except OSError:
            self._stepper.drop(number)
            raise


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Read a path and a body. Raises ValueError for bad input, OSError if the client leaves."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request_line, *lines = head.strip().split("\r\n")
    headers = {name.strip().lower(): value for name, _, value in (s.partition(":") for s in lines)}
    length = int(headers.get("content-length", 0))
    if not 0 <= length <= _MAX_REQUEST_BYTES:
        raise ValueError(f"the body has {length} bytes; at most {_MAX_REQUEST_BYTES} are read")
    return request_line.split(" ")[1], await reader.readexactly(length)


def _checked(body: bytes) -> dict[str, Any]:
    """The parsed request. Raises ValueError for fields that this server does not support."""
    request = json.loads(body)
    if not isinstance(request, dict) or not isinstance(request.get("prompt"), str):
        raise ValueError("the request must be an object with a text as its prompt")
    if not isinstance(request.get("max_tokens"), int) or request["max_tokens"] < 1:
        raise ValueError("max_tokens must be a whole number from 1 on")
    for name, value in _ASSUMED.items():
        if request.get(name) != value:
            raise ValueError(f"{name} must be {json.dumps(value)}: this server does nothing else")
    return request


def _event(piece: Piece) -> bytes:
    """A piece as an event; the last one has the usage and is followed by the stream's end."""
    if piece.error is not None:
        return _data({"error": {"message": piece.error}})
    finish = "length" if piece.is_last else None
    choice = {"index": 0, "text": piece.text, "finish_reason": finish}
    chunk: dict[str, Any] = {"object": "text_completion", "choices": [choice]}
    if piece.usage is None:
        return _data(chunk)
    return _data(chunk | {"usage": piece.usage}) + b"data: [DONE]\n\n"


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _refusal(status: int, message: str) -> bytes:
    body = json.dumps({"error": {"message": message}}).encode()
    reason = {400: "Bad Request", 404: "Not Found"}[status]
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


async def _serve_forever(pipeline: Pipeline, port: int) -> None:
    server = await PeerServer(pipeline).start(port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.openvino_peer")
    parser.add_argument("model", type=Path, help="a GGUF file or the folder of an OpenVINO model")
    parser.add_argument("--port", type=int, default=8107)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache-gib", type=int, default=3, help="for keys and values")
    options = parser.parse_args()
    pipeline = OpenVinoPipeline(options.model, threads=options.threads, cache_gib=options.cache_gib)
    asyncio.run(_serve_forever(pipeline, options.port))


if __name__ == "__main__":
    main()
