"""The server that is measured, asked through OpenAI's client."""

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from openai import AsyncOpenAI

MAX_TOKENS = 192
_AT_ONCE = 16
_DETECTION = {"max_pattern_size": 48, "min_count": 3, "action": "report"}

T = TypeVar("T")


@dataclass(frozen=True)
class Written:
    """A text, and what the server reports about it."""

    text: str
    surprise: float
    """Mean of -ln p over its tokens, at temperature 1."""
    entropy: float
    looped: float
    """Share of its tokens in its longest repetition."""
    loop_start: int | None


class Server:
    """Asks the server for texts, similarity scores and groundedness.

    Args:
        model, embedder: ids of the two served models.
    """

    def __init__(self, url: str, model: str, embedder: str) -> None:
        self._client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600)
        self._http = httpx.AsyncClient(base_url=url, timeout=600)
        self.url, self.model = url, model
        self._embedder = embedder
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def go_on(self, opening: str, **sampling: Any) -> Written:
        """The model's continuation of an opening, with a seed made from the opening."""
        extra = {"return_uncertainty": True, "repetition_detection": _DETECTION} | sampling
        async with self._places:
            answer = await self._client.completions.create(
                model=self.model,
                prompt=opening,
                max_tokens=MAX_TOKENS,
                seed=len(opening),
                extra_body=extra,
            )
        choice = answer.choices[0]
        more = choice.model_extra or {}
        told: dict[str, Any] = more["uncertainty"]
        found = more["repetition"]
        first, end = found["tokens"] if found else (0, 0)
        return Written(
            choice.text,
            -told["mean_logprob"],
            told["mean_entropy"],
            (end - first) / told["num_tokens"],
            first if found else None,
        )

    async def surprise_of(self, text: str) -> float:
        """The model's surprise at a given text, without its first token."""
        answer = await self._client.completions.create(
            model=self.model, prompt=text, max_tokens=0, echo=True, logprobs=0
        )
        found = answer.choices[0].logprobs
        assert found is not None and found.token_logprobs is not None
        logprobs = found.token_logprobs[1:]
        return -sum(logprobs) / len(logprobs)

    async def answers(self, question: str, num: int, **sampling: Any) -> dict[str, Any]:
        """Several short answers to a question, and how many things they say."""
        async with self._places:
            answer = await self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": f"{question} Answer in a short sentence."}],
                n=num,
                max_tokens=32,
                seed=len(question),
                extra_body={
                    "semantic_entropy": num > 1,
                    "return_uncertainty": True,
                    "embedding_model": self._embedder if num > 1 else None,
                }
                | sampling,
            )
        return answer.model_dump()

    async def similarity(self, one: str, other: str) -> float:
        """The cosine of the embeddings of two texts' beginnings."""
        for most in (600, 200):  # in the worst case each character takes a token
            body = {"model": self._embedder, "text_1": one[:most], "text_2": other[:most] or "."}
            answer = await self._http.post("/v1/score", json=body)
            if answer.is_success:
                break
        answer.raise_for_status()
        return answer.json()["data"][0]["score"]

    async def groundedness(self, answer: str, passage: str) -> dict[str, Any]:
        """The groundedness of a single sentence."""
        body = {"model": self._embedder, "answer": answer, "passages": [passage]}
        found = await self._http.post("/v1/groundedness", json=body)
        found.raise_for_status()
        return found.json()["sentences"][0]


async def together(work: Iterable[Awaitable[T]]) -> list[T]:
    """Await everything at once; returns the results in order."""
    return list(await asyncio.gather(*work))
