"""The protocol between two workers: a greeting that proves both have the same key, then messages of
known lengths, each with a code that only holders of the key can make.

    lender                               borrower
    format, nonce                      →
                                       ← format, nonce, proof
    proof                              →
                                       ← order: identity of the blocks, loan, number of blocks
    verdict                            →
                                       ← their names
    how many there are                 →
    contents of a block, as often      →

Contents are not encrypted.
"""

import hmac
import secrets
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

from engine.contract.generate import KvLoan
from engine.llm.kv_store.block_source import Entry

SILENCE_S = 5.0
"""The longest that a message may take."""
ORDER = struct.Struct("<32s16sI")
VERDICT, COUNT = struct.Struct("<B"), struct.Struct("<I")
GRANTED, OF_OTHERS, OVER = range(3)
"""The verdicts: whether the lender has the loan, computes other blocks than the borrower, or has
the loan no more."""

_FORMAT = b"TandemL1"
_NONCE_BYTES = _CODE_BYTES = 32
_ENTRY = struct.Struct("<H32s")


class ChannelError(Exception):
    """The other side cannot prove who it is, or breaks the protocol."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a worker lends blocks, and the key that it shares with those that may borrow."""

    host: str
    port: int
    engine_id: str
    key: bytes

    def loan(self, name: bytes, num_tokens: int, block_ids: list[list[int]]) -> KvLoan:
        """Describe a loan for its borrower."""
        return KvLoan(
            host=self.host,
            port=self.port,
            engine_id=self.engine_id,
            ticket=name.hex() + self._signature(name).hex(),
            num_tokens=num_tokens,
            block_ids=block_ids,
        )

    def _signature(self, name: bytes) -> bytes:
        said = (self.host, self.port, self.engine_id, name)
        return code(self.key, b"loan", repr(said).encode())


def loan_name(loan: KvLoan, key: bytes) -> bytes:
    """The name of a loan. Only addresses that a worker with the key has given are trusted, so that
    clients cannot make this one connect to others.

    Raises:
        ChannelError: it was not made with this key.
    """
    try:
        ticket = bytes.fromhex(loan.ticket)
    except ValueError:
        ticket = b""
    name = ticket[:16]
    made = Address(loan.host, loan.port, loan.engine_id, key).loan(name, 0, [])
    if len(name) != 16 or not hmac.compare_digest(made.ticket, loan.ticket):
        raise ChannelError("the loan was not made by a server with the same kv_transfer_key")
    return name


class Channel:
    """One end of a connection, after the greeting. Used by one thread.

    Raises:
        ChannelError: from every method, if the other side breaks a rule.
        OSError: from every method, if it is gone or too slow.
    """

    def __init__(self, connection: socket.socket, session: bytes, own: bytes, other: bytes) -> None:
        self._connection = connection
        self._session = session
        self._own, self._other = own, other
        self._num_sent = self._num_received = 0

    @classmethod
    def lend(cls, connection: socket.socket, key: bytes) -> "Channel":
        """Greet a borrower."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        _send(connection, _FORMAT + nonce)
        theirs = _receive_nonce(connection)
        proof = bytes(_receive(connection, _CODE_BYTES))
        session = code(key, b"session", nonce + theirs)
        if not hmac.compare_digest(proof, code(session, b"borrower")):
            raise ChannelError("the other server has a different kv_transfer_key")
        _send(connection, code(session, b"lender"))
        return cls(connection, session, b"lender", b"borrower")

    @classmethod
    def borrow(cls, connection: socket.socket, key: bytes) -> "Channel":
        """Greet a lender."""
        theirs = _receive_nonce(connection)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        session = code(key, b"session", theirs + nonce)
        _send(connection, _FORMAT + nonce + code(session, b"borrower"))
        if not hmac.compare_digest(
            bytes(_receive(connection, _CODE_BYTES)), code(session, b"lender")
        ):
            raise ChannelError("the other server has a different kv_transfer_key")
        return cls(connection, session, b"borrower", b"lender")

    def send(self, contents: bytes | memoryview) -> None:
        """Send a message."""
        self._num_sent += 1
        _send(self._connection, code(self._session, self._own, self._num_sent, contents))
        _send(self._connection, contents)

    def receive(self, num_bytes: int) -> memoryview:
        """Receive a message of a known length."""
        self._num_received += 1
        message = _receive(self._connection, _CODE_BYTES + num_bytes)
        contents = message[_CODE_BYTES:]
        expected = code(self._session, self._other, self._num_received, contents)
        if not hmac.compare_digest(bytes(message[:_CODE_BYTES]), expected):
            raise ChannelError("a message was changed on its way")
        return contents

    def send_entries(self, entries: Sequence[Entry]) -> None:
        """Send the names of blocks."""
        self.send(b"".join(_ENTRY.pack(*entry) for entry in entries))

    def receive_entries(self, num_entries: int) -> list[Entry]:
        """Receive the names of that many blocks."""
        return [*_ENTRY.iter_unpack(self.receive(num_entries * _ENTRY.size))]


def code(
    key: bytes, what: bytes, number: bytes | int = b"", contents: bytes | memoryview = b""
) -> bytes:
    """The code of a message, which cannot be made without the key."""
    number = number if isinstance(number, bytes) else number.to_bytes(8, "little")
    made = hmac.new(key, what + b"|" + number, "sha256")
    made.update(contents)
    return made.digest()


def _receive_nonce(connection: socket.socket) -> bytes:
    said = bytes(_receive(connection, len(_FORMAT) + _NONCE_BYTES))
    if not said.startswith(_FORMAT):
        raise ChannelError("the other side speaks a different version, or is not a Tandem server")
    return said[len(_FORMAT) :]


def _send(connection: socket.socket, data: bytes | memoryview) -> None:
    connection.settimeout(SILENCE_S)
    connection.sendall(data)


def _receive(connection: socket.socket, num_bytes: int) -> memoryview:
    data = memoryview(bytearray(num_bytes))
    end_s, num_received = time.monotonic() + SILENCE_S, 0
    while num_received < num_bytes:
        connection.settimeout(max(0.001, end_s - time.monotonic()))
        num = connection.recv_into(data[num_received:])
        if not num:
            raise ChannelError("the other side has closed the connection")
        num_received += num
    return data
