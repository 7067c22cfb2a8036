"""The methods: what each asks and computes, and what it cannot say."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from evaluation.asking import text_of
from evaluation.contamination.item_text import halves
from evaluation.contamination.order import orders, preferences, stretches
from evaluation.endpoint import Endpoint
from evaluation.problem import EvaluationProblem
from evaluation.progress import shown_progress
from evaluation.rouge import rouge_l
from evaluation.score_rows import Floats
from evaluation.scored_prompts import PromptScorer, ScoredPrompt

T = TypeVar("T")

METHODS = {
    "min_k": "Easy or usual texts score high without having been seen, so that unseen items of "
    "another kind mislead. Items that were seen once or twice rarely show.",
    "order": "It finds only training on the items in their published order. If they were shuffled, "
    "or each was a text of its own, nothing shows.",
    "completion": "A half that is easy to guess is completed without having been seen, and a model "
    "that has seen an item may not repeat it.",
    "ngrams": "It says what is in these files, not what the model was trained on. Reworded items "
    "are not found.",
}
"""What each method cannot say, by its name."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """The numbers of the methods.

    Attributes:
        min_k: per cent of a text's tokens that count.
        ngram: words in a row that count as found.
        orders: random orders of each stretch.
        stretch_tokens: the most tokens of a stretch.
        seed: of random orders and permutations.
    """

    min_k: float = 20.0
    ngram: int = 8
    orders: int = 20
    stretch_tokens: int = 512
    seed: int = 0


class ModelScores:
    """Scores of texts by a model.

    Args:
        concurrency: how many requests run at once.
    """

    def __init__(self, endpoint: Endpoint, model: str, knobs: Knobs, concurrency: int) -> None:
        self._endpoint = endpoint
        self._model = model
        self._knobs = knobs
        self._places = asyncio.Semaphore(concurrency)
        self._score = PromptScorer(endpoint, model, {}).score

    async def min_k(self, texts: Sequence[str]) -> list[float]:
        """The mean log-probability of each text's least likely tokens.

        Shi et al., Detecting Pretraining Data from Large Language Models, 2024.
        """
        prompts = await self._all("likelihoods", self._score, texts)
        return [lowest_mean(_known(prompt), self._knobs.min_k) for prompt in prompts]

    async def completion(self, texts: Sequence[str]) -> list[float]:
        """ROUGE-L of each text's second half and what the model makes of the first."""
        return await self._all("completions", self._completed, texts)

    async def order(self, texts: Sequence[str]) -> Floats:
        """How much each order of each stretch is preferred, the published order first."""
        prompts = await self._all("likelihoods", self._score, texts)
        sizes = [len(prompt.tokens) for prompt in prompts]
        found = stretches(texts, sizes, self._knobs.stretch_tokens)
        if not found:
            raise EvaluationProblem(
                f"no two neighbouring items fit into {self._knobs.stretch_tokens} tokens; raise "
                "--stretch-tokens up to what the model's context holds"
            )
        generator = np.random.default_rng(self._knobs.seed)
        asked = [
            text for stretch in found for text in orders(stretch, self._knobs.orders, generator)
        ]
        scored = await self._all("likelihoods", self._score, asked)
        sums = np.array([sum(_known(prompt)) for prompt in scored])
        return preferences(sums.reshape(len(found), -1))

    async def _all(
        self, what: str, ask: Callable[[str], Awaitable[T]], texts: Sequence[str]
    ) -> list[T]:
        """What is answered to each text; the first failure ends all."""
        done = 0
        with shown_progress(f"{what}, {self._model}", len(texts)) as advance:

            async def one(text: str) -> T:
                nonlocal done
                async with self._places:
                    answer = await ask(text)
                done += 1
                advance(done, 0)
                return answer

            return await asyncio.gather(*map(one, texts))

    async def _completed(self, text: str) -> float:
        begun, rest = halves(text)
        body = {
            "model": self._model,
            "prompt": begun,
            # A token has about four bytes in English, fewer in other languages.
            "max_tokens": len(rest.encode()) // 3 + 1,
            "temperature": 0,
        }
        written = text_of(await self._endpoint.post("/v1/completions", body))
        return rouge_l(" ".join(written.split()[: len(rest.split())]), rest)


def lowest_mean(logprobs: Sequence[float], percent: float) -> float:
    """The mean of the lowest values, at least of one."""
    num = max(1, int(len(logprobs) * percent / 100))
    return float(np.sort(logprobs)[:num].mean())


def _known(prompt: ScoredPrompt) -> list[float]:
    """The log-probabilities of all tokens but the first, which may have none."""
    known = [value for value in prompt.logprobs[1:] if value is not None]
    if not known:
        raise EvaluationProblem("an item is one token long, so its likelihood is unknown")
    return known
