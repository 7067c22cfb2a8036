"""Publishes what a model's prefix cache takes in and drops, over ZeroMQ in vLLM's format.

A batch has the records of one step. It is sent as three frames: topic, number as eight bytes with
the highest first, and MessagePack of `[time, events, rank]`, whose events are maps with a `type`
(vLLM's form since its pull request 42892). Who finds a gap in the numbers sends the replay socket
an empty frame and the first number that is missing. The answers are an empty frame and the three
frames of each batch from there on (45177), at the last with the number -1 and nothing else.

The loop's thread only queues batches. When the queue is full, a batch is not published, but it is
kept for replays like any other.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import cached_property
from typing import Any

import msgspec
import structlog
import zmq

from engine.contract.kv_events_config import KvEventsConfig
from engine.errors import ModelLoadError
from engine.llm.cache.cache_journal import (
    CacheJournal,
    CacheRecord,
    ExtraKey,
    RemovedBlocks,
    StoredBlocks,
)

MEDIUM = "GPU"
"""vLLM's name of the memory that a model computes from, on CPUs too."""
_END = (-1).to_bytes(8, "big", signed=True)
_LONGEST_FRAME = 64
"""A longer one in a question ends its sender's connection."""
_CLOSE_S = 1.0

log = structlog.get_logger(__name__)


