"""DRY against a search of every place and length, and what it leaves alone."""

import random
import time
from typing import Any

import numpy as np
import pytest
import torch

from engine.contract.sampling_params import SamplingParams, TokenPattern
from engine.errors import InvariantViolation
from engine.llm.decision import NewSequence
from engine.llm.sampling.dry import Dry
from engine.llm.sampling.sampler import Sampler, SampleRow
from kernels import EditLists

VOCAB_SIZE = 50


def _pattern(heads: list[int], *tail: int) -> TokenPattern:
    return TokenPattern(np.array(sorted(heads), "<i4").tobytes(), tail)


def _sequence(prompt: list[int], seq_id: int = 0, **params: Any) -> NewSequence:
    sampling = SamplingParams(**({"dry_multiplier": 0.8} | params))
    return NewSequence(seq_id, prompt, sampling, 0, 0, ())


def _penalties(dry: Dry, position: int) -> dict[int, float]:
    edits = EditLists()
    dry.edit(edits, 0, SampleRow(0, position))
    if not edits.biased:
        return {}
    ids, biases = edits.biased[0]
    return {int(token): -float(bias) for token, bias in zip(ids, biases, strict=True)}


def _expected(tokens: list[int], params: SamplingParams) -> dict[int, float]:
    """Compute the penalties as the parameters' documentation says, place by place."""
    breakers = [
        (np.frombuffer(one.heads, "<i4").tolist(), list(one.tail))
        for one in params.dry_sequence_breakers
    ]
    limit = len(tokens)
    for start, token in enumerate(tokens):
        for heads, tail in breakers:
            end = start + 1 + len(tail)
            if token in heads and tokens[start + 1 : end] == tail and end <= len(tokens):
                limit = min(limit, len(tokens) - end)
    if params.dry_penalty_last_n >= 0:
        tokens = tokens[max(0, len(tokens) - params.dry_penalty_last_n) :]
    longest: dict[int, int] = {}
    for place in range(len(tokens) - 1):
        length = 0
        while length < min(limit, place + 1) and tokens[place - length] == tokens[-1 - length]:
            length += 1
        following = tokens[place + 1]
        if length >= params.dry_allowed_length:
            longest[following] = max(longest.get(following, 0), length)
    single = {token for heads, tail in breakers if not tail for token in heads}
    return {
        token: params.dry_multiplier * params.dry_base ** (length - params.dry_allowed_length)
        for token, length in longest.items()
        if token not in single
    }


def test_what_followed_the_texts_end_before_is_penalised() -> None:
    a, b, c, y = 1, 2, 3, 4
    dry = Dry(VOCAB_SIZE)
    dry.add(_sequence([a, b, c, c, b, c, y, a, b, c], dry_allowed_length=1, dry_base=2.0))
    expected = {c: 0.8 * 2**2, b: 0.8 * 2**0, y: 0.8 * 2**1}
    assert _penalties(dry, 0) == pytest.approx(expected)


@pytest.mark.parametrize("num_letters", [1, 2, 4])
def test_it_equals_a_search_of_every_place(num_letters: int) -> None:
    """Over tokens that are appended, taken back, and beyond the vocabulary."""
    rng = np.random.default_rng(random.randrange(2**32))
    num_penalised = 0
    for _ in range(60):
        letters = rng.choice(VOCAB_SIZE, num_letters, replace=False).tolist()
        breakers = []
        for _ in range(int(rng.integers(3))):
            tail = rng.choice(letters, int(rng.integers(3))).tolist()
            heads = rng.choice(VOCAB_SIZE, int(rng.integers(1, 3)), replace=False).tolist()
            heads += rng.choice(letters, 1).tolist() if rng.random() < 0.3 else []
            breakers.append(_pattern(list(set(heads)), *tail))
        sequence = _sequence(
            rng.choice(letters, int(rng.integers(30))).tolist(),
            dry_multiplier=float(rng.uniform(0.1, 2)),
            dry_base=float(rng.choice([1.0, rng.uniform(1, 3)])),
            dry_allowed_length=int(rng.integers(1, 5)),
            dry_penalty_last_n=int(rng.choice([-1, 1, 5, 20])),
            dry_sequence_breakers=tuple(breakers),
        )
        dry, outputs = Dry(VOCAB_SIZE), []
        assert dry.add(sequence)
        for _ in range(80):
            if outputs and rng.random() < 0.1:
                del outputs[int(rng.integers(len(outputs))) :]
            expected = _expected(sequence.prompt_token_ids + outputs, sequence.sampling)
            found = _penalties(dry, len(outputs))
            assert found == pytest.approx(expected, rel=1e-12), (sequence, outputs)
            num_penalised += len(found)
            token = int(rng.choice(letters))
            dry.advance(SampleRow(0, len(outputs)), token)
            outputs.append(token)
    assert num_penalised > 100


def test_long_repetitions_cost_a_finite_amount() -> None:
    dry = Dry(VOCAB_SIZE)
    dry.add(_sequence([7] * 5000, dry_base=100.0, dry_multiplier=100.0))
    assert np.isfinite(np.float32(_penalties(dry, 0)[7] / 100.0))
    assert _penalties(dry, 0)[7] > 1e30


@pytest.mark.parametrize("period", [1, 2, 97, 20_000])
def test_time_grows_with_the_window_and_not_with_its_square(period: int) -> None:
    """Comparing each of the places with the whole text would take minutes."""
    prompt = (np.arange(60_000) % period % VOCAB_SIZE).tolist()
    breakers = (_pattern([VOCAB_SIZE + 1], *[prompt[0]] * 20), _pattern([VOCAB_SIZE + 2]))
    dry = Dry(VOCAB_SIZE)
    start = time.process_time()
    dry.add(_sequence(prompt, dry_sequence_breakers=breakers))
    assert _penalties(dry, 0)
    for position in range(50):
        dry.advance(SampleRow(0, position), prompt[position])
        _penalties(dry, position + 1)
    assert time.process_time() - start < 10


def test_a_missing_token_is_found_out() -> None:
    dry = Dry(VOCAB_SIZE)
    dry.add(_sequence([1]))
    with pytest.raises(InvariantViolation, match="only 0 tokens"):
        dry.edit(EditLists(), 0, SampleRow(0, 1))


@pytest.mark.parametrize("off", [{"dry_multiplier": 0.0}, {"dry_penalty_last_n": 0}])
def test_it_takes_only_who_asks_for_it(off: dict[str, Any]) -> None:
    assert not Dry(VOCAB_SIZE).add(_sequence([1, 1, 1], **off))


def test_it_acts_on_its_own_row_beside_a_bias() -> None:
    sampler = Sampler(VOCAB_SIZE, torch.device("cpu"))
    prompt = [5, 6, 7, 5, 6, 7, 5, 6]
    greedy: dict[str, Any] = {"temperature": 0.0, "dry_multiplier": 3.0}
    sampler.add(_sequence(prompt, 0, **greedy))
    sampler.add(_sequence(prompt, 1, **greedy, logit_bias={7: 50.0}))
    sampler.add(_sequence(prompt, 2, **(greedy | {"dry_multiplier": 0.0})))
    logits = torch.zeros(3, VOCAB_SIZE)
    logits[:, 7], logits[:, 9] = 2.0, 1.0
    rows = [SampleRow(i, 0) for i in range(3)]
    assert [one.token_id for one in sampler.sample(logits, rows)] == [9, 7, 7]
    sampler.remove(0)
    with pytest.raises(InvariantViolation):
        sampler.sample(logits, rows)
