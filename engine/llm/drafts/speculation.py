"""Speculation by lookup, in the text itself and in ended ones: decides whose next tokens are
guessed, and how many.

One more row is cheap while reading the weights takes most of a step, and a loss once computing rows
does. A draft therefore has a price: its rows, in tokens that the step would have brought in the
same time, as learned by `engine.llm.cost.step_budget`. Its expected gain is what similar guesses
have brought to all texts of the worker (`engine.llm.drafts.guess_rates`), and its length is the
best at that price. A guess that is not worth drafting is still compared with the real text, which
costs no row. Nothing is therefore drafted as a trial, and a text that begins to copy gets drafts
after a token or two.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from engine.contract.resolved_config import ResolvedConfig
from engine.llm.cost.step_budget import Price
from engine.llm.drafts.draft_length import best_length_by
from engine.llm.drafts.guess_rates import GuessRates
from engine.llm.drafts.prompt_lookup import PromptLookup
from engine.llm.drafts.shared_lookup import SharedLookup
from engine.llm.request import Sequence as RunningSequence

HIGHEST_PRICE = 0.25
"""The highest price of a row, in accepted tokens; above it nobody drafts and nothing is looked
up."""
LEAST_GAIN = 1.02
"""A draft must bring at least this many times the tokens that steps without drafts bring in the
same time, because prices and rates are not exact."""
INDEXED_PER_STEP = 1024
"""The number of places that all indexes together grow by in a step: about half a millisecond."""


@dataclass(slots=True)
class _Record:
    """What has been guessed for a sequence."""

    lookup: PromptLookup
    rates: GuessRates
    """The rates of guesses like the last one."""
    guess: Sequence[int] = ()
    """The tokens that were expected to follow."""
    start: int = 0
    """The number of tokens that the text had then."""
    num_right: int = 0
    """The number of right guesses in a row."""


class Speculation:
    """Drafts for the sequences of one engine, as an `engine.llm.drafts.drafter.Drafter`. A
    sequence's own text is searched first, then those of others."""

    def __init__(self, config: ResolvedConfig) -> None:
        self._config = config
        self._most_drafts = config.num_speculative_tokens
        self._records: dict[int, _Record] = {}
        """Records by sequence id."""
        self._own_rates, self._shared_rates = GuessRates(), GuessRates()
        self._shared: SharedLookup | None = None
        if config.shared_lookup_tokens:
            self._shared = SharedLookup(config.shared_lookup_tokens, config.prompt_lookup_min)

    def may_draft(self, decodes: Iterable[RunningSequence]) -> bool:
        """See `Drafter`."""
        return True

    def draft(
        self, decodes: Sequence[RunningSequence], num_rows: int, price: Price
    ) -> Iterator[tuple[RunningSequence, list[int]]]:
        """See `Drafter`. If rows are scarce, the first sequences get them."""
        if price.row > HIGHEST_PRICE:
            return
        num_places = INDEXED_PER_STEP
        if self._shared is not None:
            num_places -= self._shared.read(num_places)
        for sequence in decodes:
            if sequence.num_draftable <= 0:
                continue
            record = self._record_of(sequence)
            num_places -= record.lookup.extend(sequence.token_ids, num_places)
            _judge(record, sequence.token_ids)
            self._guess(record, sequence)
            drafts = self._worth(record, sequence, num_rows, price)
            if drafts:
                num_rows -= len(drafts)
                yield sequence, drafts

    def learn(self, sequence: RunningSequence, num_drafts: int, num_accepted: int) -> None:
        """See `Drafter`. Nothing is learned here, because the text shows it anyway."""

    def forget(self, sequence: RunningSequence) -> None:
        """See `Drafter`. The text is kept, as it may occur again."""
        record = self._records.pop(sequence.seq_id, None)
        if record is not None:
            _judge(record, sequence.token_ids)
        if self._shared is not None and sequence.num_output_tokens > 0:
            first = max(0, sequence.num_prompt_tokens - self._config.prompt_lookup_min)
            self._shared.add(sequence.owner.chain_root, sequence.token_ids[first:])

    def _guess(self, record: _Record, sequence: RunningSequence) -> None:
        """Look up what may follow the known tokens, one token more than could be drafted."""
        token_ids = sequence.token_ids
        record.start, record.guess = len(token_ids), ()
        if record.lookup.num_indexed < len(token_ids):
            return
        num_tokens = sequence.num_pending + self._most_drafts + 1
        record.rates = self._own_rates
        record.guess = record.lookup.find(token_ids, num_tokens)
        if not record.guess and self._shared is not None:
            record.rates = self._shared_rates
            record.guess = self._shared.find(sequence.owner.chain_root, token_ids, num_tokens)

    def _worth(
        self, record: _Record, sequence: RunningSequence, num_rows: int, price: Price
    ) -> list[int]:
        """Return as much of a guess as is worth its price."""
        num_given = sequence.num_pending
        most = num_given + min(self._most_drafts, sequence.num_draftable, num_rows)
        rates = (record.rates.after(record.num_right + i) for i in range(len(record.guess[:most])))
        length = best_length_by(rates, price.draft_row, num_given=num_given, least_gain=LEAST_GAIN)
        return list(record.guess[num_given : num_given + length])

    def _record_of(self, sequence: RunningSequence) -> _Record:
        record = self._records.get(sequence.seq_id)
        if record is None:
            config = self._config
            lookup = PromptLookup(
                config.prompt_lookup_min, config.prompt_lookup_max, sequence.last_num_tokens
            )
            record = _Record(lookup, self._own_rates, start=len(sequence.token_ids))
            self._records[sequence.seq_id] = record
        return record


def _judge(record: _Record, token_ids: Sequence[int]) -> None:
    """Compare the last guess with the tokens that have come since."""
    come = token_ids[record.start :]
    if not come:
        return
    for guessed, token_id in zip(record.guess, come, strict=False):
        is_right = guessed == token_id
        record.rates.learn(record.num_right, is_right)
        if not is_right:
            record.num_right = 0
            break
        record.num_right += 1
    if len(come) > len(record.guess):  # what came behind it was not guessed
        record.num_right = 0
    record.guess = ()
