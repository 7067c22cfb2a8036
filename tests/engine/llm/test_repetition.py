"""Texts that repeat themselves: vLLM's definition, written out, and how they end."""

import random

import numpy as np
import pytest

from engine.contract.generate import Repetition
from engine.contract.request import FinishReason
from engine.contract.sampling_params import RepetitionDetection
from engine.llm.repetition import RepetitionDetector


def _repeats(text: list[int], wanted: RepetitionDetection) -> bool:
    """Whether it ends with some pattern, `min_count` times in a row."""
    for size in range(wanted.min_pattern_size, wanted.max_pattern_size + 1):
        length = size * wanted.min_count
        if len(text) >= length and text[-length:] == text[-size:] * wanted.min_count:
            return True
    return False


def _longest(text: list[int], wanted: RepetitionDetection) -> int:
    """Tokens of the longest stretch of it that is a pattern and its repetitions, perhaps cut."""
    most = 0
    for size in range(wanted.min_pattern_size, wanted.max_pattern_size + 1):
        for start in range(len(text)):
            end = start + size
            while end < len(text) and text[end] == text[end - size]:
                end += 1
            if end - start >= size * wanted.min_count and end <= len(text):
                most = max(most, end - start)
    return most


def test_it_equals_the_definition() -> None:
    num_found = 0
    for _ in range(60):
        low, high = sorted((random.randint(1, 9), random.randint(1, 9)))
        wanted = RepetitionDetection(
            min_pattern_size=low, max_pattern_size=high, min_count=random.randint(2, 4)
        )
        detector, text = RepetitionDetector(wanted), list[int]()
        while len(text) < 120:
            piece = [random.randrange(3) for _ in range(random.randint(1, 10))]
            for token_id in piece * random.randint(1, 5):
                text.append(token_id)
                expected = _repeats(text, wanted)
                assert detector.append(token_id) == expected, (wanted, text)
                num_found += expected
        longest = detector.longest
        assert (longest.num_tokens if longest else 0) == _longest(text, wanted), text
        if longest is not None:
            stretch = text[longest.start : longest.start + longest.num_tokens]
            size = longest.pattern_size
            assert len(stretch) == longest.num_tokens >= size * wanted.min_count, text
            assert stretch[size:] == stretch[:-size], text
    assert num_found > 100


@pytest.mark.parametrize(
    ("fields", "num_tokens", "reason"),
    [
        ({}, 6, FinishReason.REPETITION),
        ({"min_tokens": 9}, 10, FinishReason.REPETITION),
        ({"max_tokens": 6}, 6, FinishReason.LENGTH),
        ({"stop_token_ids": (7,)}, 1, FinishReason.STOP),
    ],
)
@pytest.mark.parametrize("drafts", [0, 5])
def test_a_text_ends_where_it_has_repeated_itself(
    engines, tiny_llama, fields, num_tokens, reason, drafts
) -> None:
    sampling = {
        "max_tokens": 30,
        "n": 2,
        "allowed_token_ids": np.array([7], dtype="<i4").tobytes(),
        "repetition_detection": RepetitionDetection(
            min_pattern_size=2, max_pattern_size=5, min_count=3
        ),
    }
    engine = engines.make(tiny_llama(seed=11), num_speculative_tokens=drafts, prompt_lookup_min=1)
    done = engines.run(engine, [engines.request("a", [7] * 9, **(sampling | fields))])
    for completion in done.values():
        assert completion.token_ids == [7] * num_tokens
        assert completion.finish_reason is reason
    assert engine.stats().kv_blocks_used == 0


def test_a_repetition_that_is_only_reported_ends_nothing(engines, tiny_llama) -> None:
    wanted = RepetitionDetection(
        min_pattern_size=1, max_pattern_size=5, min_count=3, ends_text=False
    )
    sampling = {
        "max_tokens": 9,
        "allowed_token_ids": np.array([7], dtype="<i4").tobytes(),
        "repetition_detection": wanted,
    }
    engine = engines.make(tiny_llama(seed=11), num_speculative_tokens=0)
    engine.add(engines.request("a", [7, 8], **sampling))
    told = []
    while engine.has_work():
        told += [event.repetition for event in engine.step()[0]]
    assert told == [None, None, *(Repetition(1, 0, num) for num in range(3, 10))]
