"""Both sides of a worker that exchanges KV blocks with others."""

from dataclasses import dataclass

from engine.contract.generate import KvTransferCounts
from engine.llm.kv_store.block_source import identity
from engine.llm.kv_transfer.borrower import Borrower
from engine.llm.kv_transfer.lender import Lender
from engine.llm.kv_transfer.loans import Loans


@dataclass(frozen=True, slots=True)
class KvTransfer:
    """What a worker lends and borrows."""

    loans: Loans
    lender: Lender
    borrower: Borrower
    computed_by: object
    """Everything that shapes the contents of blocks beside the text, but not the weights."""

    def open(self, weights: str) -> None:
        """Begin, once the digest of the weights' files is known."""
        blocks = identity(self.computed_by, weights)
        self.lender.open(blocks)
        self.borrower.open(blocks)

    def close(self) -> None:
        """End the threads."""
        self.lender.close()
        self.borrower.close()

    def counts(self) -> KvTransferCounts:
        """What was done so far."""
        return KvTransferCounts(
            num_loans=self.loans.num_made,
            num_loans_expired=self.loans.num_expired,
            num_loans_withdrawn=self.loans.num_withdrawn,
            num_loans_refused=self.loans.num_refused,
            num_blocks_lent=self.loans.num_blocks,
            num_blocks_sent=self.lender.num_sent,
            num_blocks_fetched=self.borrower.num_read,
            num_fetches_failed=self.borrower.num_failed,
        )
