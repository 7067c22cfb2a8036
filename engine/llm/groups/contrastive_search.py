"""Runs contrastive search on the sequences of a request, as a `Group`.

    text so far     what may follow    a row each                     taken
    A B C           x   p = 0.5        similar to the text: 0.9
                    y   p = 0.3        similar to the text: 0.4       y
                    z   p = 0.1        similar to the text: 0.5

The likeliest next tokens of a text are its candidates. Each is computed in a sequence of its own,
all in one step. The executor compares its hidden state with those of the text
(`engine.llm.runner.text_states`), and the candidate with the best score is taken. Its row already
tells what may follow it, so no text is computed twice. The first sequence has the accepted text;
the others share its blocks and copy the one that they write to.

Paper: Su et al. 2022, arXiv:2202.06417, equation 5, as transformers' contrastive search has it.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace

from engine.contract.generate import GenerateRequest, TokenEvent, TokenLogprob
from engine.contract.groups import ContrastParams
from engine.contract.sampling_params import SamplingParams
from engine.errors import InvalidParameter, InvariantViolation, QueueFull
from engine.llm.decision import SequenceOutput
from engine.llm.request import ActiveRequest, Group, Sequence

MAX_COMPARED_TOKENS = 65_536
"""The most tokens that all texts of an engine with contrastive search have together. Their hidden
states are kept beside the KV pool with 4 bytes a number: a gibibyte at a hidden size of 4096."""


class Candidates(Group):
    """The candidates of one request.

    Args:
        sequences: one per token that is tried.
    """

    def __init__(
        self, owner: ActiveRequest, sequences: list[Sequence], params: ContrastParams
    ) -> None:
        self._params = params
        self._never = owner.never_token_ids
        self._asked = asked = owner.request.sampling
        sampling = SamplingParams(
            max_tokens=asked.max_tokens,
            temperature=0.0,
            logprobs=max(params.width + len(owner.never_token_ids), asked.logprobs or 0),
            prompt_logprobs=asked.prompt_logprobs,
            contrast=params,
        )
        super().__init__(sequences, sampling)
        self._first = sequences[0]
        self._offer: TokenLogprob | None = None
        """What may follow the text; None while the first sequence is still computing the text
        itself."""
        self._places: list[int] = []
        """Where in the offer each sequence's candidate is."""
        self._has_accepted = False
        """Whether the last step brought a token."""
        for sequence in self.sequences[1:]:
            sequence.token_ids = []

    @staticmethod
    def check_beside(
        request: GenerateRequest, others: Iterable[GenerateRequest], max_model_len: int
    ) -> None:
        """See `Group`. A search needs memory for its hidden states."""
        asked = _num_compared(request, max_model_len)
        if asked > MAX_COMPARED_TOKENS:
            raise InvalidParameter(
                f"prompt and max_tokens are {asked} tokens together; with penalty_alpha the limit "
                f"is {MAX_COMPARED_TOKENS}: lower max_tokens, or shorten the prompt",
                param="max_tokens",
            )
        taken = sum(
            _num_compared(other, max_model_len)
            for other in others
            if other.sampling.contrast is not None
        )
        if taken + asked > MAX_COMPARED_TOKENS:
            raise QueueFull(
                f"other requests with penalty_alpha hold {taken} tokens and this one needs "
                f"{asked}; together they can have {MAX_COMPARED_TOKENS}: retry later, or lower "
                "max_tokens"
            )

    @property
    def keeps_outcome(self) -> bool:
        """See `Group`. False while a text is computed again without candidates: what makes a step
        fail may only come back with them."""
        return self._has_accepted

    def advance(self) -> list[TokenEvent]:
        """See `Group`."""
        outcomes, self._outcomes = self._outcomes, {}
        self._has_accepted = self._offer is not None
        if self._offer is None:
            self._try(self._first, outcomes[self._first])
            return []
        similarities = [outcomes[sequence].similarity for sequence in self.sequences]
        index = self._best(self._offer, similarities)
        best = self.sequences[index]
        token = _token(self._offer, self._places[index], self._asked.logprobs)
        news = self._accept(best, token)
        if news.finish_reason is None:
            self._try(best, outcomes[best])
        return [news]

    def restart(self) -> None:
        """See `Group`. The text is computed again from its beginning, without candidates. The
        caller has already freed the blocks."""
        super().restart()
        if self._offer is None:
            return
        self._offer = None
        self._first.token_ids.pop()
        self._first.chain.clear()
        self._first.follows = None
        for sequence in self.sequences[1:]:
            sequence.token_ids = []
            sequence.chain = []

    def _best(self, offer: TokenLogprob, similarities: Iterable[float | None]) -> int:
        """The index of the best candidate; among equals, of the likeliest."""
        alpha, scores = self._params.alpha, []
        for place, similarity in zip(self._places, similarities, strict=False):
            if similarity is None:
                raise InvariantViolation("a candidate's row was not compared")
            scores.append((1.0 - alpha) * math.exp(offer.top_logprobs[place]) - alpha * similarity)
        return scores.index(max(scores))

    def _accept(self, best: Sequence, token: TokenLogprob) -> TokenEvent:
        """Give the first sequence a candidate's text, and report its token."""
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

    def _try(self, best: Sequence, outcome: SequenceOutput) -> None:
        """Give each sequence the first one's text and one token that may follow.

        Args:
            best: the sequence whose row computed the text's last token.
            outcome: the outcome of that row.
        """
        if not outcome.logprobs:
            raise InvariantViolation("a candidate's row has no list of likeliest tokens")
        self._offer = offer = outcome.logprobs[0]
        for sequence in self.sequences[1:]:
            sequence.go_on_from(self._first)
        allowed = (place for place, one in enumerate(offer.top_ids) if one not in self._never)
        self._places = list(itertools.islice(allowed, len(self.sequences)))
        for sequence, place in zip(self.sequences, self._places, strict=False):
            sequence.token_ids.append(offer.top_ids[place])
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


def _num_compared(request: GenerateRequest, max_model_len: int) -> int:
    return min(len(request.prompt_token_ids) + request.sampling.max_tokens, max_model_len)
