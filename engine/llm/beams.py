"""The sequences of a request with beam search: a `Group`, in which each runs one beam's text.

A step computes one row per beam, and brings its likeliest tokens: log-probabilities that clients
may ask for, too, so that the executor knows nothing of beams. `engine.llm.beam_search` says how the
texts go on; where two go on from one, the second takes the place of a sequence whose text nobody
goes on with, and shares the blocks of the first, which are copied when one of them writes.
"""

from dataclasses import replace

from engine.errors import EngineError, InvalidParameter, InvariantViolation
from engine.llm.beam_search import BeamSearch, Continuation
from engine.llm.decision import SequenceOutput
from engine.llm.request import ActiveRequest, Sequence
from engine.sampling_params import MAX_BEAM_ENDS, MAX_BEAM_WIDTH, BeamParams
from engine.types import FinishReason, SamplingParams, TokenEvent, TokenLogprob


class Beams:
    """Beams of one request.

    Args:
        owner: whose sequences there are, as many as the beams.
    """

    def __init__(self, owner: ActiveRequest, params: BeamParams) -> None:
        self._owner = owner
        self.sequences = owner.sequences
        self._asked = asked = owner.request.sampling
        first = owner.sequences[0]
        self._search = BeamSearch(
            params,
            max_tokens=first.max_num_tokens - owner.prompt_len,
            min_tokens=asked.min_tokens,
            ends=owner.ends,
        )
        self.sampling = SamplingParams(
            max_tokens=asked.max_tokens,
            temperature=0.0,
            logprobs=max(self._search.num_candidates, asked.logprobs or 0),
            prompt_logprobs=asked.prompt_logprobs,
            beams=params,
        )
        self._beams = [first]
        """Those that have a text, best first."""
        self._rows: dict[Sequence, TokenLogprob] = {}
        """Of beams for which the step is over: what may follow."""
        self._prompt_scores: list[TokenLogprob | None] | None = None
        self._wanted = set(range(asked.n))
        """Completions."""
        self._is_told_of = False
        """Clients know that it has begun."""
        for sequence in owner.sequences[1:]:
            sequence.token_ids = []

    @property
    def keeps_outcome(self) -> bool:
        """See `Group`."""
        return True

    def waits(self, sequence: Sequence) -> bool:
        """See `Group`."""
        return not sequence.token_ids or sequence in self._rows

    def note(self, sequence: Sequence, result: SequenceOutput) -> bool:
        """See `Group`."""
        sequence.note_scores(result)
        if not result.token_ids:
            return False
        if not result.logprobs:
            raise InvariantViolation("a beam's row brought no likeliest tokens")
        self._rows[sequence] = result.logprobs[0]
        self._prompt_scores = self._prompt_scores or sequence.take_scores()
        return len(self._rows) == len(self._beams)

    def advance(self) -> list[TokenEvent]:
        """See `Group`."""
        continuations = self._search.advance([self._rows[beam] for beam in self._beams])
        self._rows.clear()
        if not continuations:
            return self._completions()
        self._beams = self._assign(continuations)
        for sequence, continuation in zip(self._beams, continuations, strict=True):
            sequence.token_ids.append(continuation.token_id)
        return self._beginning()

    def restart(self) -> None:
        """See `Group`."""
        self._rows.clear()

    def leave_out(self, index: int) -> bool:
        """See `Group`."""
        self._wanted.discard(index)
        return not self._wanted

    def fail(self, error: EngineError) -> list[TokenEvent]:
        """See `Group`."""
        return [self._owner.sequences[index].fail(error) for index in sorted(self._wanted)]

    def _assign(self, continuations: list[Continuation]) -> list[Sequence]:
        """Give each text that goes on a sequence that has it. The first of those that go on from
        one text stays where that is."""
        parents = [self._beams[continuation.beam] for continuation in continuations]
        spare = [s for s in self._owner.sequences if s not in parents]
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
        """News without a token, once."""
        if self._is_told_of or 0 not in self._wanted:
            return []
        self._is_told_of = True
        return [self._owner.sequences[0].report(prompt_logprobs=self._take_prompt_scores())]

    def _take_prompt_scores(self) -> list[TokenLogprob | None] | None:
        scores, self._prompt_scores = self._prompt_scores, None
        return scores

    def _completions(self) -> list[TokenEvent]:
        texts = self._search.best(self._asked.n)
        return [self._completion(index, texts[index]) for index in sorted(self._wanted)]

    def _completion(self, index: int, tokens: list[TokenLogprob]) -> TokenEvent:
        last = tokens[-1].token_id
        by_eos, num_top = last in self._owner.eos_token_ids, self._asked.logprobs
        return self._owner.sequences[index].report(
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


def check_beams(
    sampling: SamplingParams, params: BeamParams, num_ends: int, max_num_running: int, num_ids: int
) -> None:
    """Refuse a search that cannot be made. The server checks first, and the engine does not trust
    it.

    Args:
        num_ends: tokens that end a text.
        max_num_running: sequences that can run at a time.
        num_ids: of the vocabulary.

    Raises:
        InvalidParameter: names the field, and the limit.
    """
    width, most = params.width, min(MAX_BEAM_WIDTH, max_num_running)
    if not sampling.n <= width <= most:
        raise InvalidParameter(
            f"{width} beams were asked for; there can be {sampling.n} (n) to {most}",
            param="best_of",
        )
    if num_ends > MAX_BEAM_ENDS:
        raise InvalidParameter(
            f"{num_ends} tokens end the text; with beam search it can be {MAX_BEAM_ENDS}",
            param="stop_token_ids",
        )
    if width + num_ends > num_ids:
        raise InvalidParameter(
            f"the model's {num_ids} tokens are too few for {width} beams", param="best_of"
        )
    if sampling.max_tokens < 1:
        raise InvalidParameter("beam search needs max_tokens of at least 1", param="max_tokens")
    if sampling.structure is not None:
        param = sampling.structure.param
        raise InvalidParameter(
            f"{param} cannot be combined with beam search; leave one of them out", param=param
        )
