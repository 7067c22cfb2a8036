"""The best of several texts come first, by how likely the model finds them."""

import random
from collections.abc import AsyncGenerator

from engine.contract.generate import TokenLogprob
from engine.contract.request import FinishReason
from server.text.best_of import best_of
from server.text.output import Delta


async def test_the_highest_means_come_first_and_whole() -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    for _ in range(50):
        first, num_texts = rng.randrange(4), rng.randrange(2, 6)
        texts = [
            [-rng.choice([0.5, 1.0, 2.0, 3.0]) for _ in range(rng.randrange(1, 6))]
            for _ in range(num_texts)
        ]
        num_best = rng.randrange(1, num_texts)

        async def deltas(
            first: int = first, texts: list[list[float]] = texts
        ) -> AsyncGenerator[Delta, None]:
            left = {index: list(enumerate(text)) for index, text in enumerate(texts)}
            while left:
                index = rng.choice(list(left))
                cut = rng.randrange(1, 3)
                part, left[index] = left[index][:cut], left[index][cut:]
                is_last = not left[index]
                if is_last:
                    del left[index]
                yield Delta(
                    first + index,
                    "".join(chr(65 + index) for _ in part),
                    [token_id for token_id, _ in part],
                    [TokenLogprob(token_id, value, 1, [], []) for token_id, value in part],
                    [token_id for token_id, _ in part],
                    FinishReason.LENGTH if is_last else None,
                )

        means = [sum(text) / len(text) for text in texts]
        expected = sorted(range(num_texts), key=lambda index: -means[index])[:num_best]
        found = [delta async for delta in best_of(deltas(), num_best)]
        assert [delta.index for delta in found] == [*range(first, first + num_best)], seed
        for delta, index in zip(found, expected, strict=True):
            assert delta.text == chr(65 + index) * len(texts[index]), seed
            assert [token.logprob for token in delta.logprobs] == texts[index]
            assert delta.token_ids == delta.offsets == [*range(len(texts[index]))]
            assert delta.finish_reason is FinishReason.LENGTH
