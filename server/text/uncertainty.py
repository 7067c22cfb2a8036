"""Measures how sure a model was of a text, from its scores of each token: sums that grow with the
text.

All numbers describe the model's own distribution, as log-probabilities do: before penalties,
temperature and whatever leaves tokens out. They are in nats and include the end-of-sequence token.
"""

import math
from collections.abc import Callable, Sequence

from engine.contract.generate import TokenLogprob
from server.protocol.answers import TextSpan, Uncertainty

CharacterRange = Callable[[int, int], list[int]]
"""Maps a range of tokens to that of their characters."""


class TokenUncertainty:
    """Sums over one text. Tokens are added in their order, so a stream gets the same numbers as a
    whole text.

    Args:
        threshold: probability below which a token belongs to a span; None for no spans.
    """

    def __init__(self, threshold: float | None) -> None:
        self.num_tokens = 0
        self._logprobs = self._entropies = self._varentropies = 0.0
        self._least = -math.inf if not threshold else math.log(threshold)
        self._spans: list[tuple[int, int, float]] = []
        """First token, token after the last one, lowest log-probability."""

    @property
    def mean_logprob(self) -> float:
        return self._logprobs / self.num_tokens

    @property
    def mean_entropy(self) -> float:
        return self._entropies / self.num_tokens

    def add(self, tokens: Sequence[TokenLogprob]) -> None:
        """Add the text's next tokens."""
        for token in tokens:
            self._logprobs += token.logprob
            self._entropies += token.entropy
            self._varentropies += token.varentropy
            if token.logprob < self._least:
                self._mark(token.logprob)
            self.num_tokens += 1

    def answer(self, characters: CharacterRange) -> Uncertainty:
        """The numbers in the form that the client gets."""
        num = self.num_tokens
        return Uncertainty(
            num_tokens=num,
            mean_logprob=self.mean_logprob if num else None,
            mean_entropy=self.mean_entropy if num else None,
            mean_varentropy=self._varentropies / num if num else None,
            low_confidence_spans=[
                TextSpan([first, end], characters(first, end), least)
                for first, end, least in self._spans
            ],
        )

    def _mark(self, logprob: float) -> None:
        first, end, least = self._spans[-1] if self._spans else (0, -1, 0.0)
        if end == self.num_tokens:
            self._spans[-1] = first, end + 1, min(least, logprob)
        else:
            self._spans.append((self.num_tokens, self.num_tokens + 1, logprob))
