"""Compares engines that speculate with those that do not, bit for bit."""

from engine.contract.generate import DrafterName
from tests.helpers.llm.paged_executor import Guesser
from tests.helpers.llm.repetitive import VOCAB, check_outcome, outcome, without_drafts

RECURRENT = ["tiny_qwen3_next", "tiny_mamba2", "tiny_falcon_h1", "tiny_lfm2"]
"""Models with states that are taken back when a draft was wrong."""


class Oracle(Guesser):
    """A drafter that has seen the answers and is wrong now and then."""

    def __init__(self, expected, rng):
        super().__init__(rng, is_right=0.85)
        self.expected = expected

    def draft(self, decodes, num_rows, price):
        for sequence in decodes:
            text = self.expected[sequence.owner.request.request_id, sequence.index][0]
            text = text[sequence.num_output_tokens + sequence.num_pending :]
            text = [
                t if self.rng.random() < self.is_right else self.rng.randrange(VOCAB) for t in text
            ]
            text += [self.rng.randrange(VOCAB) for _ in range(3)]
            num_drafts = min(self.rng.randrange(8), sequence.num_draftable, num_rows, len(text))
            if num_drafts > 0:
                num_rows -= num_drafts
                yield sequence, text[:num_drafts]


def draft_by(engine, drafter):
    """Let nobody else guess."""
    engine._scheduler._drafting._drafters = {DrafterName.LOOKUP: drafter}


def same_with_and_without(engines, folder, requests, rng, *, arrivals=None, aborts=None, **knobs):
    """Run the requests through an engine that speculates and compare; returns its statistics.

    What is aborted has got a beginning of the same text.

    Args:
        rng: for guesses of an oracle, which are right and wrong often enough; None: real ones.
    """
    kept = {name: knobs[name] for name in ("max_model_len",) if name in knobs}  # ends a text
    expected = without_drafts(engines, folder, requests, enable_prefix_caching=False, **kept)
    engine = engines.make(folder, **({"num_speculative_tokens": 7, "prompt_lookup_min": 1} | knobs))
    if rng is not None:
        draft_by(engine, Oracle(expected, rng))
    found = outcome(engines.run(engine, requests, arrivals=arrivals, aborts=aborts))
    check_outcome(found, expected, aborts or ())
    assert engine.stats().kv_blocks_used == 0
    return engine.stats()


def check_drafts(result) -> None:
    """The run had right guesses and, unless it had few, wrong ones."""
    assert result.num_accepted_tokens > 0
    assert result.num_accepted_tokens < max(result.num_draft_tokens, 40)
