"""Fetches the blocks of prompts that other workers have computed."""

import socket
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import structlog

from engine.contract.generate import GenerateRequest, KvLoan
from engine.llm.kv_store.block_source import BlockMemory, Entry, Look
from engine.llm.kv_transfer.channel import (
    COUNT,
    GRANTED,
    OF_OTHERS,
    ORDER,
    VERDICT,
    Channel,
    ChannelError,
    loan_name,
)
from engine.runtime.side_work import SIDE_WORK

_CONNECT_S = 2.0

log = structlog.get_logger(__name__)


class Borrower:
    """The blocks that other workers lend: a `BlockSource`."""

    def __init__(self, memory: BlockMemory, key: bytes) -> None:
        self.memory = memory
        self.most_reads = 4
        self.reader = ThreadPoolExecutor(self.most_reads, "kv-borrow")
        self.num_read = 0
        self.num_failed = 0
        """The number of prompts whose blocks, or some of them, could not be fetched."""
        self._key = key
        self._identity = b""
        self._lock = threading.Lock()

    def open(self, identity: bytes) -> None:
        """Begin to fetch blocks, of this identity only."""
        self._identity = identity

    def close(self) -> None:
        """End the threads."""
        self.reader.shutdown(wait=False, cancel_futures=True)

    def may_have(self, request: GenerateRequest) -> bool:
        """See `BlockSource`. An adapter's key stands for other weights elsewhere."""
        return bool(self._identity) and request.kv_loan is not None and request.adapter is None

    def ask(self, request: GenerateRequest, look: Look) -> "Future[list[Entry]]":
        """See `BlockSource`. The lender keeps all that the prompt needs, so nobody is asked."""
        chosen: Future[list[Entry]] = Future()
        chosen.set_result(look(lambda entry: True))
        return chosen

    def read(
        self, request: GenerateRequest, entries: Sequence[Entry]
    ) -> Generator[tuple[Entry, memoryview]]:
        """See `BlockSource`."""
        assert request.kv_loan is not None
        num_missing = len(entries)
        try:
            with self._order(request.kv_loan, entries) as (channel, num_there):
                for entry in entries[:num_there]:
                    yield entry, channel.receive(self.memory.block_bytes)
                    num_missing -= 1
            if num_missing:
                raise ChannelError("the loan has not all blocks of the prompt")
        except GeneratorExit:
            self._end(request.kv_loan)
            raise
        except (ChannelError, OSError) as error:
            with self._lock:
                self.num_failed += 1
            log.warning(
                "KV blocks could not be fetched; the prompt is computed here",
                host=request.kv_loan.host,
                port=request.kv_loan.port,
                blocks=num_missing,
                reason=str(error),
            )

    def let_go(self, request: GenerateRequest) -> None:
        """See `BlockSource`. The lender need not wait for the end of the loan."""
        assert request.kv_loan is not None
        SIDE_WORK.submit(self.reader, partial(self._end, request.kv_loan))

    def note_silence(self) -> None:
        """See `BlockSource`. The thread that reads notices it as well."""

    def _end(self, loan: KvLoan) -> None:
        try:
            with self._order(loan, []):
                pass
        except (ChannelError, OSError) as error:
            log.info("a loan of KV blocks could not be ended early", reason=str(error))

    @contextmanager
    def _order(self, loan: KvLoan, entries: Sequence[Entry]) -> Generator[tuple[Channel, int]]:
        """Order blocks of a loan. Gives the number of those that will come."""
        name = loan_name(loan, self._key)
        with socket.create_connection((loan.host, loan.port), _CONNECT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            channel = Channel.borrow(connection, self._key)
            channel.send(ORDER.pack(self._identity, name, len(entries)))
            (verdict,) = VERDICT.unpack(channel.receive(VERDICT.size))
            if verdict == OF_OTHERS:
                raise ChannelError(
                    "the other server's blocks are computed by other weights, code, settings or "
                    "another processor"
                )
            if verdict != GRANTED:
                raise ChannelError("the loan is over")
            channel.send_entries(entries)
            (num_there,) = COUNT.unpack(channel.receive(COUNT.size))
            yield channel, num_there
