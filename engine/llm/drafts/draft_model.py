"""A second model that guesses how texts continue (Leviathan et al. 2023, arXiv:2211.17192).

It reads what it has not seen of a text yet, then takes a decode step per guessed token, for all
drafting sequences together. It has its own blocks, but a sequence's sampling parameters and random
numbers are those of the main model. A token is drawn with its position's random number, so both
models draw the same one wherever they agree well enough, at any temperature (coupled sampling,
Daliri et al. 2024, arXiv:2408.07978). Settings that depend on the text or name tokens (penalties,
biases, structures) do not apply to it: there the main model rejects wrong guesses.

    text        [ read before | read now ]                        the last known token included
    step 1                      ───────── → d1
    step 2                                  d1 → d2
    step 3                                       d2 → d3           and the model judges d1 d2 d3
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import structlog

from engine.contract.resolved_config import ResolvedConfig
from engine.llm.cost.step_budget import LEAST_TOKENS, Price
from engine.llm.cost.step_cost import StepWork
from engine.llm.decision import ScheduledSequence, SequenceOutput
from engine.llm.drafts.draft_cache import DraftCache, ReadText
from engine.llm.drafts.draft_length import AcceptanceRate, best_length
from engine.llm.drafts.draft_steps import DraftSteps
from engine.llm.drafts.price_trials import RETRY_AFTER, PriceTrials
from engine.llm.executor import Executor
from engine.llm.request import Sequence as RunningSequence
from engine.runtime.fault import raise_if_poisoned

HIGHEST_ROW_PRICE = 0.25
"""The highest price of a row of the main model at which anyone drafts, in accepted tokens, as for
lookup drafts."""
HIGHEST_PRICE = 0.5
"""The highest price of a drafted token, its row included, at which anyone drafts."""
FEW_TOKENS = 8
"""Up to this many unread tokens are computed like decodes; more are read like a prompt."""
LONGEST_READING = 0.25
"""The most that reading an unread text may cost, as a share of the tokens that may still come."""
FAILURE_PAUSE = 256
"""The number of steps without drafts after an error."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Record:
    """A record of how a sequence's drafts went."""

    rate: AcceptanceRate
    num_idle: int = 0
    """The number of steps in which a draft would not have been worth its price."""
    is_given_up: bool = False
    """Whether the draft model cannot read the text."""


@dataclass(slots=True)
class _Draft:
    """A draft in the making."""

    sequence: RunningSequence
    text: ReadText
    num_wanted: int
    """The number of draws, those of pending tokens included."""
    drawn: list[int] = field(default_factory=list)
    is_over: bool = False
    """Whether nothing can follow what was drawn."""

    @property
    def goes_on(self) -> bool:
        return not self.is_over and len(self.drawn) < self.num_wanted


