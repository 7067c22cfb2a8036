"""The sequences of a request with contrastive search: a `Group`.

    text so far     what may follow    a row each                     taken
    A B C           x   p = 0.5        similar to the text: 0.9
                    y   p = 0.3        similar to the text: 0.4       y
                    z   p = 0.1        similar to the text: 0.5

The likeliest tokens behind a text are its candidates. Each is computed in a sequence of its own, in
a step of as many rows; the executor says how similar its hidden state is to those of the text
(`engine.llm.text_states`), and the one with the best score is taken. Its row says what may follow
it, so no text is computed twice. The first sequence has the text that is accepted; the others
share its blocks, and copy the one that they write to.

Paper: Su et al. 2022, arXiv:2202.06417, equation 5, as transformers' contrastive search has it.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from engine.errors import EngineError, InvalidParameter, InvariantViolation, QueueFull
from engine.llm.decision import SequenceOutput
from engine.llm.request import ActiveRequest, Sequence
from engine.sampling_params import MAX_CANDIDATES, MIN_CANDIDATES, ContrastParams
from engine.types import GenerateRequest, SamplingParams, TokenEvent, TokenLogprob

MAX_COMPARED_TOKENS = 65_536
"""Of all texts of an engine together: their hidden states are kept, 4 bytes a number, beside the KV
pool. A gibibyte for a hidden size of 4096."""


class _Row(NamedTuple):
    """What a step has brought a sequence."""

    offer: TokenLogprob
    """What may follow its text."""
    similarity: float


class Candidates:
    """Those of one request.

    Args:
        owner: whose sequences there are, as many as tokens are tried.
    """

    def __init__(self, owner: ActiveRequest, params: ContrastParams) -> None:
        self._params = params
        self._asked = asked = owner.request.sampling
        self.sequences = owner.sequences
        self._first = self.sequences[0]
        self.sampling = SamplingParams(
            max_tokens=asked.max_tokens,
            temperature=0.0,
            logprobs=max(params.width, asked.logprobs or 0),
            prompt_logprobs=asked.prompt_logprobs,
            contrast=params,
        )
        self._offer: TokenLogprob | None = None
        """What may follow the text; None while that itself is computed, by the first sequence."""
        self._has_accepted = False
        """The last step brought a token."""
        self._rows: dict[Sequence, _Row] = {}
        """Of sequences for which the step is over."""
        for sequence in self.sequences[1:]:
            sequence.token_ids = []

    @property
    def keeps_outcome(self) -> bool:
        """See `Group`. Candidates of a text that was computed again are none: what a step fails for
        may come with theirs."""
        return self._has_accepted

    def waits(self, sequence: Sequence) -> bool:
        """See `Group`."""
        return not sequence.token_ids or sequence in self._rows

    def note(self, sequence: Sequence, result: SequenceOutput) -> bool:
        """See `Group`."""
        sequence.note_scores(result)
        if not result.token_ids:
            return False
        if not result.logprobs or (self._offer is not None and result.similarity is None):
            raise InvariantViolation("a candidate's row brought no scores")
        self._rows[sequence] = _Row(result.logprobs[0], result.similarity or 0.0)
        return len(self._rows) == (1 if self._offer is None else len(self.sequences))

    def advance(self) -> list[TokenEvent]:
        """See `Group`."""
        rows, self._rows = self._rows, {}
        self._has_accepted = self._offer is not None
        if self._offer is None:
            self._try(self._first, rows[self._first].offer)
            return []
        similarities = [rows[sequence].similarity for sequence in self.sequences]
        place = self._best(self._offer, similarities)
        best = self.sequences[place]
        news = self._accept(best, _token(self._offer, place, self._asked.logprobs))
        if news.finish_reason is None:
            self._try(best, rows[best].offer)
        return [news]

    def restart(self) -> None:
        """See `Group`. The text, without candidates, is computed again from its beginning; whoever
        calls has seen to the blocks."""
        self._rows.clear()
        if self._offer is None:
            return
        self._offer = None
        self._first.token_ids.pop()
        self._first.chain.clear()
        self._first.follows = None
        for sequence in self.sequences[1:]:
            sequence.token_ids = []
            sequence.chain = []

    def leave_out(self, index: int) -> bool:
        """See `Group`."""
        return index == 0

    def fail(self, error: EngineError) -> list[TokenEvent]:
        """See `Group`."""
        return [self._first.fail(error)]

    def _best(self, offer: TokenLogprob, similarities: list[float]) -> int:
        """The place of the candidate that is taken; of equals the likeliest."""
        alpha = self._params.alpha
        scores = [
            (1.0 - alpha) * math.exp(logprob) - alpha * similarity
            for logprob, similarity in zip(offer.top_logprobs, similarities, strict=False)
        ]
        return scores.index(max(scores))

    def _accept(self, best: Sequence, token: TokenLogprob) -> TokenEvent:
        """Make a candidate's text the first sequence's, and tell of its token."""
        first = self._first
        if best is not first:
            first.swap_text(best)
        first.token_ids.pop()
        _, reason = first.accept([token.token_id])
        return first.report(
            token_ids=[token.token_id],
            logprobs=None if self._asked.logprobs is None else [token],
            prompt_logprobs=first.take_scores(),
            finish_reason=reason,
            stop_token_id=first.stop_token_id,
        )

    def _try(self, best: Sequence, offer: TokenLogprob) -> None:
        """Give each sequence the text, which the first one has, and a token that may follow.

        Args:
            best: whose row computed the text's last token.
        """
        self._offer = offer
        for sequence in self.sequences[1:]:
            sequence.go_on_from(self._first)
        for sequence, token_id in zip(self.sequences, offer.top_ids, strict=False):
            sequence.token_ids.append(token_id)
            sequence.follows = best.seq_id


def _token(offer: TokenLogprob, place: int, num_top: int | None) -> TokenLogprob:
    logprob = offer.top_logprobs[place]
    return replace(
        offer,
        token_id=offer.top_ids[place],
        logprob=logprob,
        rank=1 + sum(other > logprob for other in offer.top_logprobs[:place]),
        top_ids=offer.top_ids[: num_top or 0],
        top_logprobs=offer.top_logprobs[: num_top or 0],
    )


def check_contrast(
    request: GenerateRequest,
    params: ContrastParams,
    max_num_running: int,
    max_model_len: int,
    num_ids: int,
    *,
    beside: Iterable[GenerateRequest],
) -> None:
    """Refuse a search that cannot be made. The server checks first, and the engine does not trust
    it.

    Args:
        num_ids: of the vocabulary.
        beside: requests that have not ended.

    Raises:
        InvalidParameter: names the field, and the limit.
        QueueFull: there is no room for the hidden states of one text more.
    """
    sampling = request.sampling
    most = min(MAX_CANDIDATES, max_num_running, num_ids)
    if not MIN_CANDIDATES <= params.width <= most:
        raise InvalidParameter(
            f"{params.width} tokens were to be tried; with penalty_alpha top_k can be "
            f"{MIN_CANDIDATES} to {most}",
            param="top_k",
        )
    if not 0.0 < params.alpha <= 1.0:
        raise InvalidParameter(
            "penalty_alpha must be above 0, and 1 at most", param="penalty_alpha"
        )
    for name, neutral in (("n", 1), ("beams", None), ("min_tokens", 0), ("structure", None)):
        if getattr(sampling, name) != neutral:
            raise InvalidParameter(f"{name} cannot be combined with penalty_alpha", param=name)
    if sampling.max_tokens < 1:
        raise InvalidParameter("penalty_alpha needs max_tokens of at least 1", param="max_tokens")
    asked = _num_compared(request, max_model_len)
    if asked > MAX_COMPARED_TOKENS:
        raise InvalidParameter(
            f"with penalty_alpha prompt and max_tokens can be {MAX_COMPARED_TOKENS} tokens, and "
            f"are {asked}",
            param="max_tokens",
        )
    taken = sum(
        _num_compared(other, max_model_len)
        for other in beside
        if other.sampling.contrast is not None
    )
    if taken + asked > MAX_COMPARED_TOKENS:
        raise QueueFull(
            f"texts with penalty_alpha may have {MAX_COMPARED_TOKENS} tokens together, and have "
            f"{taken}; retry later, or ask for fewer max_tokens"
        )


def _num_compared(request: GenerateRequest, max_model_len: int) -> int:
    return min(len(request.prompt_token_ids) + request.sampling.max_tokens, max_model_len)
