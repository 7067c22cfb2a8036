"""The sampler: from a step's logits to one token per row.

Owns the per-sequence sampling state; the model runner calls it on the loop thread. Rows of one call
belong to different requests with different parameters, and a row's token depends on nothing but its
own logits, history and random key:

    logits → processors → finite? → support (tokens and weights) → draw(seed, index, position)

`engine.llm.support` groups rows by what they need, `engine.llm.truncation` has the maths, and
`engine.llm.sampling_reference` is the slow twin.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.errors import InvariantViolation
from engine.llm import truncation
from engine.llm.decision import NewSequence
from engine.llm.logits_processors import (
    LogitBias,
    MinTokens,
    Penalties,
    ProcessorChain,
    SampleRow,
)
from engine.llm.logprobs import LaunchedScores, launch_logprobs, token_logprobs
from engine.llm.random_bits import uniforms
from engine.llm.support import Support, SupportFinder
from engine.types import SamplingParams, TokenLogprob
from kernels.transfer import HostCopy, to_device

__all__ = ["LaunchedDraw", "SampleRow", "SampledToken", "Sampler"]


@dataclass(slots=True)
class SampledToken:
    """One row's outcome: a token, or why there is none."""

    token_id: int
    """-1 with an error."""
    logprob: TokenLogprob | None = None
    """When the request asks for log-probabilities."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class LaunchedDraw:
    """One call's tokens: on the device at once, on the host when they are collected."""

    token_ids: Tensor
    """[R] int64, all in the vocabulary: 0 where a row failed."""
    finish: Callable[[], list[SampledToken]]

    def collect(self) -> list[SampledToken]:
        """Wait for the tokens and take them into the rows' histories; to be called once."""
        return self.finish()


@dataclass(slots=True)
class _State:
    params: SamplingParams
    seed: int
    index: int


