"""Beam search in numbers: decides which texts continue, which have ended and how they score.

    beams, best first      what may follow                 beams of the next step
    A   -1.2               A x  -1.9     A y  -2.3         A x   -1.9
    B   -1.5               B </s> -2.1   B x  -2.6         A y   -2.3      B </s> has ended

It decides as transformers' `generate(num_beams=…)` does, whose sums are fp32 too. Among all
continuations of all beams, the likeliest continue, as many as the width. One that is among them but
ends is kept with its score: log-probability / length ^ length_penalty. At the last token, all that
are among them are kept. This module knows neither sequences nor blocks; `engine.llm.groups.beams`
does.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from engine.contract.generate import TokenLogprob
from engine.contract.groups import BeamParams


class Continuation(NamedTuple):
    """A beam of the next step: one of this step's beams and the token that follows it."""

    beam: int
    token_id: int


class _Text(NamedTuple):
    """The tokens of a beam, linked from the last to the first, so that beams share their common
    beginning."""

    before: "_Text | None"
    row: TokenLogprob
    place: int
    """The index of the token among the row's likeliest."""


class _Beam(NamedTuple):
    text: _Text | None
    logprob: float
    """The log-probability of all its tokens together, rounded to fp32."""


class _Ended(NamedTuple):
    text: _Text
    score: float


class BeamSearch:
    """The search for one prompt.

    Args:
        max_tokens: the length at which all texts end.
        min_tokens: the length up to which none of `ends` can follow.
        ends: the tokens that end a text and are part of it.
        never: the tokens that no text may have.
    """

    def __init__(
        self,
        params: BeamParams,
        *,
        max_tokens: int,
        min_tokens: int,
        ends: Collection[int],
        never: Collection[int] = (),
    ) -> None:
        self._params = params
        self._max_tokens = max_tokens
        self._min_tokens = min_tokens
        self._ends = frozenset(ends)
        self._never = frozenset(never)
        self._beams = [_Beam(None, 0.0)]
        self._ended: list[_Ended] = []
        """Ended texts, the best first, at most as many as the width."""
        self._num_tokens = 0

    @property
    def num_candidates(self) -> int:
        """How many of its likeliest tokens each row must bring: enough to fill the width even if
        all tokens that end a text, or may not be in one, are among them."""
        return self._params.width + len(self._ends | self._never)

    def advance(self, rows: Sequence[TokenLogprob]) -> list[Continuation]:
        """Take in what may follow each beam.

        Args:
            rows: the likeliest tokens of each beam, in the order in which the beams were returned;
                the same number for each, at least `num_candidates`. Before the first call the
                prompt is the only beam.

        Returns:
            The beams that continue, best first; none once the search is over.
        """
        width = self._params.width
        self._num_tokens += 1
        is_last = self._num_tokens == self._max_tokens
        going_on: list[tuple[Continuation, _Beam]] = []
        ended: list[_Ended] = []
        for rank, (beam, place, logprob) in enumerate(self._likeliest(rows)):
            if len(going_on) == width or (is_last and rank == width):
                break
            row = rows[beam]
            text = _Text(self._beams[beam].text, row, place)
            if not is_last and row.top_ids[place] not in self._ends:
                going_on.append((Continuation(beam, row.top_ids[place]), _Beam(text, logprob)))
            elif rank < width:
                ended.append(_Ended(text, self._score(logprob, self._num_tokens)))
        self._ended = sorted(self._ended + ended, key=_by_score)[:width]
        self._beams = [beam for _, beam in going_on]
        return [] if self._is_over() else [continuation for continuation, _ in going_on]

    def best(self, num: int) -> list[list[TokenLogprob]]:
        """Return the tokens of the best texts, best first, once the search is over."""
        return [_tokens(ended.text) for ended in self._ended[:num]]

    def _likeliest(self, rows: Sequence[TokenLogprob]) -> Iterator[tuple[int, int, float]]:
        """Yield beam, place in its row and log-probability of each possible text, the likeliest
        first. Among equals, the better beam comes first, then the likelier token."""
        before = np.array([beam.logprob for beam in self._beams], dtype=np.float32)
        logprobs = np.array([row.top_logprobs for row in rows], dtype=np.float32)
        logprobs += before[:, None]
        order = np.argsort(-logprobs, axis=None, kind="stable").tolist()
        may_end = self._num_tokens > self._min_tokens
        forbidden = self._never if may_end else self._never | self._ends
        for index in order:
            beam, place = divmod(index, logprobs.shape[1])
            if rows[beam].top_ids[place] not in forbidden:
                yield beam, place, float(logprobs[beam, place])

    def _score(self, logprob: float, num_tokens: int) -> float:
        weight: float = float(num_tokens) ** self._params.length_penalty
        return logprob / weight

    def _is_over(self) -> bool:
        params = self._params
        if not self._beams:
            return True
        if len(self._ended) < params.width:
            return False
        if params.early_stopping is True:
            return True
        could_grow = params.early_stopping == "never" and params.length_penalty > 0.0
        num_tokens = self._max_tokens if could_grow else self._num_tokens
        return self._score(self._beams[0].logprob, num_tokens) <= self._ended[-1].score


def _by_score(ended: _Ended) -> float:
    return -ended.score


def _tokens(text: _Text | None) -> list[TokenLogprob]:
    tokens = []
    while text is not None:
        row, place = text.row, text.place
        logprob = row.top_logprobs[place]
        rank = 1 + sum(other > logprob for other in row.top_logprobs[:place])
        tokens.append(replace(row, token_id=row.top_ids[place], logprob=logprob, rank=rank))
        text = text.before
    return tokens[::-1]
