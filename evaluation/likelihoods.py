"""How likely a model finds each choice, from the log-probabilities of prompts.

For chats it needs `/tokenize` with messages, as Tandem and vLLM have it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.endpoint import Endpoint, RequestProblem
from evaluation.record import Answer
from evaluation.scored_prompts import PromptScorer, ScoredPrompt


class ChoiceLikelihoods:
    """Asks a server for the log-likelihoods of choices.

    Args:
        body: further fields of each request for scores.
    """

    def __init__(self, endpoint: Endpoint, model: str, body: Mapping[str, Any]) -> None:
        self._endpoint = endpoint
        self._model = model
        self._scored = PromptScorer(endpoint, model, body).score

    async def after_text(self, text: str, choices: Sequence[str]) -> Answer:
        """The likelihoods of choices that continue a text.

        White space at the end of the text counts as the beginning of the choices, as their tokens
        usually begin with it; without any, a space is put between.
        """
        context = text.rstrip()
        space = text[len(context) :]
        before = await self._scored(context)
        prompts = []
        for choice in choices:
            gap = space or ("" if choice[0].isspace() or not context else " ")
            prompts.append(await self._scored(context + gap + choice))
        # A choice may change how the end of the text is cut into tokens. Then all choices are
        # compared from the first token that is not the same for all of them.
        start = min(_num_equal(before.tokens, prompt.tokens) for prompt in prompts)
        return _answer(prompts, start)

    async def after_chat(
        self, messages: Sequence[Mapping[str, Any]], choices: Sequence[str]
    ) -> Answer:
        """The likelihoods of choices as the beginning of the answer to a conversation."""
        context = await self._tokenized(
            {"messages": messages, "add_generation_prompt": True, "add_special_tokens": False}
        )
        prompts = []
        for choice in choices:
            ids = await self._tokenized({"prompt": choice, "add_special_tokens": False})
            prompts.append(await self._scored([*context, *ids]))
        return _answer(prompts, len(context))

    async def _tokenized(self, body: dict[str, Any]) -> list[int]:
        try:
            answer = await self._endpoint.post("/tokenize", {"model": self._model, **body})
            tokens: list[int] = answer["tokens"]
        except (RequestProblem, KeyError) as problem:
            if isinstance(problem, RequestProblem) and problem.status not in (400, 404, 405, 422):
                raise
            raise RequestProblem(
                "this server cannot say which tokens a conversation has (/tokenize), so choices "
                "of chats cannot be scored; give items a `prompt` and use --endpoint completions, "
                f"or serve the model with Tandem or vLLM ({problem})"
            ) from None
        return tokens


def _num_equal(tokens: Sequence[str], others: Sequence[str]) -> int:
    """How many tokens at the beginning are the same."""
    for number, (token, other) in enumerate(zip(tokens, others, strict=False)):
        if token != other:
            return number
    return min(len(tokens), len(others))


def _answer(prompts: Sequence[ScoredPrompt], start: int) -> Answer:
    sums = []
    for prompt in prompts:
        scored = prompt.logprobs[start:]
        known = [value for value in scored if value is not None]
        if not scored or len(known) < len(scored):
            raise RequestProblem(
                "the first token of a choice has no log-probability, as nothing is before it; "
                "give the item a longer prompt",
                400,
            )
        sums.append(sum(known))
    return Answer(loglikelihoods=tuple(sums), fingerprint=prompts[0].fingerprint)
