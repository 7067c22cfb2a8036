"""Image work leaves time to text: who is told what, and how a throttled loop keeps time."""

from types import SimpleNamespace

import pytest

from engine.contract.draw import ImageStats
from engine.runtime.threads import ComputeThreads
from engine.worker import loop, messages
from engine.worker.image_share import ImageShare
from engine.worker.loop import Loop
from tests.helpers.clock import Clock

THREADS = ComputeThreads(1, None, lambda threads: None)


def test_the_bound_comes_with_the_first_busy_text_model_and_goes_with_the_last():
    told = []
    share = ImageShare(0.25, told.append)
    share.note("a", busy=False)
    assert told == []
    share.note("a", busy=True)
    share.note("b", busy=True)
    share.note("a", busy=True)
    share.note("a", busy=False)
    assert told == [0.25]
    assert share.bound == 0.25, "for whom is loaded meanwhile"
    share.note("b", busy=False)
    share.note("b", busy=False)
    assert told == [0.25, None]
    assert share.bound is None


@pytest.fixture
def clock(monkeypatch):
    """The loop's. Only waiting for messages and steps take time."""
    clock = Clock(0.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=clock, perf_counter=clock))
    return clock


class Link:
    """Messages by the time at which they arrive."""

    def __init__(self, clock, *inbox):
        self.clock = clock
        self.inbox = list(inbox)
        self.sent = []

    def has_message(self, wait_s=0.0):
        at_s = self.inbox[0][0]
        self.clock.now_s += max(0.0, min(wait_s, at_s - self.clock.now_s))
        return self.clock.now_s >= at_s

    def receive(self):
        return self.inbox.pop(0)[1]

    def send(self, message):
        self.sent.append(messages.decode_from_worker(messages.encode(message)))


class Engine:
    """Endless work in steps of 10 ms."""

    def __init__(self, clock):
        self.clock = clock
        self.steps, self.aborted_after = 0, None

    def has_work(self):
        return True

    def step(self):
        self.clock.now_s += 0.01
        self.steps += 1
        return [], self.stats()

    def stats(self):
        return ImageStats(num_steps=self.steps)

    def abort(self, request_id, index=None):
        self.aborted_after = self.steps


@pytest.mark.parametrize("share", [0.1, 0.5, None])
def test_a_throttled_loop_works_its_share_of_the_time(clock, share):
    engine = Engine(clock)
    link = Link(clock, (0.0, messages.Throttle(share)), (6.0, messages.Shutdown()))
    Loop(engine, link, THREADS).run()
    assert engine.steps == pytest.approx(600 * (share or 1.0), abs=1)
    throttled_s = link.sent[-1].read()[1].throttle_time_s
    assert throttled_s == pytest.approx(6.0 * (1.0 - (share or 1.0)), abs=0.1)


def test_a_message_ends_the_pause(clock):
    engine = Engine(clock)
    link = Link(
        clock,
        (0.0, messages.Throttle(0.01)),
        (0.1, messages.Abort("r")),
        (0.2, messages.Throttle(None)),
        (0.4, messages.Shutdown()),
    )
    Loop(engine, link, THREADS).run()
    assert engine.aborted_after == 1, "cancelled within the pause of a second, not after it"
    assert engine.steps > 3, "the pause ended with the throttling"
