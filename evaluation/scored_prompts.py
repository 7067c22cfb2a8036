"""The log-probabilities of a prompt's tokens, from `/v1/completions` with `echo` and `logprobs`.

Tandem and vLLM have them, llama-server has not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.endpoint import Endpoint, RequestProblem


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """The tokens of a prompt and their log-probabilities; the first token may have none."""

    tokens: Sequence[str]
    logprobs: Sequence[float | None]
    fingerprint: str | None


class PromptScorer:
    """Asks a server for the log-probabilities of prompts.

    Args:
        body: further fields of each request.
    """

    def __init__(self, endpoint: Endpoint, model: str, body: Mapping[str, Any]) -> None:
        self._endpoint = endpoint
        self._model = model
        self._body = body
        self._max_tokens = 0

    async def score(self, prompt: str | list[int]) -> ScoredPrompt:
        """The log-probabilities of a prompt.

        Some servers generate at least one token, so the second try asks for one, which is left out.
        """
        tried = self._max_tokens
        try:
            answer = await self._echoed(prompt, tried)
        except RequestProblem as problem:
            is_refused = problem.status in (400, 422) and "max_tokens" in str(problem)
            if tried or not is_refused:
                raise
            self._max_tokens = 1
            answer = await self._echoed(prompt, 1)
        try:
            found = answer["choices"][0]["logprobs"]
            num = answer["usage"]["prompt_tokens"]
            tokens, logprobs = found["tokens"][:num], found["token_logprobs"][:num]
        except (KeyError, IndexError, TypeError):
            num, tokens, logprobs = 1, [], []
        if len(logprobs) < num or len(tokens) < num:
            raise RequestProblem(
                "this server returns no log-probabilities of a prompt (/v1/completions with echo "
                "and logprobs), as llama-server does not; serve the model with Tandem or vLLM, or "
                "choose scores and methods that need only texts"
            )
        return ScoredPrompt(tokens, logprobs, answer.get("system_fingerprint"))

    async def _echoed(self, prompt: str | list[int], max_tokens: int) -> dict[str, Any]:
        body = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "echo": True,
            "logprobs": 1,
            "temperature": 0,
            **self._body,
        }
        return await self._endpoint.post("/v1/completions", body)
