"""Cache events over ZeroMQ, read with structs that vLLM's documentation describes."""

import contextlib
import random
import socket
import subprocess
import sys
import threading
import time

import msgspec
import pytest
import zmq

from engine.contract.kv_events_config import KvEventsConfig
from engine.errors import InvalidParameter, ModelLoadError
from engine.llm.cache.cache_journal import CacheJournal, StoredBlocks
from engine.worker.kv_events import KvEventPublisher, with_rank

END = 2**64 - 1
WAIT_MS = 60_000


class Event(msgspec.Struct, tag=True, omit_defaults=True, forbid_unknown_fields=True):
    pass


class BlockStored(Event):
    block_hashes: list[bytes | int]
    parent_block_hash: bytes | int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None


class BlockRemoved(Event):
    block_hashes: list[bytes | int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(Event):
    pass


class KVEventBatch(msgspec.Struct, array_like=True, omit_defaults=True):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


read = msgspec.msgpack.Decoder(KVEventBatch).decode


def number_of(frame):
    assert len(frame) == 8
    return int.from_bytes(frame, "big")


class GatedPublisher(KvEventPublisher):
    """Sends nothing while its gate is closed."""

    def __init__(self, *args, **more):
        self.gate = threading.Event()
        self.gate.set()
        super().__init__(*args, **more)

    def _publish_queued(self):
        self.gate.wait()
        super()._publish_queued()


class Subscriber:
    """What a router does: it subscribes, and asks for what it has missed."""

    def __init__(self, context, publisher, config, topic=b"kv"):
        self.live, self.asking = context.socket(zmq.SUB), context.socket(zmq.DEALER)
        self.live.subscribe(topic)
        self.live.connect(config.endpoint)
        self.asking.connect(config.replay_endpoint)
        self.publisher = publisher

    def receive(self):
        assert self.live.poll(WAIT_MS)
        topic, number, payload = self.live.recv_multipart()
        return topic, number_of(number), read(payload)

    def meet(self):
        """Publish until the first batch arrives. Returns the number of the last one."""
        publisher = self.publisher
        while not self.live.poll(5):
            publisher._journal.clear()
            publisher.publish()
        last = publisher._number - 1
        while self.receive()[1] < last:
            pass
        return last

    def replay(self, first):
        self.asking.send_multipart((b"", first.to_bytes(8, "big")))
        found = []
        while True:
            assert self.asking.poll(WAIT_MS)
            empty, topic, number, payload = self.asking.recv_multipart()
            assert empty == b""
            if number_of(number) == END:
                assert (topic, payload) == (b"", b"")
                return found
            found.append((topic, number_of(number), read(payload)))


@pytest.fixture
def start(tmp_path):
    """Start a publisher and a subscriber that have met."""
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        context.linger = 0

        def start(rank=0, windows=(None,), **fields):
            config = KvEventsConfig.read(
                {
                    "enable_kv_cache_events": True,
                    "endpoint": f"ipc://{tmp_path}/events",
                    "replay_endpoint": f"ipc://{tmp_path}/replay",
                    "topic": "kv-events",
                    **fields,
                }
            )
            journal = CacheJournal(4, windows)
            publisher = GatedPublisher(journal, config, rank)
            stack.callback(lambda: publisher._context.closed or publisher.close())
            stack.callback(publisher.gate.set)
            subscriber = Subscriber(context, publisher, config)
            stack.callback(subscriber.live.close)
            stack.callback(subscriber.asking.close)
            return publisher, journal, subscriber

        yield start


def removal():
    return random.randbytes(32)


def test_a_batch_is_what_vllm_sends(start):
    publisher, journal, subscriber = start(windows=(None, 48))
    last = subscriber.meet()
    hashes, ids = [random.randbytes(32) for _ in range(3)], random.sample(range(1 << 30), 8)
    started_s = time.time()
    journal.clear()
    stored = StoredBlocks(0, hashes[:2], None, ids, [("poet", "salt"), ("poet",)], "poet")
    later = StoredBlocks(1, hashes[2:], hashes[1], ids[:4], [()], None)
    journal._records += [stored, later]
    journal.remove(0, hashes[0])
    journal.remove(1, hashes[2])
    publisher.publish()
    topic, number, batch = subscriber.receive()
    assert (topic, number) == (b"kv-events", last + 1)
    assert started_s <= batch.ts <= time.time() and batch.data_parallel_rank == 0
    first, second, third = (int.from_bytes(one, "big") % 2**64 for one in hashes)
    assert batch.events == [
        AllBlocksCleared(),
        BlockStored(
            block_hashes=[first, second],
            parent_block_hash=None,
            token_ids=ids,
            block_size=4,
            lora_id=None,
            medium="GPU",
            lora_name="poet",
            extra_keys=[("poet", "salt"), ("poet",)],
            group_idx=0,
            kv_cache_spec_kind="full_attention",
        ),
        BlockStored(
            block_hashes=[third],
            parent_block_hash=second,
            token_ids=ids[:4],
            block_size=4,
            lora_id=None,
            medium="GPU",
            lora_name=None,
            extra_keys=[None],
            group_idx=1,
            kv_cache_spec_kind="sliding_window",
            kv_cache_spec_sliding_window=48,
        ),
        BlockRemoved(block_hashes=[first], medium="GPU", group_idx=0),
        BlockRemoved(block_hashes=[third], medium="GPU", group_idx=1),
    ]
    publisher.publish()
    journal.clear()
    publisher.publish()
    assert subscriber.receive()[1] == last + 2, "a step without records has no batch"


def test_a_full_queue_leaves_a_gap_that_a_replay_fills(start):
    room, extra = random.randint(2, 6), random.randint(1, 6)
    publisher, journal, subscriber = start(max_queue_size=room)
    last = subscriber.meet()
    publisher.gate.clear()
    hashes = [removal() for _ in range(room + extra)]
    for one in hashes:
        journal.remove(0, one)
        publisher.publish()  # which returns although nothing can be sent
    assert journal.num_dropped == extra
    publisher.gate.set()
    live = [subscriber.receive()[1] for _ in range(room)]
    assert live == list(range(last + 1, last + 1 + room))
    # The queue is empty once all of it has arrived, so that this one has a place.
    journal.clear()
    publisher.publish()
    newest = last + 1 + room + extra
    assert subscriber.receive()[1] == newest
    found = subscriber.replay(live[-1] + 1)
    assert [(topic, number) for topic, number, _ in found] == [
        (b"kv-events", number) for number in range(live[-1] + 1, newest + 1)
    ]
    lost = [batch.events[0].block_hashes for _, _, batch in found[:-1]]
    assert lost == [[int.from_bytes(one[-8:], "big")] for one in hashes[room:]]
    assert subscriber.replay(newest + 1) == []


def test_a_replay_has_the_newest_batches_only(start):
    kept, more = random.randint(1, 5), random.randint(1, 30)
    publisher, journal, subscriber = start(buffer_steps=kept)
    last = subscriber.meet()
    for _ in range(kept + more):
        journal.remove(0, removal())
        publisher.publish()
    newest = last + kept + more
    assert [number for _, number, _ in subscriber.replay(0)] == list(
        range(newest - kept + 1, newest + 1)
    )


@pytest.mark.parametrize("frames", [(b"\0" * 8,), (b"", b"\0"), (b"", b"", b"\0" * 8)])
def test_a_question_in_another_form_is_ignored(start, frames):
    _, _, subscriber = start()
    last = subscriber.meet()
    subscriber.asking.send_multipart(frames)
    assert [number for _, number, _ in subscriber.replay(last)] == [last]


def test_the_rank_is_in_addresses_and_batches(start, tmp_path):
    rank = random.randint(1, 63)
    publisher, journal, _ = start(rank)
    with zmq.Context() as context, context.socket(zmq.DEALER) as asking:
        asking.connect(f"ipc://{tmp_path}/replay_dp{rank}")
        journal.clear()
        publisher.publish()
        asking.send_multipart((b"", b"\0" * 8))
        assert asking.poll(WAIT_MS)
        assert read(asking.recv_multipart()[3]).data_parallel_rank == rank
    assert with_rank("tcp://*:5557", rank) == f"tcp://*:{5557 + rank}"
    assert with_rank("tcp://[::]:5557", 0) == "tcp://[::]:5557"
    for endpoint in ("tcp://*", "tcp://*:*"):
        with pytest.raises(ModelLoadError, match="no port"):
            with_rank(endpoint, rank)


def test_an_address_that_is_in_use_is_refused_by_name(start):
    with socket.create_server(("", 0)) as other:
        taken = f"tcp://*:{other.getsockname()[1]}"
        with pytest.raises(ModelLoadError) as refused:
            start(endpoint=taken)
    assert taken in refused.value.message and "Address already in use" in refused.value.message
    assert refused.value.param == "kv_events_config"


def test_what_is_queued_is_published_before_the_end(start):
    publisher, journal, subscriber = start()
    last = subscriber.meet()
    publisher.gate.clear()
    for _ in range(9):
        journal.remove(0, removal())
        publisher.publish()
    closing = threading.Thread(target=publisher.close)
    closing.start()
    publisher.gate.set()
    closing.join()
    numbers = [subscriber.receive()[1] for _ in range(9)]
    assert numbers == list(range(last + 1, last + 10))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"endpiont": "tcp://*:1"}, "no field endpiont"),
        ({"enable_kv_cache_events": 1}, "enable_kv_cache_events must not be 1"),
        ({"endpoint": None}, "endpoint must not be None"),
        ({"replay_endpoint": 5558}, "replay_endpoint must not be 5558"),
        ({"publisher": "kafka"}, "publisher must be one of zmq, null"),
        ({"buffer_steps": 0}, "buffer_steps is 0; it must be at least 1"),
        ({"hwm": -1}, "hwm is -1"),
        ({"max_queue_size": True}, "max_queue_size must not be True"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(given, reason):
    with pytest.raises(InvalidParameter) as refused:
        KvEventsConfig.read(given)
    assert reason in refused.value.message
    assert refused.value.param == "kv_events_config"


def test_nothing_is_published_or_imported_unless_it_is_wanted():
    assert KvEventsConfig.read(None) is None
    assert KvEventsConfig.read({"endpoint": "tcp://*:1"}) is None
    assert KvEventsConfig.read({"enable_kv_cache_events": True, "publisher": "null"}) is None
    program = "import engine.worker.loop, sys; print('engine.worker.kv_events' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert ended.stdout == b"False\n"
