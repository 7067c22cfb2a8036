"""An OpenAI-compatible server in memory, whose tokens are words with the space before them."""

import asyncio
import json
import random
import re
import zlib
from collections.abc import Callable
from typing import Any

import httpx

from evaluation.endpoint import Endpoint


def pieces(text: str) -> list[str]:
    """The tokens of a text."""
    return re.findall(r"\s*\S+|\s+", text)


def logprob(tokens: list[str], index: int) -> float:
    """What the model thinks of a token after those before it."""
    return -0.1 - zlib.crc32("".join(tokens[: index + 1]).encode()) % 1000 / 250


def template(messages: list[dict[str, Any]]) -> str:
    """The text of a conversation."""
    return "".join(f"<{one['role']}> {one['content']}\n" for one in messages) + "<assistant>"


class WordServer:
    """The server.

    Attributes:
        reply: what a chat or a text is answered with.
        tokens_of: how texts are cut into tokens.
        echo: `zero` scores prompts with max_tokens 0, `one` only with 1, `none` never, as
            llama-server.
        thinks: the log-probability of a token by its place among others.
        faults: responses that are sent first, by path.
        bodies: the requests that were answered, with their paths.
    """

    url = "http://words"

    def __init__(self, reply: Callable[[str], str] = str.upper) -> None:
        self.reply = reply
        self.echo = "zero"
        self.tokens_of = pieces
        self.thinks = logprob
        self.faults: dict[str, list[httpx.Response | Exception]] = {}
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[httpx.Headers] = []
        self.slept: list[float] = []
        self._ids: list[str] = []

    def endpoint(self, api_key: str | None = None) -> Endpoint:
        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)

        return Endpoint(self.url, api_key, transport=httpx.MockTransport(self.handle), sleep=sleep)

    async def handle(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.headers.append(request.headers)
        if self.faults.get(path):
            fault = self.faults[path].pop(0)
            if isinstance(fault, Exception):
                raise fault
            return fault
        if path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "words"}]})
        body = json.loads(request.content)
        self.bodies.append((path, body))
        # Answers come in another order than requests.
        for _ in range(random.randrange(9)):
            await asyncio.sleep(0)
        if path == "/tokenize":
            return httpx.Response(200, json={"tokens": self._tokenized(body)})
        if path == "/v1/chat/completions":
            choice: dict[str, Any] = {
                "message": {"content": self.reply(body["messages"][-1]["content"])}
            }
        elif body.get("echo"):
            return self._echoed(body)
        else:
            choice = {"text": self.reply(body["prompt"])}
        return httpx.Response(200, json={"choices": [{**choice, "finish_reason": "stop"}]})

    def _tokenized(self, body: dict[str, Any]) -> list[int]:
        text = template(body["messages"]) if "messages" in body else body["prompt"]
        first = len(self._ids)
        self._ids += self.tokens_of(text)
        return list(range(first, len(self._ids)))

    def _echoed(self, body: dict[str, Any]) -> httpx.Response:
        if self.echo == "one" and body["max_tokens"] == 0:
            error = {"message": "max_tokens must be at least 1"}
            return httpx.Response(400, json={"error": error})
        prompt = body["prompt"]
        tokens = (
            self.tokens_of(prompt) if isinstance(prompt, str) else [self._ids[i] for i in prompt]
        )
        shown = [] if self.echo == "none" else tokens
        shown = shown + [" word"] * body["max_tokens"]
        logprobs = [None if i == 0 else self.thinks(shown, i) for i in range(len(shown))]
        found = {"tokens": shown, "token_logprobs": logprobs}
        usage = {"prompt_tokens": len(tokens)}
        return httpx.Response(
            200, json={"choices": [{"text": "", "logprobs": found}], "usage": usage}
        )