class Sampler:
    """Chooses tokens for all sequences of one model. Loop thread only; keeps no random state."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._finder = SupportFinder(vocab_size, device)
        self._states: dict[int, _State] = {}
        self._processors = ProcessorChain(
            (Penalties(vocab_size), LogitBias(vocab_size), MinTokens(vocab_size))
        )

    def add(self, sequence: NewSequence) -> None:
        """Start a sequence's state; an old one under the same id is replaced."""
        self.remove(sequence.seq_id)
        params = sequence.sampling
        self._states[sequence.seq_id] = _State(params, sequence.seed, sequence.index)
        self._processors.add(sequence)

    def remove(self, seq_id: int) -> None:
        """Drop a sequence's state; unknown ids are fine."""
        self._states.pop(seq_id, None)
        self._processors.remove(seq_id)

    def sample(self, logits: torch.Tensor, rows: Sequence[SampleRow]) -> list[SampledToken]:
        """Launch and collect."""
        return self.launch(logits, rows).collect() if rows else []

    @torch.inference_mode()
    def launch(self, logits: torch.Tensor, rows: Sequence[SampleRow]) -> LaunchedDraw:
        """Draw each row's token at its position; `collect` takes it into the row's history.

        A row whose logits hold NaN or +infinity, or that has no possible token, gets an error; the
        others are unaffected. Sampling a position again forgets the tokens from there on.

        Args:
            logits: [R, V] of any float dtype and layout. Not changed.
            rows: R rows, at least one, each of another sequence that was added.

        Raises:
            InvariantViolation: an unknown sequence, a position beyond its history, a wrong shape.
        Cost: a wait for the device, one more per method that looks for long nuclei.
        """
        states = self._states_of(logits, rows)
        tokens, errors = self._draw_all(logits, rows, states)
        on_host = HostCopy(tokens)
        scored, scores = self._launch_logprobs(logits, tokens, states, errors)

        def finish() -> list[SampledToken]:
            sampled = [
                SampledToken(token_id if error is None else -1, error=error)
                for token_id, error in zip(on_host.wait().tolist(), errors, strict=True)
            ]
            for row, token in zip(rows, sampled, strict=True):
                if token.error is None:
                    self._processors.advance(row, token.token_id)
            if scores is not None:
                for i, score in zip(scored, scores.collect(), strict=True):
                    sampled[i].logprob = score
            return sampled

        return LaunchedDraw(tokens, finish)

    @torch.inference_mode()
    def probabilities(self, logits: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
        """What `sample` draws from, [R, V] fp64; a row that would get an error is all zeros.

        Same arguments as `sample`. Changes no history, except that it forgets tokens at and after
        a row's position as `sample` does.
        """
        result = torch.zeros(len(rows), self._vocab_size, dtype=torch.float64, device=self._device)
        if not rows:
            return result
        states = self._states_of(logits, rows)
        work, peaks, errors = self._prepare(logits, rows)
        for support in self._supports(work, peaks, states, errors):
            weights = support.weights.to(torch.float64)
            weights /= weights.sum(-1, keepdim=True)
            part = torch.zeros_like(result[: len(support.rows)])
            if support.ids is None:
                part.copy_(weights[:, : self._vocab_size])
            else:
                part.scatter_(1, support.ids, weights)
            result[support.rows] = part
        return result

    @torch.inference_mode()
    def score(self, logits: torch.Tensor, targets: list[int], num_top: int) -> list[TokenLogprob]:
        """Log-probabilities of given tokens, such as a prompt's.

        Args:
            logits: [P, V] of any float dtype; row i judges targets[i].
            targets: P token ids.
            num_top: alternatives per token.

        Raises:
            InternalError: non-finite logits.
        """
        return token_logprobs(logits, targets, [num_top] * len(targets))

    def _states_of(self, logits: Tensor, rows: Sequence[SampleRow]) -> list[_State]:
        if logits.shape != (len(rows), self._vocab_size):
            raise InvariantViolation(
                f"logits have shape {tuple(logits.shape)} for {len(rows)} rows of "
                f"{self._vocab_size} tokens"
            )
        try:
            return [self._states[row.seq_id] for row in rows]
        except KeyError as error:
            raise InvariantViolation(f"sequence {error} was never added, or is finished") from None

    def _draw_all(
        self, logits: Tensor, rows: Sequence[SampleRow], states: Sequence[_State]
    ) -> tuple[Tensor, list[str | None]]:
        work, peaks, errors = self._prepare(logits, rows)
        numbers = torch.from_numpy(
            uniforms(
                [state.seed for state in states],
                [state.index for state in states],
                [row.position for row in rows],
            )
        ).to(self._device)
        tokens = torch.zeros(len(rows), dtype=torch.int64, device=self._device)
        for support in self._supports(work, peaks, states, errors):
            places = self._places(support.rows)
            tokens[places] = support.token_ids(truncation.draw(support.weights, numbers[places]))
        return tokens, errors

    def _prepare(
        self, logits: Tensor, rows: Sequence[SampleRow]
    ) -> tuple[Tensor, Tensor, list[str | None]]:
        """Processed fp32 logits [R, V], their maxima [R, 1], and which rows cannot go on."""
        touched = self._processors.touches(rows)
        work = logits.to(torch.float32, copy=touched).contiguous()
        peaks = work.amax(-1, keepdim=True)
        errors: list[str | None] = [
            None if fine else "the model gave non-finite logits" for fine in _finite(peaks)
        ]
        if touched:
            self._processors.apply(work, rows)
            peaks = work.amax(-1, keepdim=True)
            errors = [
                error or (None if fine else "penalties, bias and min_tokens leave no token")
                for error, fine in zip(errors, _finite(peaks), strict=True)
            ]
        return work, peaks, errors

    def _supports(
        self,
        work: Tensor,
        peaks: Tensor,
        states: Sequence[_State],
        errors: Sequence[str | None],
    ) -> Iterator[Support]:
        """Supports that together cover each row without error once."""
        rows = [row for row, error in enumerate(errors) if error is None]
        return self._finder.find(work, peaks, [state.params for state in states], rows)

    def _launch_logprobs(
        self,
        logits: Tensor,
        tokens: Tensor,
        states: Sequence[_State],
        errors: Sequence[str | None],
    ) -> tuple[list[int], LaunchedScores | None]:
        """The rows that get log-probabilities, and those on their way."""
        num_top = {
            i: wanted
            for i, (state, error) in enumerate(zip(states, errors, strict=True))
            if (wanted := state.params.logprobs) is not None and error is None
        }
        rows = list(num_top)
        if not rows:
            return rows, None
        if len(rows) < len(logits):
            places = self._places(rows)
            logits, tokens = logits[places], tokens[places]
        return rows, launch_logprobs(logits, tokens, list(num_top.values()))

    def _places(self, rows: list[int]) -> Tensor:
        return to_device([np.array(rows, dtype=np.int64)], self._device)[0]


def _finite(peaks: Tensor) -> list[bool]:
    """Whether each row's maximum is a number. NaN and +infinity win every maximum."""
    return peaks.isfinite().squeeze(1).tolist()