class _Event(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    pass


class BlockStored(_Event, tag=True, frozen=True):
    """vLLM's event for blocks that are cached now."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    """Always None: vLLM counts its adapters, and prefers their names, too."""
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[ExtraKey, ...] | None]
    group_idx: int
    kv_cache_spec_kind: str
    kv_cache_spec_sliding_window: int | None = None


class BlockRemoved(_Event, tag=True, frozen=True):
    """vLLM's event for blocks that are not cached any more."""

    block_hashes: list[int]
    medium: str | None
    group_idx: int


class AllBlocksCleared(_Event, tag=True, frozen=True):
    """vLLM's event for an empty cache."""


def hash_number(block_hash: bytes) -> int:
    """A block's hash as in events: its last 64 bits, as vLLM takes them from its own hashes."""
    return int.from_bytes(block_hash[-8:], "big")


def event_of(record: CacheRecord, journal: CacheJournal) -> _Event:
    """A record as an event."""
    if isinstance(record, StoredBlocks):
        window = journal.windows[record.group]
        return BlockStored(
            block_hashes=[hash_number(one) for one in record.hashes],
            parent_block_hash=None if record.parent is None else hash_number(record.parent),
            token_ids=record.token_ids,
            block_size=journal.block_size,
            lora_id=None,
            medium=MEDIUM,
            lora_name=record.adapter,
            extra_keys=[keys or None for keys in record.keys],
            group_idx=record.group,
            kv_cache_spec_kind="full_attention" if window is None else "sliding_window",
            kv_cache_spec_sliding_window=window,
        )
    if isinstance(record, RemovedBlocks):
        hashes = [hash_number(one) for one in record.hashes]
        return BlockRemoved(hashes, MEDIUM, record.group)
    return AllBlocksCleared()


class _Batch:
    """The records of one step."""

    def __init__(self, number: int, records: list[CacheRecord], encode: Callable[..., bytes]):
        self.number = number.to_bytes(8, "big")
        self._time_s = time.time()
        self._records = records
        self._encode = encode

    @cached_property
    def payload(self) -> bytes:
        """The batch in MessagePack. Used by the publishing thread."""
        encoded = self._encode(self._time_s, self._records)
        del self._records
        return encoded


class KvEventPublisher:
    """Publishes the records of a journal in a thread of its own.

    Args:
        rank: the number of the model's worker, counted from 0, which is added to ports.

    Raises:
        ModelLoadError: an address cannot be used.
    """

    def __init__(self, journal: CacheJournal, config: KvEventsConfig, rank: int = 0) -> None:
        self._journal = journal
        self._rank = rank
        self._topic = config.topic.encode()
        self._number = 0
        self._lock = threading.Lock()
        self._kept: deque[_Batch] = deque(maxlen=config.buffer_steps)
        """The newest batches, for replays."""
        self._queue: deque[_Batch] = deque()
        self._most_queued = config.max_queue_size
        self._context = zmq.Context()
        self._wake, self._woken = self._pair()
        self._pub = self._socket(zmq.PUB, config.hwm)
        self._open(self._pub, config.endpoint, is_bound=_is_bound(config.endpoint))
        self._replay = None
        if config.replay_endpoint is not None:
            self._replay = self._socket(zmq.ROUTER, config.buffer_steps + 1)
            self._replay.maxmsgsize = _LONGEST_FRAME
            self._open(self._replay, config.replay_endpoint, is_bound=True)
        self._thread = threading.Thread(target=self._run, name="kv-events", daemon=True)
        self._thread.start()

    def publish(self) -> None:
        """Queue what the journal has recorded, without waiting. Loop thread only."""
        records = self._journal.take()
        if not records:
            return
        batch = _Batch(self._number, records, self._encode)
        self._number += 1
        with self._lock:
            self._kept.append(batch)
            if len(self._queue) == self._most_queued:
                self._journal.num_dropped += 1
                return
            self._queue.append(batch)
        with contextlib.suppress(zmq.Again):  # then the thread is about to wake up anyway
            self._wake.send(b"", zmq.NOBLOCK)

    def close(self) -> None:
        """Publish what is queued, and end."""
        self._wake.send(b"end")
        self._thread.join(_CLOSE_S)
        self._context.destroy(linger=round(1000 * _CLOSE_S))

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._woken, zmq.POLLIN)
        if self._replay is not None:
            poller.register(self._replay, zmq.POLLIN)
        is_over = False
        while not is_over:
            ready = dict(poller.poll())
            is_over = self._woken in ready and self._woken.recv() == b"end"
            try:
                self._publish_queued()
                if self._replay in ready:
                    self._answer()
            except Exception:  # later batches, whose numbers show the gap, may be sent again
                log.exception("KV events could not be sent")

    def _publish_queued(self) -> None:
        while self._queue:
            with self._lock:
                batch = self._queue.popleft()
            self._pub.send_multipart((self._topic, batch.number, batch.payload))

    def _answer(self) -> None:
        """Replay what somebody has missed."""
        assert self._replay is not None
        frames = self._replay.recv_multipart()
        if len(frames) != 3 or len(frames[2]) != 8:
            log.warning("a replay of KV events was requested in an unknown form")
            return
        client, _, first = frames
        with self._lock:
            kept = [batch for batch in self._kept if batch.number >= first]
        for batch in kept:
            self._replay.send_multipart((client, b"", self._topic, batch.number, batch.payload))
        self._replay.send_multipart((client, b"", b"", _END, b""))

    def _encode(self, time_s: float, records: list[CacheRecord]) -> bytes:
        events = [event_of(record, self._journal) for record in records]
        return msgspec.msgpack.encode((time_s, events, self._rank))

    def _pair(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """The ends of a line between the two threads."""
        ends = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        ends[0].bind("inproc://wake")
        ends[1].connect("inproc://wake")
        return ends

    def _socket(self, kind: int, most_waiting: int) -> Any:
        socket = self._context.socket(kind)
        socket.set_hwm(most_waiting)
        return socket

    def _open(self, socket: Any, endpoint: str, *, is_bound: bool) -> None:
        endpoint = with_rank(endpoint, self._rank)
        try:
            (socket.bind if is_bound else socket.connect)(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            reason = zmq.strerror(error.errno or 0)
            raise ModelLoadError(
                f"kv_events_config: {endpoint} cannot be used: {reason}; give each text model "
                f"addresses of its own",
                param="kv_events_config",
            ) from None


def with_rank(endpoint: str, rank: int) -> str:
    """The address of a model's worker: the port is higher by its rank, and other addresses end with
    it.

    Raises:
        ModelLoadError: the address has no port.
    """
    if rank == 0:
        return endpoint
    if not endpoint.startswith("tcp:"):
        return f"{endpoint}_dp{rank}"
    before, _, port = endpoint.rpartition(":")
    if not port.isdecimal():
        raise ModelLoadError(
            f"kv_events_config: {endpoint} has no port to which a replica could add its number",
            param="kv_events_config",
        )
    return f"{before}:{int(port) + rank}"


def _is_bound(endpoint: str) -> bool:
    return "*" in endpoint or "::" in endpoint or endpoint.startswith("ipc:")
