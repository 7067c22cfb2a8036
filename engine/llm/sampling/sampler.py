"""The sampler: turns a step's logits into one token per row.

It owns the sampling state of each sequence; the model runner calls it on the loop thread. The rows
of one call belong to different requests with different parameters. A row's token depends only on
its own logits, history and random key:

    processors → edits ┐
    parameters, key ───┴→ kernels.sample_tokens(logits) → tokens → kernels.score_tokens(logits)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.contract.generate import TokenLogprob
from engine.contract.sampler_order import without_unlisted
from engine.contract.sampling_params import SAMPLER_PARAMETERS
from engine.errors import EngineError, InvalidParameter, InvariantViolation
from engine.llm.decision import NewSequence, SampleRow
from engine.llm.sampling.dry import Dry
from engine.llm.sampling.forbidden_tokens import BadWords, ForbiddenTokens
from engine.llm.sampling.logits_processors import LogitBias, MinTokens, Penalties, ProcessorChain
from engine.llm.sampling.logprobs import LaunchedScores, launch_logprobs, token_logprobs
from engine.llm.sampling.mirostat import Mirostat
from engine.llm.structure.grammars import Grammars
from engine.llm.structure.mask import StructureMask
from kernels import EditLists, SamplingRows, sample_tokens
from kernels.sample_tokens import NOT_FINITE, PARAMETERS, in_order, packed_row, reference
from kernels.shared.transfer import HostCopy, to_device

__all__ = ["LaunchedDraw", "SampleRow", "SampledToken", "Sampler"]

_NO_TOKEN_LEFT = (
    "no token may follow the text so far: together, the request's allowed_token_ids, bad_words, "
    "min_tokens and structured output forbid them all; relax one of them"
)

_BESIDE_MIROSTAT = without_unlisted({}, ("penalties", "dry", "temperature"))
"""Parameter values with which no sampling step leaves tokens out."""
_IN_ROWS = frozenset(name for name, one in SAMPLER_PARAMETERS.items() if not one.on_host)
if unlike := _IN_ROWS ^ PARAMETERS:
    raise InvariantViolation(f"the sampler's table and its kernels differ in {sorted(unlike)}")


@dataclass(slots=True)
class SampledToken:
    """One row's outcome: a token, or why there is none."""

    token_id: int
    """The token id, or -1 with an error."""
    logprob: TokenLogprob | None = None
    """The token's log-probabilities, if the request asks for them."""
    forced: list[int] = field(default_factory=list)
    """Tokens that are certain to follow."""
    error: EngineError | str | None = None
    """Why there is no token: an error if the request itself caused it, otherwise a message."""


@dataclass(frozen=True, slots=True)
class LaunchedDraw:
    """The tokens of one call: on the device at once, on the host when they are collected."""

    token_ids: Tensor
    """Shape [R], int64, all in the vocabulary; 0 where a row failed."""
    finish: Callable[[], list[SampledToken | None]]

    def collect(self) -> list[SampledToken | None]:
        """Wait for the tokens and add them to the rows' histories. To be called once.

        Returns:
            For each row its token, or None for a void row. A row is void if it follows a draft that
            was not drawn, or if its structure is not ready; it must be computed again.
        """
        return self.finish()


@dataclass(slots=True)
class _State:
    knobs: NDArray[np.int64]
    """The parameters, packed by `packed_row`."""
    logprobs: int | None
    order: tuple[str, ...] | None
    """The order of its sampling steps, if it is not the usual one."""


