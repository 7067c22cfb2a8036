"""Sends the blocks of loans to the workers that ask for them."""

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import takewhile

import structlog

from engine.llm.kv_transfer.channel import (
    COUNT,
    GRANTED,
    OF_OTHERS,
    ORDER,
    OVER,
    VERDICT,
    Address,
    Channel,
    ChannelError,
)
from engine.llm.kv_transfer.loans import Loans
from engine.runtime.side_work import SIDE_WORK

_MOST_CONNECTIONS = 8
"""The most borrowers at a time. Each takes the memory of a block or two."""

log = structlog.get_logger(__name__)


class Lender:
    """A thread that accepts connections, and one for each of them.

    Args:
        listening: the socket at `address`.
    """

    def __init__(self, listening: socket.socket, address: Address, loans: Loans) -> None:
        self.num_sent = 0
        self._listening = listening
        self._address = address
        self._loans = loans
        self._identity = b""
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._threads = ThreadPoolExecutor(_MOST_CONNECTIONS, "kv-lend")

    def open(self, identity: bytes) -> None:
        """Begin to accept connections.

        Args:
            identity: that of the blocks.
        """
        self._identity = identity
        threading.Thread(target=self._accept, name="kv-lender", daemon=True).start()

    def close(self) -> None:
        """Accept no more connections."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._threads.shutdown(wait=False)

    def _accept(self) -> None:
        while True:
            self._places.acquire()
            try:
                connection, _ = self._listening.accept()
            except OSError:  # closed
                return
            try:
                SIDE_WORK.submit(self._threads, partial(self._serve, connection))
            except RuntimeError:  # closed in the meantime
                connection.close()
                return

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._lend(Channel.lend(connection, self._address.key))
        except (ChannelError, OSError) as error:
            log.info("KV blocks were fetched only in part", reason=str(error))
        finally:
            self._places.release()

    def _lend(self, channel: Channel) -> None:
        identity, name, num_wanted = ORDER.unpack(channel.receive(ORDER.size))
        if identity != self._identity:
            channel.send(VERDICT.pack(OF_OTHERS))
            return
        most = self._loans.num_blocks_of(name)
        if most is None:
            channel.send(VERDICT.pack(OVER))
            return
        if num_wanted > most:
            raise ChannelError(f"{num_wanted} blocks were asked for, and the loan has {most}")
        channel.send(VERDICT.pack(GRANTED))
        wanted = channel.receive_entries(num_wanted)
        entries = [*takewhile(partial(self._loans.has, name), wanted)]
        channel.send(COUNT.pack(len(entries)))
        for entry in entries:
            contents = self._loans.copy_out(name, entry)
            if contents is None:
                raise ChannelError("the loan has ended meanwhile")
            channel.send(contents)
            with self._lock:
                self.num_sent += 1
        self._loans.end(name)
