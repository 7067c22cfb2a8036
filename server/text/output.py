"""Turns a completion's tokens into its text: detokenises, finds stop strings, counts, finishes.

There is one `ChoiceOutput` per completion. It knows neither HTTP nor the engine's process, and the
deltas it returns concatenate to the same text whether they are streamed or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from engine.contract.generate import Repetition, TokenEvent, TokenLogprob
from engine.contract.request import FinishReason
from engine.text.detokenizer import IncrementalDetokenizer
from engine.text.stop import StopMatcher
from engine.text.tokenizer import Tokenizer
from server.protocol.answers import RepetitionReport, Uncertainty
from server.text.uncertainty import TokenUncertainty


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """A request's options for its text."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    kept_special_tokens: frozenset[int] = frozenset()
    """Special tokens that are kept, because they mark parts of the answer."""
    min_tokens: int = 0
    """Look for stop strings only after this many tokens."""
    offsets: bool = False
    """Say where in the text each token begins."""
    uncertain_below: float | None = None
    """Say at the end how sure the model was, and where tokens had a lower probability."""
    tells_ranges: bool = False
    """Report ranges of tokens by their characters, too."""
    keep_text: bool = False
    """Keep the whole text in `ChoiceOutput.text`, for the log."""


@dataclass(slots=True)
class Delta:
    """The part that one event added to one completion."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """One entry per token id, or none at all."""
    offsets: list[int] = field(default_factory=list)
    """Characters of text before each token, if requested."""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or the token of `stop_token_ids` that ended the text, as in vLLM."""
    uncertainty: Uncertainty | None = None
    """Uncertainty of the whole text, in the last delta, if requested."""
    repetition: RepetitionReport | None = None
    """Repetition in the whole text, in the last delta, if requested and found."""


class DeltaSum:
    """All deltas of one completion as one. Many long texts have a million deltas; as objects, the
    garbage collector would walk them again and again."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._offsets: list[int] = []
        self._last: Delta | None = None

    def add(self, delta: Delta) -> None:
        self._texts.append(delta.text)
        self._token_ids += delta.token_ids
        self._logprobs += delta.logprobs
        self._offsets += delta.offsets
        self._last = delta

    def whole(self) -> Delta:
        """All deltas as one; there must be at least one."""
        assert self._last is not None
        return replace(
            self._last,
            text="".join(self._texts),
            token_ids=self._token_ids,
            logprobs=self._logprobs,
            offsets=self._offsets,
        )


class ChoiceOutput:
    """A completion in the making.

    Attributes:
        uncertainty: that of its tokens, as far as they have log-probabilities.

    Args:
        index: its place among the answer's choices.
        prompt_token_ids: context for the first tokens' text; not part of the output.
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        options: TextOptions,
    ) -> None:
        self.index = index
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.text = ""
        self._options = options
        self._detokenizer = IncrementalDetokenizer(
            tokenizer,
            prompt_token_ids,
            skip_special_tokens=options.skip_special_tokens,
            kept=options.kept_special_tokens,
        )
        self._stop = StopMatcher(options.stop, include=options.include_stop)
        self.uncertainty = TokenUncertainty(options.uncertain_below)
        self._repetition: Repetition | None = None
        self._token_by_token = bool(options.stop) or options.offsets or options.tells_ranges
        self._num_chars = 0
        self._starts: list[int] = []
        """Characters before each token, if ranges will be reported; at the end, all characters."""
        self._num_shown = 0
        """Number of characters in all deltas so far."""

    def add(self, event: TokenEvent) -> Delta:
        """Take an event; a stop string in its text ends the completion at once."""
        delta = Delta(self.index, "", event.token_ids, event.logprobs or [])
        num_shown = len(event.token_ids)
        if event.finish_reason is FinishReason.STOP and not self._options.include_stop:
            # The engine stops only at a token: end-of-sequence or one of stop_token_ids.
            num_shown -= 1
        if self._token_by_token:
            self._add_one_by_one(delta, num_shown)
        else:
            self.num_tokens += len(event.token_ids)
            delta.text = self._detokenizer.add(event.token_ids[:num_shown])
        if self.finish_reason is None and event.finish_reason is not None:
            self._finish(delta, event)
        self._num_shown += len(delta.text)
        self.uncertainty.add(delta.logprobs)
        self._repetition = event.repetition or self._repetition
        if self.finish_reason is not None:
            self._tell_signals(delta)
        if self._options.keep_text:
            self.text += delta.text
        return delta

    def _add_one_by_one(self, delta: Delta, num_shown: int) -> None:
        for position, token_id in enumerate(delta.token_ids):
            self.num_tokens += 1
            if self._options.offsets:
                delta.offsets.append(self._num_chars)
            if self._options.tells_ranges:
                self._starts.append(self._num_chars)
            if position < num_shown:
                delta.text += self._checked(self._detokenizer.add((token_id,)))
            if self._stop.matched is not None:
                delta.token_ids = delta.token_ids[: position + 1]
                delta.logprobs = delta.logprobs[: position + 1]
                self._end(delta, FinishReason.STOP, self._stop.matched)
                return

    def _checked(self, text: str) -> str:
        """The part of new text that may go out: nothing that could be part of a stop string."""
        self._num_chars += len(text)
        return text if self.num_tokens <= self._options.min_tokens else self._stop.add(text)

    def _finish(self, delta: Delta, event: TokenEvent) -> None:
        assert event.finish_reason is not None
        delta.text += self._checked(self._detokenizer.finish())
        if self._stop.matched is not None:
            self._end(delta, FinishReason.STOP, self._stop.matched)
        else:
            delta.text += self._stop.finish()
            self._end(delta, event.finish_reason, event.stop_token_id)

    def _tell_signals(self, delta: Delta) -> None:
        self._starts.append(self._num_chars)
        if self._options.uncertain_below is not None:
            delta.uncertainty = self.uncertainty.answer(self._characters)
        found = self._repetition
        if found is not None and found.start < self.num_tokens:
            end = min(found.start + found.num_tokens, self.num_tokens)
            delta.repetition = RepetitionReport(
                found.pattern_size, [found.start, end], self._characters(found.start, end)
            )

    def _characters(self, first: int, end: int) -> list[int]:
        """The position of a range of tokens in the text, as far as the text is shown."""
        return [min(self._starts[place], self._num_shown) for place in (first, end)]

    def _end(self, delta: Delta, reason: FinishReason, cause: str | int | None) -> None:
        self.finish_reason = delta.finish_reason = reason
        delta.stop_reason = cause