class Sampler:
    """Chooses tokens for all sequences of one model, on the loop thread only. It keeps no random
    state.

    Args:
        never: tokens that no sequence may draw.
    """

    def __init__(
        self,
        vocab_size: int,
        device: torch.device,
        grammars: Grammars | None = None,
        *,
        never: tuple[int, ...] = (),
    ) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._structures = StructureMask(vocab_size, grammars)
        self._mirostat = Mirostat()
        self._states: dict[int, _State] = {}
        self._processors = ProcessorChain(
            (
                Penalties(vocab_size),
                Dry(vocab_size),
                LogitBias(vocab_size),
                MinTokens(vocab_size),
                ForbiddenTokens(vocab_size, never),
                BadWords(vocab_size),
                self._mirostat,
                self._structures,
            )
        )

    def add(self, sequence: NewSequence) -> None:
        """Create a sequence's state; an old one under the same id is replaced."""
        self.remove(sequence.seq_id)
        params = sequence.sampling
        values = {name: getattr(params, name) for name in _IN_ROWS}
        if params.mirostat:
            values |= _BESIDE_MIROSTAT
        knobs = packed_row(**values, seed=sequence.seed, index=sequence.index)
        self._states[sequence.seq_id] = _State(knobs, params.logprobs, params.order)
        self._processors.add(sequence)

    def remove(self, seq_id: int) -> None:
        """Drop a sequence's state; unknown ids are ignored."""
        self._states.pop(seq_id, None)
        self._processors.remove(seq_id)

    def sample(self, logits: torch.Tensor, rows: Sequence[SampleRow]) -> list[SampledToken | None]:
        """Launch and collect."""
        return self.launch(logits, rows).collect() if rows else []

    @torch.inference_mode()
    def launch(self, logits: torch.Tensor, rows: Sequence[SampleRow]) -> LaunchedDraw:
        """Draw each row's token at its position; `collect` adds it to the row's history.

        A row whose logits hold NaN or +infinity, or that has no possible token, gets an error;
        other rows are not affected. Sampling a position again forgets the tokens from there on.

        Args:
            logits: shape [R, V], any float dtype and layout; not changed.
            rows: R rows, at least one, of sequences that were added. Rows of one sequence are
                adjacent, at consecutive positions, the later ones with their drafts.

        Raises:
            InvariantViolation: an unknown sequence, a position beyond its history, a wrong shape.
        Cost: no wait for the device, unless a row's steps have an order of their own.
        """
        states = self._states_of(logits, rows)
        drawn = sample_tokens(*self._to_draw(logits, states, rows))
        token_ids, errors = HostCopy(drawn.token_ids), HostCopy(drawn.errors)
        are_read = [self._mirostat.reads(row) for row in rows]
        masses = HostCopy(drawn.masses) if any(are_read) else None
        scored = [i for i, state in enumerate(states) if state.logprobs is not None]
        scores = self._launch_logprobs(logits, drawn.token_ids, states, scored)

        def finish() -> list[SampledToken | None]:
            sampled = _without_void(
                rows,
                [
                    self._sampled(row, token_id, error)
                    for row, token_id, error in zip(
                        rows, token_ids.wait().tolist(), errors.wait().tolist(), strict=True
                    )
                ],
            )
            for row, token in zip(rows, sampled, strict=True):
                if token is not None and token.error is None:
                    self._processors.advance(row, token.token_id)
                    token.forced = self._structures.forced(row)
            if masses is not None:
                self._observe(rows, sampled, are_read, masses.wait().tolist())
            for i, score in zip(scored, scores.collect(), strict=True):
                token = sampled[i]
                if token is not None and token.error is None:
                    token.logprob = score
            return sampled

        return LaunchedDraw(drawn.token_ids, finish)

    @torch.inference_mode()
    def probabilities(self, logits: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
        """Compute the probabilities that `sample` draws from, [R, V] fp64, by the operation's
        reference; for tests.

        A row that would get an error is all zeros. The arguments are those of `sample`. No history
        changes, except that tokens at and after a row's position are forgotten, as in `sample`.
        """
        to_draw = self._to_draw(logits, self._states_of(logits, rows), rows)
        weights = reference.weights(*to_draw).to(torch.float64)
        return weights / weights.sum(-1, keepdim=True).clamp(min=1.0)

    @torch.inference_mode()
    def score(self, logits: torch.Tensor, targets: list[int], num_top: int) -> list[TokenLogprob]:
        """Compute the log-probabilities of given tokens, such as a prompt's.

        Args:
            logits: shape [P, V], any float dtype; row i scores targets[i].
            targets: P token ids.
            num_top: the number of alternatives per token.

        Raises:
            InternalError: non-finite logits.
        """
        return token_logprobs(logits, targets, [num_top] * len(targets))

    def _observe(
        self,
        rows: Sequence[SampleRow],
        sampled: Sequence[SampledToken | None],
        are_read: Sequence[bool],
        masses: Sequence[tuple[int, int]],
    ) -> None:
        for row, token, is_read, (mass, total) in zip(rows, sampled, are_read, masses, strict=True):
            if is_read and token is not None and token.error is None:
                self._mirostat.observe(row, mass, total)

    def _sampled(self, row: SampleRow, token_id: int, error: int) -> SampledToken | None:
        if not error:
            return SampledToken(token_id)
        if error == NOT_FINITE:
            return SampledToken(-1, error="the model gave non-finite logits")
        if self._structures.waits(row):
            return None
        own_fault = self._structures.error(row.seq_id) or InvalidParameter(_NO_TOKEN_LEFT)
        return SampledToken(-1, error=own_fault)

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

    def _to_draw(
        self, logits: Tensor, states: Sequence[_State], rows: Sequence[SampleRow]
    ) -> tuple[Tensor, SamplingRows]:
        """Make the arguments of `sample_tokens`."""
        edits = EditLists()
        self._processors.edit(edits, rows)
        knobs, positions = [state.knobs for state in states], [row.position for row in rows]
        parameters = SamplingRows.from_host(knobs, positions, edits, self._device)
        orders = {i: state.order for i, state in enumerate(states) if state.order is not None}
        return in_order(logits, parameters, orders) if orders else (logits, parameters)

    def _launch_logprobs(
        self, logits: Tensor, tokens: Tensor, states: Sequence[_State], rows: list[int]
    ) -> LaunchedScores:
        """Start to score the tokens of these rows; no others are asked for."""
        if len(rows) < len(logits):
            places = to_device([np.array(rows, dtype=np.int64)], self._device)[0]
            logits, tokens = logits[places], tokens[places]
        return launch_logprobs(logits, tokens, [states[i].logprobs or 0 for i in rows])


def _without_void(
    rows: Sequence[SampleRow], sampled: Sequence[SampledToken | None]
) -> list[SampledToken | None]:
    """Replace by None what was drawn after a draft that was not drawn itself."""
    kept: list[SampledToken | None] = []
    for row, token in zip(rows, sampled, strict=True):
        before = kept[-1] if row.draft is not None else None
        follows = row.draft is None or (before is not None and before.token_id == row.draft)
        kept.append(token if follows else None)
    return kept
