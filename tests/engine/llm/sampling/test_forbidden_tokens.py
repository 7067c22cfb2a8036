"""Allowed tokens and bad words: against transformers, taken back, drafted, with nothing left."""

import json
import random
from typing import Any

import numpy as np
import pytest
import torch

from engine.contract.sampling_params import SamplingParams
from engine.errors import InvalidParameter, InvariantViolation
from engine.llm.decision import NewSequence, SampleRow
from engine.llm.sampling.forbidden_tokens import BadWords, ForbiddenTokens
from engine.llm.sampling.logits_processors import ProcessorChain
from engine.llm.sampling.sampler import Sampler
from kernels import EditLists, SamplingRows
from kernels.sample_tokens import packed_row
from kernels.sample_tokens.edits import edited

VOCAB = 70
CPU = torch.device("cpu")


def _ids(*token_ids: int) -> bytes:
    return np.array(token_ids, dtype="<i4").tobytes()


def _sequence(seq_id: int = 0, index: int = 0, **params: Any) -> NewSequence:
    sampling = SamplingParams(**params)
    return NewSequence(seq_id, [5, 6], sampling, seed=7, index=index, suppressed_token_ids=(3,))


def _chain(*sequences: NewSequence) -> ProcessorChain:
    chain = ProcessorChain((ForbiddenTokens(VOCAB), BadWords(VOCAB)))
    for sequence in sequences:
        chain.add(sequence)
    return chain


def _possible(chain: ProcessorChain, *rows: SampleRow) -> list[set[int]]:
    """What may be drawn in each row."""
    edits = EditLists()
    chain.edit(edits, rows)
    positions = [row.position for row in rows]
    packed = SamplingRows.from_host([packed_row()] * len(rows), positions, edits, CPU)
    work = edited(torch.zeros(len(rows), VOCAB), packed.edits)
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in work]


def _random_words(rng: random.Random) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(rng.randrange(6) for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(1, 9))
    )


def test_bad_words_equal_transformers() -> None:
    from transformers.generation.logits_process import NoBadWordsLogitsProcessor

    for _ in range(20):
        words = _random_words(random)
        chain = _chain(_sequence(bad_words=words))
        theirs = NoBadWordsLogitsProcessor([list(word) for word in words])
        text: list[int] = []
        for _ in range(30):
            [possible] = _possible(chain, SampleRow(0, len(text)))
            ids = torch.tensor([text], dtype=torch.int64)
            expected = theirs(ids, torch.zeros(1, VOCAB))[0].isfinite()
            assert possible == set(expected.nonzero().flatten().tolist()), (words, text)
            text.append(random.randrange(7))
            chain.advance(SampleRow(0, len(text) - 1), text[-1])


def test_tokens_that_are_taken_back_never_came() -> None:
    words = _random_words(random)
    chain, kept = _chain(_sequence(bad_words=words)), list[int]()
    for _ in range(200):
        position = random.randint(0, len(kept)) if random.random() < 0.2 else len(kept)
        del kept[position:]
        fresh = _chain(_sequence(bad_words=words))
        for place, token_id in enumerate(kept):
            fresh.advance(SampleRow(0, place), token_id)
        row = SampleRow(0, position)
        assert _possible(chain, row) == _possible(fresh, row)
        kept.append(random.randrange(6))
        chain.advance(row, kept[-1])


def test_rows_behind_drafts_follow_the_drafts() -> None:
    chain = _chain(_sequence(bad_words=((1, 2), (2, 4, 5))))
    rows = [SampleRow(0, 0), SampleRow(0, 1, draft=2), SampleRow(0, 2, draft=4)]
    everything = set(range(VOCAB))
    assert _possible(chain, *rows) == [everything, everything, everything - {5}]
    chain.advance(SampleRow(0, 0), 1)
    assert _possible(chain, SampleRow(0, 1)) == [everything - {2}]


def test_the_prompt_begins_no_word() -> None:
    chain = _chain(_sequence(bad_words=((6, 9),)))
    assert _possible(chain, SampleRow(0, 0)) == [set(range(VOCAB))]