class DraftModel:
    """The `engine.llm.drafts.drafter.Drafter` that guesses with a draft model.

    Args:
        config: the main model's configuration, with the draft model's own cache and longest text.
        executor: the draft model's executor.
        windows: how far each group of its layers looks back.
        vocab_size: the draft model cannot read token ids at or above this.
        target_vocab_size: the main model cannot read token ids at or above this.
        clock: `time.perf_counter`, or a test's own.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        executor: Executor,
        *,
        windows: tuple[int | None, ...],
        vocab_size: int,
        target_vocab_size: int,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._config = config
        self._windows = windows
        self._vocab_size = vocab_size
        self._target_vocab_size = target_vocab_size
        self._steps = DraftSteps(executor, clock)
        self._cache = DraftCache(config, windows)
        self._records: dict[int, _Record] = {}
        self._rate = AcceptanceRate()
        """The rate over all sequences; new sequences start with it."""
        self._trials = PriceTrials()
        self._pause = 0

    @property
    def num_blocks_used(self) -> int:
        """Blocks of its cache that unfinished texts hold."""
        return self._cache.num_blocks_used

    def may_draft(self, decodes: Iterable[RunningSequence]) -> bool:
        """See `Drafter`."""
        return any(self._can_draft(sequence) for sequence in decodes)

    def draft(
        self, decodes: Sequence[RunningSequence], num_rows: int, price: Price
    ) -> list[tuple[RunningSequence, list[int]]]:
        """See `Drafter`. An error of the draft model fails no request; it only stops drafts for a
        while.

        Raises:
            Exception: the device is poisoned.
        """
        if self._pause:
            self._pause -= 1
            return []
        try:
            found = self._draft(decodes, num_rows, price)
        except Exception as error:
            raise_if_poisoned(error)
            log.exception(
                "the draft model failed; the next steps run without drafts", steps=FAILURE_PAUSE
            )
            self._start_over()
            return []
        if self._config.debug_invariants:
            self._cache.check_invariants()
        return found

    def learn(self, sequence: RunningSequence, num_drafts: int, num_accepted: int) -> None:
        """See `Drafter`."""
        self._rate.learn(num_drafts, num_accepted)
        self._record_of(sequence).rate.learn(num_drafts, num_accepted)

    def forget(self, sequence: RunningSequence) -> None:
        """See `Drafter`: its blocks are free at once."""
        self._records.pop(sequence.seq_id, None)
        self._cache.close(sequence.seq_id)
        self._steps.forget(sequence.seq_id)

    def _can_draft(self, sequence: RunningSequence) -> bool:
        record = self._records.get(sequence.seq_id)
        return sequence.num_draftable > 0 and (record is None or not record.is_given_up)

    def _record_of(self, sequence: RunningSequence) -> _Record:
        record = self._records.get(sequence.seq_id)
        if record is None:
            rate = AcceptanceRate(self._rate.value)
            record = self._records[sequence.seq_id] = _Record(rate)
        return record

    def _draft(
        self, decodes: Sequence[RunningSequence], num_rows: int, price: Price
    ) -> list[tuple[RunningSequence, list[int]]]:
        wanted = self._lengths(decodes, num_rows, price)
        drafts = self._read(wanted, price)
        while going := [draft for draft in drafts if draft.goes_on]:
            self._guess(going)
        for draft in drafts:
            draft.text.guesses = draft.drawn
        of_all = [(draft.sequence, draft.drawn[draft.sequence.num_pending :]) for draft in drafts]
        return [(sequence, tokens) for sequence, tokens in of_all if tokens]

    def _lengths(
        self, decodes: Sequence[RunningSequence], num_rows: int, price: Price
    ) -> dict[RunningSequence, int]:
        """The number of tokens to draft, at least one, for each sequence that is to draft."""
        able = [sequence for sequence in decodes if self._can_draft(sequence)]
        if not able or price.row > HIGHEST_ROW_PRICE:
            return {}
        is_dear = self._each(able, price) > HIGHEST_PRICE
        self._trials.note(is_dear=is_dear)
        lengths = {} if is_dear else self._best_lengths(able, price)
        if self._trials.is_on:  # the shortest text: it has most room and least to read
            lengths[min(able, key=lambda one: one.num_known)] = 1
        for sequence in able:
            record = self._record_of(sequence)
            record.num_idle = 0 if sequence in lengths else record.num_idle + 1
            if record.num_idle > RETRY_AFTER and not is_dear:
                record.num_idle, lengths[sequence] = 0, 1
        wanted = {}
        for sequence, best in lengths.items():
            room = self._config.max_model_len - sequence.num_known
            length = min(best, sequence.num_draftable, num_rows, room)
            if length > 0:
                wanted[sequence] = length
                num_rows -= length
        return wanted

    def _best_lengths(
        self, able: list[RunningSequence], price: Price
    ) -> dict[RunningSequence, int]:
        """The best draft lengths of those sequences for which drafting pays if only they share the
        draft model's steps."""
        most = self._config.num_speculative_tokens
        while able and (each := self._each(able, price)) <= HIGHEST_PRICE:
            rates = {sequence: self._record_of(sequence).rate.value for sequence in able}
            lengths = {one: best_length(rate, each, most) for one, rate in rates.items()}
            willing = [sequence for sequence in able if lengths[sequence]]
            if len(willing) == len(able):
                return lengths
            able = willing
        return {}

    def _each(self, able: Sequence[RunningSequence], price: Price) -> float:
        """The price of a drafted token if these sequences draft: its row, and its part of a draft
        step, which delays everybody."""
        if not self._steps.cost.is_known:
            return price.row
        step_s = self._steps.cost.predict(StepWork.of_decodes(one.num_known for one in able))
        return price.row + step_s * price.second / len(able)

    def _read(self, wanted: dict[RunningSequence, int], price: Price) -> list[_Draft]:
        """Read what is new in the texts, as far as that takes no longer than the step that waits
        for it. Returns the drafts of fully read texts, with a first token each."""
        kept = {sequence.seq_id for sequence in wanted}
        room = LEAST_TOKENS
        if self._steps.cost.is_known:
            room = max(room, self._steps.cost.prompt_tokens_in(price.step_s, 0))
        room = min(room, self._config.max_num_batched_tokens)
        shares, starts, drafts = [], [], []
        for sequence, length in wanted.items():
            text = self._cache.open(sequence)
            missing = text.rewind(sequence.token_ids)
            start = text.table.num_tokens
            token_ids = sequence.token_ids[start : start + min(missing, room)]
            if not token_ids or not self._is_worth_reading(sequence, missing, price):
                continue
            if max(token_ids) >= self._vocab_size:
                self._give_up(sequence)
                continue
            is_whole = len(token_ids) == missing
            num_draws = sequence.num_pending + length if is_whole else 0
            if not self._cache.reserve(text, start + len(token_ids) + max(0, num_draws - 1), kept):
                continue
            room -= len(token_ids)
            text.num_read = start + len(token_ids)
            starts.append((sequence, start))
            shares.append(self._share(sequence, text, token_ids, 0, draws=is_whole))
            if is_whole:
                drafts.append(_Draft(sequence, text, num_draws))
        outcomes = self._steps.run(shares, self._cache.take_copies())
        for sequence, start in starts:
            self._cache.note_computed(sequence, start)
        for draft in drafts:
            self._take(draft, outcomes[draft.sequence.seq_id])
        return drafts

    def _is_worth_reading(self, sequence: RunningSequence, missing: int, price: Price) -> bool:
        if missing <= FEW_TOKENS or not self._steps.cost.is_known or self._trials.is_on:
            return True
        start = len(sequence.token_ids) - missing
        pairs = missing * (start + missing / 2)
        seconds = self._steps.cost.predict(StepWork(num_prompt_tokens=missing, num_pairs=pairs))
        return seconds * price.second <= LONGEST_READING * sequence.num_to_come

    def _guess(self, drafts: Sequence[_Draft]) -> None:
        """Draw one more token for each draft."""
        shares = [
            self._share(one.sequence, one.text, one.drawn[-1:], len(one.drawn)) for one in drafts
        ]
        outcomes = self._steps.run(shares, self._cache.take_copies())
        for draft in drafts:
            self._take(draft, outcomes[draft.sequence.seq_id])

    def _take(self, draft: _Draft, outcome: SequenceOutput) -> None:
        if not outcome.token_ids:  # the model's numbers are not finite
            self._give_up(draft.sequence)
            draft.drawn, draft.is_over = [], True
            return
        [token_id] = outcome.token_ids
        if token_id in draft.sequence.owner.ends or token_id >= self._target_vocab_size:
            draft.is_over = True
        else:
            draft.drawn.append(token_id)

    def _share(
        self,
        sequence: RunningSequence,
        text: ReadText,
        token_ids: list[int],
        num_drawn: int,
        *,
        draws: bool = True,
    ) -> ScheduledSequence:
        """Make a sequence's share of a step. Its blocks are reserved, and its tokens count as
        computed from now on."""
        start = text.table.num_tokens
        end = start + len(token_ids)
        share = ScheduledSequence(
            seq_id=sequence.seq_id,
            token_ids=token_ids,
            start=start,
            blocks=text.blocks(-(-end // self._config.block_size)),
            num_draws=int(draws),
            num_output_tokens=sequence.num_output_tokens + num_drawn,
            is_apart=len(token_ids) <= FEW_TOKENS,
        )
        text.table.advance(end)
        self._steps.announce(sequence)
        return share

    def _give_up(self, sequence: RunningSequence) -> None:
        self._record_of(sequence).is_given_up = True
        self._cache.close(sequence.seq_id)

    def _start_over(self) -> None:
        self._pause = FAILURE_PAUSE
        self._cache = DraftCache(self._config, self._windows)
        self._steps.start_over()
