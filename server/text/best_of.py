"""`best_of` without beam search: returns the drawn texts that the model finds likeliest."""

from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from math import fsum

from server.text.output import Delta, DeltaSum


async def best_of(
    deltas: AsyncGenerator[Delta, None], num_best: int
) -> AsyncGenerator[Delta, None]:
    """The completions of one prompt with the highest mean log-probability, as one delta each, once
    all have ended: the best first, with the lowest indexes.

    Args:
        deltas: the deltas of all completions, with a log-probability per token.
    """
    sums: defaultdict[int, DeltaSum] = defaultdict(DeltaSum)
    async with aclosing(deltas):
        async for delta in deltas:
            sums[delta.index].add(delta)
    first = min(sums)
    wholes = [sums[index].whole() for index in sorted(sums)]
    wholes.sort(key=_mean_logprob, reverse=True)
    for index, whole in enumerate(wholes[:num_best], first):
        whole.index = index
        yield whole


def _mean_logprob(whole: Delta) -> float:
    return fsum(token.logprob for token in whole.logprobs) / max(1, len(whole.logprobs))