def test_only_allowed_tokens_are_possible_less_bad_ones() -> None:
    chain = _chain(
        _sequence(0, allowed_token_ids=_ids(2, 63, 64, VOCAB - 1)),
        _sequence(1, allowed_token_ids=_ids(4, 5), bad_words=((5,), (1, 4))),
        _sequence(2, bad_words=((5,),)),
        _sequence(3),
    )
    everything = set(range(VOCAB))
    rows = [SampleRow(seq_id, 0) for seq_id in range(4)]
    assert _possible(chain, *rows) == [{2, 63, 64, VOCAB - 1}, {4}, everything - {5}, everything]


def test_ids_outside_the_vocabulary_are_harmless() -> None:
    far = 2**31 - 1
    words = ((VOCAB,), (far,), (1, VOCAB), (far, 2))
    chain = _chain(_sequence(allowed_token_ids=_ids(8, VOCAB, far), bad_words=words))
    assert _possible(chain, SampleRow(0, 0)) == [{8}]
    chain.advance(SampleRow(0, 0), 1)
    assert _possible(chain, SampleRow(0, 1)) == [{8}]


@pytest.mark.parametrize(
    "params",
    [
        {"allowed_token_ids": _ids(5), "bad_words": ((5,),)},
        {"allowed_token_ids": _ids(3), "min_tokens": 2},
        {"bad_words": tuple((one,) for one in range(VOCAB))},
        {"allowed_token_ids": _ids(VOCAB + 1)},
    ],
)
def test_where_nothing_is_left_the_request_is_told_and_nobody_else(params: dict[str, Any]) -> None:
    sampler = Sampler(VOCAB, CPU)
    sampler.add(_sequence(0, **params))
    sampler.add(_sequence(1, temperature=0.0))
    failed, fine = sampler.sample(torch.zeros(2, VOCAB), [SampleRow(0, 0), SampleRow(1, 0)])
    assert failed is not None
    assert isinstance(failed.error, InvalidParameter)
    assert "allowed_token_ids" in failed.error.message
    assert fine is not None
    assert (fine.token_id, fine.error) == (0, None)


def test_removed_sequences_leave_nothing() -> None:
    processors = ForbiddenTokens(VOCAB), BadWords(VOCAB)
    sequence = _sequence(allowed_token_ids=_ids(4), bad_words=((5,), (1, 2)))
    for processor in processors:
        assert processor.add(sequence)
        processor.remove(0)
        processor.remove(0)
        assert not any(
            getattr(processor, name) for name in vars(processor) if name != "_vocab_size"
        )


def test_a_position_beyond_the_text_is_a_bug() -> None:
    with pytest.raises(InvariantViolation, match="position 1"):
        _possible(_chain(_sequence(bad_words=((1, 2),))), SampleRow(0, 1))


def test_only_words_of_several_tokens_read_the_text() -> None:
    assert not SamplingParams(bad_words=((1,),), allowed_token_ids=_ids(1)).reads_text
    assert SamplingParams(bad_words=((1,), (1, 2))).reads_text
    assert BadWords.needs_host_tokens
    assert not ForbiddenTokens.needs_host_tokens


def test_tokens_that_a_model_must_never_draw(engines, tiny_llama, rng):
    """Not even if a request asks for them."""
    folder = tiny_llama(seed=rng.randrange(1000), vocab_size=64)
    never = rng.sample(range(64), 40)
    stated = json.dumps({"suppress_tokens": [*never, 1 << 20]})
    (folder / "generation_config.json").write_text(stated)
    bias = dict.fromkeys(never[:20], 50.0)
    requests = [
        engines.request(str(i), [i], max_tokens=30, temperature=t, logit_bias=bias, ignore_eos=True)
        for i, t in enumerate((0.0, 1.0, 5.0))
    ]
    done = engines.run(engines.make(folder), requests)
    assert {t for text in done.values() for t in text.token_ids}.isdisjoint(never)
    assert all(len(text.token_ids) == 30 for text in done.values())
