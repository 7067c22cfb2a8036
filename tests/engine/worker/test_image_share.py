"""Image work leaves time to text: who is told what, and how a throttled loop keeps time."""

import time

import pytest

from engine.contract.draw import ImageStats
from engine.runtime.threads import ComputeThreads
from engine.worker import messages
from engine.worker.image_share import ImageShare
from engine.worker.loop import Loop

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


class Link:
    """Messages by the time at which they arrive, in seconds from the start."""

    def __init__(self, *inbox):
        self.started_s = time.monotonic()
        self.inbox = list(inbox)
        self.sent = []

    def has_message(self, wait_s=0.0):
        at_s = self.started_s + (self.inbox[0][0] if self.inbox else 1e9)
        time.sleep(max(0.0, min(wait_s, at_s - time.monotonic())))
        return time.monotonic() >= at_s

    def receive(self):
        return self.inbox.pop(0)[1]

    def send(self, message):
        self.sent.append(messages.decode_from_worker(messages.encode(message)))


class Engine:
    """Endless work in steps of 10 ms."""

    def __init__(self):
        self.steps, self.aborted_after = 0, None

    def has_work(self):
        return True

    def step(self):
        time.sleep(0.01)
        self.steps += 1
        return [], self.stats()

    def stats(self):
        return ImageStats(num_steps=self.steps)

    def abort(self, request_id, index=None):
        self.aborted_after = self.steps


@pytest.mark.parametrize(("share", "most"), [(0.1, 8), (0.5, 36), (None, 70)])
def test_a_throttled_loop_works_its_share_of_the_time(share, most):
    engine = Engine()
    link = Link((0.0, messages.Throttle(share)), (0.6, messages.Shutdown()))
    Loop(engine, link, THREADS).run()
    assert 1 <= engine.steps <= most
    if share == 0.1:
        assert link.sent[-1].read()[1].throttle_time_s > 0.2


def test_a_message_ends_the_pause():
    engine = Engine()
    link = Link(
        (0.0, messages.Throttle(0.01)),
        (0.1, messages.Abort("r")),
        (0.2, messages.Throttle(None)),
        (0.4, messages.Shutdown()),
    )
    Loop(engine, link, THREADS).run()
    assert engine.aborted_after == 1, "cancelled within the pause of a second, not after it"
    assert engine.steps > 3, "the pause ended with the throttling"
