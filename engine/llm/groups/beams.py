"""Runs beam search on a request's sequences: a `Group` in which each sequence runs one beam's text.

A step computes one row per beam and returns its likeliest tokens. Those are the log-probabilities
that clients may also ask for, so the executor need not know of beams.
`engine.llm.groups.beam_search` decides how the texts continue. Where two texts continue from one,
the second takes over a sequence whose text is dropped. It shares the blocks of the first, which are
copied when either writes.
"""

from dataclasses import replace

from engine.contract.generate import TokenEvent, TokenLogprob
from engine.contract.groups import BeamParams
from engine.contract.request import FinishReason
from engine.contract.sampling_params import SamplingParams
from engine.errors import EngineError, InvariantViolation
from engine.llm.groups.beam_search import BeamSearch, Continuation
from engine.llm.request import ActiveRequest, Group, Sequence


class Beams(Group):
    """The beams of one request.

    Args:
        sequences: one per beam.
    """

    def __init__(self, owner: ActiveRequest, sequences: list[Sequence], params: BeamParams) -> None:
        self._owner = owner
        self._asked = asked = owner.request.sampling
        first = sequences[0]
        self._search = BeamSearch(
            params,
            max_tokens=first.max_num_tokens - owner.prompt_len,
            min_tokens=asked.min_tokens,
            ends=owner.ends,
            never=owner.never_token_ids,
        )
        sampling = SamplingParams(
            max_tokens=asked.max_tokens,
            temperature=0.0,
            logprobs=max(self._search.num_candidates, asked.logprobs or 0),
            prompt_logprobs=asked.prompt_logprobs,
            beams=params,
        )
        super().__init__(sequences, sampling)
        self._beams = [first]
        """The sequences that have a text, best first."""
        self._prompt_scores: list[TokenLogprob | None] | None = None
        self._wanted = set(range(asked.n))
        """Indexes of the completions that the client still waits for."""
        self._is_told_of = False
        """Whether clients have been told that the text has begun."""
        for sequence in sequences[1:]:
            sequence.token_ids = []

    def advance(self) -> list[TokenEvent]:
        """See `Group`."""
        rows: list[TokenLogprob] = []
        for beam in self._beams:
            self._prompt_scores = self._prompt_scores or beam.take_scores()
            rows += self._outcomes[beam].logprobs or ()
        if len(rows) != len(self._beams):
            raise InvariantViolation("a beam's row has no list of likeliest tokens")
        continuations = self._search.advance(rows)
        self._outcomes.clear()
        if not continuations:
            return self._completions()
        self._beams = self._assign(continuations)
        for sequence, continuation in zip(self._beams, continuations, strict=True):
            sequence.token_ids.append(continuation.token_id)
        return self._beginning()

    def leave_out(self, index: int) -> bool:
        """See `Group`."""
        self._wanted.discard(index)
        return not self._wanted

    def fail(self, error: EngineError) -> list[TokenEvent]:
        """See `Group`."""
        return [self.sequences[index].fail(error) for index in sorted(self._wanted)]

    def _assign(self, continuations: list[Continuation]) -> list[Sequence]:
        """Give each continuing text a sequence. The first text that continues a beam keeps that
        beam's sequence."""
        parents = [self._beams[continuation.beam] for continuation in continuations]
        spare = [s for s in self.sequences if s not in parents]
        for sequence in spare:
            sequence.drop_text()
        assigned: list[Sequence] = []
        for parent in parents:
            sequence = parent
            if parent in assigned:
                sequence = spare.pop()
                sequence.go_on_from(parent)
            assigned.append(sequence)
        return assigned

    def _beginning(self) -> list[TokenEvent]:
        """Tell the client once, without a token, that the text has begun."""
        if self._is_told_of or 0 not in self._wanted:
            return []
        self._is_told_of = True
        return [self.sequences[0].report(prompt_logprobs=self._take_prompt_scores())]

    def _take_prompt_scores(self) -> list[TokenLogprob | None] | None:
        scores, self._prompt_scores = self._prompt_scores, None
        return scores

    def _completions(self) -> list[TokenEvent]:
        texts = self._search.best(self._asked.n)
        return [self._completion(index, texts[index]) for index in sorted(self._wanted)]

    def _completion(self, index: int, tokens: list[TokenLogprob]) -> TokenEvent:
        last = tokens[-1].token_id
        by_eos, num_top = last in self._owner.eos_token_ids, self._asked.logprobs
        return self.sequences[index].report(
            token_ids=[token.token_id for token in tokens],
            logprobs=None if num_top is None else [_cut(token, num_top) for token in tokens],
            prompt_logprobs=self._take_prompt_scores() if index == 0 else None,
            finish_reason=FinishReason.STOP if last in self._owner.ends else FinishReason.LENGTH,
            stop_token_id=None if by_eos or last not in self._owner.ends else last,
        )


def _cut(token: TokenLogprob, num_top: int) -> TokenLogprob:
    return replace(
        token, top_ids=token.top_ids[:num_top], top_logprobs=token.top_logprobs[:num_top]
    )
