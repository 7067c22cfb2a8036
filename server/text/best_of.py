"""`best_of` without beam search: of texts that were drawn those that the model thinks most of."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from math import fsum

from server.text.output import Delta


async def best_of(
    deltas: AsyncGenerator[Delta, None], num_best: int
) -> AsyncGenerator[Delta, None]:
    """The completions of one prompt whose tokens have the highest log-probability on average, a
    delta each, once all have ended: the best first, with the lowest indexes.

    Args:
        deltas: of all completions, with a log-probability per token.
    """
    parts: dict[int, list[Delta]] = {}
    async with aclosing(deltas):
        async for delta in deltas:
            parts.setdefault(delta.index, []).append(delta)
    first = min(parts)
    wholes = [_joined(parts[index]) for index in sorted(parts)]
    wholes.sort(key=_mean_logprob, reverse=True)
    for index, whole in enumerate(wholes[:num_best], first):
        whole.index = index
        yield whole


def _joined(deltas: Sequence[Delta]) -> Delta:
    return replace(
        deltas[-1],
        text="".join(delta.text for delta in deltas),
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        logprobs=[logprob for delta in deltas for logprob in delta.logprobs],
        offsets=[offset for delta in deltas for offset in delta.offsets],
    )


def _mean_logprob(whole: Delta) -> float:
    return fsum(token.logprob for token in whole.logprobs) / max(1, len(whole.logprobs))
