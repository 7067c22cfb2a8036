"""Penalties, bias and min_tokens: arithmetic, state across steps, rewinding, extremes."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from engine.contract.sampling_params import SamplingParams
from engine.errors import InvariantViolation
from engine.llm.decision import NewSequence, SampleRow
from engine.llm.sampling.logits_processors import (
    LogitBias,
    LogitsProcessor,
    MinTokens,
    Penalties,
    ProcessorChain,
)
from kernels import EditLists, SamplingRows
from kernels.sample_tokens import packed_row
from kernels.sample_tokens.edits import edited
from tests.helpers.llm.exact_distribution import penalised

VOCAB = 200


def _chain(*sequences: NewSequence) -> ProcessorChain:
    chain = ProcessorChain((Penalties(VOCAB), LogitBias(VOCAB), MinTokens(VOCAB)))
    for sequence in sequences:
        chain.add(sequence)
    return chain


def _edited(chain: ProcessorChain, logits: torch.Tensor, *rows: SampleRow) -> torch.Tensor:
    edits = EditLists()
    chain.edit(edits, rows)
    packed, positions = [packed_row()] * len(rows), [row.position for row in rows]
    parameters = SamplingRows.from_host(packed, positions, edits, logits.device)
    return edited(logits, parameters.edits)


def _sequence(
    seq_id: int = 0,
    prompt: list[int] | None = None,
    suppressed: tuple[int, ...] = (),
    **params: Any,
) -> NewSequence:
    return NewSequence(
        seq_id, prompt or [], SamplingParams(**params), seed=0, index=0,
        suppressed_token_ids=suppressed,
    )  # fmt: skip


def _random_params(rng: np.random.Generator) -> dict[str, Any]:
    ids = rng.choice(VOCAB, 5, replace=False).tolist()
    choices: dict[str, Any] = {
        "repetition_penalty": float(rng.uniform(0.5, 2)),
        "frequency_penalty": float(rng.uniform(-2, 2)),
        "presence_penalty": float(rng.uniform(-2, 2)),
        "repeat_last_n": int(rng.choice([0, 1, 7, 30, 1000])),
        "logit_bias": {token_id: float(rng.uniform(-100, 100)) for token_id in ids},
    }
    return {name: value for name, value in choices.items() if rng.random() < 0.6}


def test_state_over_many_steps_equals_the_reference() -> None:
    rng = np.random.default_rng(random.randrange(2**32))
    chain, sequences, outputs = _chain(), {}, {}
    for seq_id in range(12):
        prompt = rng.integers(0, VOCAB, int(rng.integers(0, 40))).tolist()
        sequences[seq_id] = _sequence(seq_id, prompt, **_random_params(rng))
        outputs[seq_id] = list[int]()
        chain.add(sequences[seq_id])
    for _ in range(60):
        present = rng.permutation(12)[: int(rng.integers(1, 13))].tolist()
        rows = [SampleRow(seq_id, len(outputs[seq_id])) for seq_id in present]
        raw = torch.from_numpy(rng.normal(0, 4, (len(rows), VOCAB))).float()
        got = _edited(chain, raw, *rows)
        for i, row in enumerate(rows):
            sequence, output = sequences[row.seq_id], outputs[row.seq_id]
            expected = penalised(
                raw[i].double().numpy(), sequence.sampling, sequence.prompt_token_ids, output
            )
            np.testing.assert_allclose(got[i], expected, rtol=2e-6, atol=2e-5)
            token_id = int(rng.integers(0, 30))
            chain.advance(row, token_id)
            output.append(token_id)


def test_rewinding_is_as_if_the_tokens_never_came() -> None:
    rng = np.random.default_rng(random.randrange(2**32))
    params: dict[str, Any] = {
        "repetition_penalty": float(rng.choice([1.0, 1.3])),
        "frequency_penalty": 0.7,
        "repeat_last_n": int(rng.choice([-1, 1, 3, 9, 50])),
    }
    prompt = [1, 2, 3, 2]
    raw = torch.from_numpy(rng.normal(0, 4, (1, VOCAB))).float()
    chain, kept = _chain(), list[int]()
    chain.add(_sequence(0, prompt, **params))
    for _ in range(200):
        position = int(rng.integers(0, len(kept) + 1)) if rng.random() < 0.2 else len(kept)
        del kept[position:]
        row = SampleRow(0, position)
        got = _edited(chain, raw, row)
        fresh = _chain()
        fresh.add(_sequence(0, prompt, **params))
        for i, token_id in enumerate(kept):
            fresh.advance(SampleRow(0, i), token_id)
        expected = _edited(fresh, raw, row)
        assert torch.equal(got, expected)
        token_id = int(rng.integers(0, 12))
        chain.advance(row, token_id)
        kept.append(token_id)


def test_frequency_and_presence_count_output_only() -> None:
    chain = _chain(_sequence(0, [5, 5, 5], frequency_penalty=1.0, presence_penalty=0.25))
    logits = _edited(chain, torch.zeros(1, VOCAB), SampleRow(0, 0))
    assert not logits.any()
    for position, token_id in enumerate([7, 7, 8]):
        chain.advance(SampleRow(0, position), token_id)
    logits = _edited(chain, logits, SampleRow(0, 3))
    assert logits[0, [5, 7, 8]].tolist() == [0.0, -2.25, -1.25]


def test_penalties_look_at_the_last_tokens_only() -> None:
    chain = _chain()
    penalties: dict[str, Any] = {"repetition_penalty": 2.0, "presence_penalty": 0.5}
    chain.add(_sequence(0, [0, 1, 2], **penalties, repeat_last_n=3))
    chain.add(_sequence(1, [0, 1, 2], **penalties, repeat_last_n=0))
    for position, token_id in enumerate([7, 1]):
        chain.advance(SampleRow(0, position), token_id)
    logits = _edited(chain, torch.full((2, VOCAB), 4.0), SampleRow(0, 2), SampleRow(1, 2))
    assert logits[0, [0, 1, 2, 7]].tolist() == [4.0, 1.5, 2.0, 1.5]
    assert bool((logits[1] == 4.0).all())


def test_repetition_divides_positive_and_multiplies_negative() -> None:
    chain = _chain(_sequence(0, [0, 1, 2, 2], repetition_penalty=2.0))
    logits = _edited(
        chain, torch.tensor([[4.0, -4.0, 0.0, 8.0] + [0.0] * (VOCAB - 4)]), SampleRow(0, 0)
    )
    assert logits[0, :4].tolist() == [2.0, -8.0, 0.0, 8.0]


def test_min_tokens_masks_until_its_position() -> None:
    chain = _chain(_sequence(0, suppressed=(0, 9, VOCAB + 5, -1), min_tokens=2))
    for position in range(4):
        logits = _edited(chain, torch.zeros(1, VOCAB), SampleRow(0, position))
        masked = (logits[0] == -torch.inf).nonzero().flatten().tolist()
        assert masked == ([0, 9] if position < 2 else [])


def test_rows_without_processors_are_untouched() -> None:
    chain = _chain(
        _sequence(0, [1], repetition_penalty=1.5, logit_bias={4: 3.0}),
        _sequence(1, [1], suppressed=(2,)),
    )
    rows = [SampleRow(1, 0), SampleRow(0, 0), SampleRow(99, 0)]
    before = torch.randn(3, VOCAB)
    logits = _edited(chain, before, *rows)
    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    assert not torch.equal(logits[1], before[1])
    for some, is_empty in [(rows, False), ([rows[0], rows[2]], True)]:
        edits = EditLists()
        chain.edit(edits, some)
        assert edits.is_empty is is_empty


def test_removed_sequences_leave_nothing() -> None:
    chain = _chain(
        _sequence(0, [1], (2,), repetition_penalty=1.5, logit_bias={4: 3.0}, min_tokens=4)
    )
    chain.remove(0)
    chain.remove(0)
    logits = _edited(chain, torch.ones(1, VOCAB), SampleRow(0, 0))
    assert torch.equal(logits, torch.ones(1, VOCAB))
    kept = [value for one in (chain, *chain._processors) for value in vars(one).values()]
    assert not any(value for value in kept if isinstance(value, dict))


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1e30},
        {"repetition_penalty": 1e-30},
        {"repetition_penalty": 1e300},
        {"frequency_penalty": 1e300},
        {"frequency_penalty": -1e300},
        {"presence_penalty": -1e38},
        {"logit_bias": {0: 1e300, 1: -1e300, 2: 1e38, 3: -1e38}},
    ],
)
def test_extremes_stay_finite_and_impossible_stays_impossible(params: dict[str, Any]) -> None:
    chain = _chain(_sequence(0, [0, 1, 2, 3], **params))
    for token_id in range(4):
        chain.advance(SampleRow(0, token_id), token_id)
    logits = _edited(
        chain, torch.tensor([[3e38, -3e38, 0.0, -torch.inf] + [1.0] * (VOCAB - 4)]), SampleRow(0, 4)
    )
    assert bool(logits[0, :3].isfinite().all())
    assert logits[0, 3] == -torch.inf


def test_a_position_beyond_the_history_is_a_bug() -> None:
    chain = _chain(_sequence(0, frequency_penalty=1.0))
    with pytest.raises(InvariantViolation, match="position 1"):
        _edited(chain, torch.zeros(1, VOCAB), SampleRow(0, 1))


def test_advancing_an_earlier_position_forgets_what_followed() -> None:
    chain = _chain(_sequence(0, frequency_penalty=1.0))
    for position, token_id in [(0, 4), (1, 5), (2, 6), (1, 7)]:
        chain.advance(SampleRow(0, position), token_id)
    logits = _edited(chain, torch.zeros(1, VOCAB), SampleRow(0, 2))
    assert logits[0].nonzero().flatten().tolist() == [4, 7]


def test_ids_outside_the_vocabulary_are_harmless() -> None:
    outside = [VOCAB, -1, 10**9, 3]
    bias = {VOCAB: 1.0, -3: 1.0}
    chain = _chain(_sequence(0, outside, repetition_penalty=2.0, logit_bias=bias))
    logits = _edited(chain, torch.ones(1, VOCAB), SampleRow(0, 0))
    assert (logits[0] != 1.0).nonzero().flatten().tolist() == [3]


def test_a_new_kind_of_processor_joins_the_chain() -> None:
    class OnlyEven:
        """Forbids odd tokens after an odd one; stands for structured output."""

        needs_host_tokens = True

        def __init__(self) -> None:
            self.last: dict[int, int] = {}

        def add(self, sequence: NewSequence) -> bool:
            self.last[sequence.seq_id] = 0
            return True

        def remove(self, seq_id: int) -> None:
            del self.last[seq_id]

        def edit(self, edits: EditLists, place: int, row: SampleRow) -> None:
            if self.last[row.seq_id] % 2:
                edits.forbid(place, np.arange(1, VOCAB, 2))

        def advance(self, row: SampleRow, token_id: int) -> None:
            self.last[row.seq_id] = token_id

    processor: LogitsProcessor = OnlyEven()
    chain = ProcessorChain((Penalties(VOCAB), processor))
    chain.add(_sequence(0))
    logits = _edited(chain, torch.zeros(1, VOCAB), SampleRow(0, 0))
    assert not logits.any()
    chain.advance(SampleRow(0, 0), 5)
    logits = _edited(chain, logits, SampleRow(0, 1))
    assert int((logits == -torch.inf).sum()) == VOCAB // 2


def test_only_processors_that_read_the_text_need_host_tokens() -> None:
    assert Penalties.needs_host_tokens
    assert not LogitBias.needs_host_tokens
    assert not MinTokens.needs_host_tokens
