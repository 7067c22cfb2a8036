"""Speculation by lookup, in the text itself and in those that have ended: whose next tokens are
guessed, and how many of them.

A row more is cheap as long as a step's time is that of reading the weights, and a loss once it is
that of computing rows. So a draft has a price: its rows, in tokens that the step would have
brought in the same time, as `engine.llm.step_cost` has learned it. A sequence's drafts are paid for
by the tokens that were accepted; one that runs into debt pauses, longer each time. A batch that
grows makes rows dearer, until nobody drafts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from engine.config import ResolvedConfig
from engine.llm.prompt_lookup import PromptLookup
from engine.llm.request import Sequence as RunningSequence
from engine.llm.shared_lookup import SharedLookup
from engine.llm.step_budget import Price

HIGHEST_PRICE = 0.25
"""Of a row, in accepted tokens: nobody drafts where it is higher."""
INDEXED_PER_STEP = 1024
"""Places that all sequences' indexes grow by in a step: about half a millisecond."""
FIRST_DRAFT = 4
SHORTEST_DRAFT = 2
LONGEST_PAUSE = 64
"""Steps."""
MOST_CREDIT = 2.0
"""Accepted tokens that may be spent on drafts in vain before a pause."""


@dataclass(slots=True)
class _Record:
    """How a sequence's drafts went."""

    lookup: PromptLookup
    num_drafts: int
    """To be tried next."""
    price: float = 0.0
    """Of those in flight."""
    credit: float = 0.0
    """Accepted tokens, less what drafts cost, since the last pause."""
    num_pauses: int = 0
    """Since the last accepted token."""
    pause: int = 0
    """Steps to wait."""


class Speculation:
    """Drafts for the sequences of one engine: an `engine.llm.drafter.Drafter`. A sequence's own
    text comes first; where that says nothing, those of others may."""

    def __init__(self, config: ResolvedConfig) -> None:
        self._config = config
        self._most_drafts = config.num_speculative_tokens
        self._records: dict[int, _Record] = {}
        """By sequence id."""
        self._shared: SharedLookup | None = None
        if config.shared_lookup_tokens:
            self._shared = SharedLookup(config.shared_lookup_tokens, config.prompt_lookup_min)

    def may_draft(self, decodes: Iterable[RunningSequence]) -> bool:
        """See `Drafter`."""
        return True

    def draft(
        self, decodes: Sequence[RunningSequence], num_rows: int, price: Price
    ) -> Iterator[tuple[RunningSequence, list[int]]]:
        """See `Drafter`. Where rows are few, the first sequences get them."""
        if price.row > HIGHEST_PRICE:
            return
        num_places = INDEXED_PER_STEP
        if self._shared is not None:
            num_places -= self._shared.read(num_places)
        for sequence in decodes:
            record = self._record_of(sequence)
            if record.pause > 0:
                record.pause -= 1
                continue
            token_ids = sequence.token_ids
            num_places -= record.lookup.extend(token_ids, num_places)
            num_drafts = min(record.num_drafts, sequence.num_draftable, num_rows)
            if num_drafts <= 0 or record.lookup.num_indexed < len(token_ids):
                continue
            drafts = record.lookup.find(token_ids, sequence.num_pending, num_drafts)
            if not drafts and self._shared is not None:
                key = sequence.owner.chain_root
                drafts = self._shared.find(key, token_ids, sequence.num_pending, num_drafts)
            if drafts:
                num_rows -= len(drafts)
                record.price = len(drafts) * price.row
                yield sequence, drafts

    def learn(self, sequence: RunningSequence, num_drafts: int, num_accepted: int) -> None:
        """See `Drafter`: drafts double while all of them are right, and begin anew if not."""
        record = self._records[sequence.seq_id]
        record.credit = min(MOST_CREDIT, record.credit + num_accepted - record.price)
        if num_accepted:
            record.num_pauses = 0
        if num_accepted == num_drafts:
            longer = max(record.num_drafts, 2 * num_drafts)
        else:
            longer = max(SHORTEST_DRAFT, num_accepted + 1)
        record.num_drafts = min(longer, self._most_drafts)
        if record.credit < 0.0:
            record.credit = 0.0
            record.num_pauses += 1
            record.pause = min(2**record.num_pauses, LONGEST_PAUSE)

    def forget(self, sequence: RunningSequence) -> None:
        """See `Drafter`. What it has written may come again."""
        self._records.pop(sequence.seq_id, None)
        if self._shared is not None and sequence.num_output_tokens > 0:
            first = max(0, sequence.num_prompt_tokens - self._config.prompt_lookup_min)
            self._shared.add(sequence.owner.chain_root, sequence.token_ids[first:])

    def _record_of(self, sequence: RunningSequence) -> _Record:
        record = self._records.get(sequence.seq_id)
        if record is None:
            config = self._config
            lookup = PromptLookup(
                config.prompt_lookup_min, config.prompt_lookup_max, sequence.last_num_tokens
            )
            first = min(FIRST_DRAFT, self._most_drafts)
            record = self._records[sequence.seq_id] = _Record(lookup, first)
        return record
