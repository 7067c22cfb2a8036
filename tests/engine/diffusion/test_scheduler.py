"""The step scheduler against a simulated device: no tensors, exact clocks."""

import random

import pytest

from engine.diffusion.scheduler import EXPRESS_LEAD, Entry, StepScheduler


def make_scheduler(max_num_rows, *entries, max_pixels=1 << 40):
    scheduler = StepScheduler(max_num_rows, max_pixels)
    for item in entries:
        scheduler.add(item)
    return scheduler


def entry(drawing_id, *, steps=10, group="64", rows=2, num_pixels=64, priority=0):
    return Entry(
        drawing_id=drawing_id,
        group=group,
        num_rows=rows,
        num_pixels=num_pixels,
        num_steps=steps,
        priority=priority,
    )


class Device:
    """Runs what the scheduler decides; a call costs a second, and a part per row and cell."""

    def __init__(self, max_num_rows, *entries, per_row_s=0.125, max_pixels=1 << 40):
        self.scheduler = make_scheduler(max_num_rows, max_pixels=max_pixels)
        self.per_row_s = per_row_s
        self.now_s = 0.0
        self.entries = {}
        self.steps_left = {}
        self.finished_s = {}
        self.served_s = {}
        for item in entries:
            self.add(item)

    def add(self, item):
        self.entries[item.drawing_id] = item
        self.steps_left[item.drawing_id] = item.num_steps
        self.scheduler.add(item)

    def call(self):
        decision = self.scheduler.schedule()
        if decision is None:
            return None
        members = [self.entries[i] for i in decision.drawing_ids]
        rows = sum(m.num_rows for m in members)
        cost_s = 1.0 + self.per_row_s * rows * members[0].num_pixels / 64
        self.now_s += cost_s
        self.scheduler.commit(decision, cost_s)
        self.served_s[decision.group] = self.served_s.get(decision.group, 0.0) + cost_s
        for member in members:
            self.steps_left[member.drawing_id] -= 1
            if not self.steps_left[member.drawing_id]:
                self.scheduler.remove(member.drawing_id)
                self.finished_s[member.drawing_id] = self.now_s
        return decision

    def run(self, until=lambda device: False):
        while not until(self) and self.call() is not None:
            pass


def solo_s(steps, **device):
    alone = Device(64, entry(0, steps=steps), **device)
    alone.run()
    return alone.now_s


def test_nothing_waits_when_nothing_is_there():
    assert make_scheduler(16).schedule() is None


def test_equal_shapes_share_calls_whatever_their_steps():
    device = Device(16, *(entry(i, steps=steps) for i, steps in enumerate((10, 12, 20))))
    assert device.call().drawing_ids == (0, 1, 2)
    device.run()
    assert set(device.finished_s) == {0, 1, 2}


@pytest.mark.parametrize("limits", [{"max_num_rows": 5}, {"max_num_rows": 100, "max_pixels": 256}])
def test_rows_and_pixels_are_bounded_and_the_first_come_first(limits):
    device = Device(limits.pop("max_num_rows"), *map(entry, range(4)), **limits)
    assert device.call().drawing_ids == (0, 1)


def test_who_did_not_fit_goes_next():
    device = Device(4, *(entry(i, steps=1000) for i in range(3)))
    calls = [device.call().drawing_ids for _ in range(3)]
    assert calls == [(0, 1), (2, 0), (1, 0)]


def test_a_drawing_wider_than_the_bound_still_runs():
    device = Device(2, entry(0, rows=3))
    assert device.call().drawing_ids == (0,)


@pytest.mark.parametrize("num_long", [1, 4, 8, 31])
@pytest.mark.parametrize("per_row_s", [0.01, 0.125, 1.0])
@pytest.mark.parametrize("steps_before", [0, 1, 7])
def test_a_short_job_behind_a_long_batch_ends_within_twice_its_solo_time(
    num_long, per_row_s, steps_before
):
    device = Device(64, *(entry(i, steps=50) for i in range(num_long)), per_row_s=per_row_s)
    for _ in range(steps_before):
        device.call()
    # It arrives when the step in flight has just begun.
    arrived_s = device.now_s
    device.call()
    device.add(entry(99, steps=10))
    device.run(until=lambda d: 99 in d.finished_s)
    waited_s = 1.0 + per_row_s * 2 * num_long
    solo = solo_s(10, per_row_s=per_row_s)
    latency_s = device.finished_s[99] - arrived_s
    if num_long <= 8:
        assert latency_s < 2 * solo
    else:
        # The step in flight alone may take longer than that.
        assert latency_s < 2 * solo + waited_s


def test_several_short_jobs_share_their_express_calls():
    device = Device(64, *(entry(i, steps=50) for i in range(8)))
    device.call()
    for i in (97, 98):
        device.add(entry(i, steps=10))
    calls = [sorted(device.call().drawing_ids) for _ in range(12)]
    assert calls.count([97, 98]) >= 6
    assert all(call in ([97, 98], [*range(8), 97, 98], [*range(8)]) for call in calls)


@pytest.mark.parametrize(("steps", "is_express"), [(9, True), (10, False)])
def test_short_is_what_has_less_than_a_third_of_the_others_work(steps, is_express):
    scheduler = make_scheduler(8, *(entry(i, steps=n) for i, n in enumerate((30, 30, steps))))
    assert scheduler.schedule().is_express == is_express


def test_however_long_there_was_none_express_calls_run_ahead_by_a_few_steps_alone():
    scheduler = make_scheduler(8, entry(1, steps=1000), entry(2, steps=1000))
    for _ in range(50):
        scheduler.commit(scheduler.schedule(), 1.0)
    scheduler.add(entry(3, steps=100))
    found = []
    for _ in range(EXPRESS_LEAD + 2):
        decision = scheduler.schedule()
        scheduler.commit(decision, 1.0)
        found.append(decision.is_express)
    assert found == [True] * (EXPRESS_LEAD + 1) + [False]


def test_priority_goes_before_how_long_one_has_waited():
    scheduler = make_scheduler(2, entry(1, priority=1), entry(2))
    for _ in range(3):
        decision = scheduler.schedule()
        scheduler.commit(decision, 1.0)
        assert decision.drawing_ids == (2,)


def test_drawings_that_are_nearly_done_stay_in_the_batch():
    device = Device(64, *(entry(i, steps=n) for i, n in enumerate((20, 24, 30, 40))))
    device.run()
    assert device.scheduler._num_calls == 40


def test_a_stream_of_short_jobs_leaves_half_of_the_time_to_the_long_one():
    device = Device(64, entry(0, steps=400))
    for i in range(1, 2000):
        device.add(entry(i, steps=5))
        device.run(until=lambda d, i=i: i in d.finished_s or 0 in d.finished_s)
        if 0 in device.finished_s:
            break
    assert device.finished_s[0] < 2.5 * solo_s(400)


def test_shapes_share_the_time_not_the_calls():
    small = entry(0, steps=10_000, group="64", num_pixels=64)
    device = Device(64, small, entry(1, steps=10_000, group="512", num_pixels=4096))
    for _ in range(2000):
        device.call()
    small, large = device.served_s["64"], device.served_s["512"]
    assert 0.9 < small / large < 1.1


def test_a_new_shape_gets_no_credit_for_having_been_away():
    device = Device(64, entry(0, steps=1000, group="a"))
    for _ in range(100):
        device.call()
    device.add(entry(1, steps=1000, group="b"))
    groups = [device.call().group for _ in range(10)]
    assert 4 <= groups.count("a") <= 6


def test_priority_doubles_a_shapes_share_and_goes_first_within_it():
    usual = entry(0, steps=5000, group="a", priority=0)
    device = Device(4, usual, entry(1, steps=5000, group="b", priority=-1))
    for _ in range(300):
        device.call()
    assert 1.8 < device.served_s["b"] / device.served_s["a"] < 2.2
    device.add(entry(2, steps=4000, group="a", rows=2, priority=1))
    device.add(entry(3, steps=4000, group="a", rows=2, priority=-1))
    while (decision := device.call()).group != "a":
        pass
    assert decision.drawing_ids[0] == 3


def test_removed_drawings_are_never_scheduled():
    scheduler = make_scheduler(16, entry(0), entry(1))
    scheduler.remove(0)
    scheduler.remove(0)
    assert scheduler.schedule().drawing_ids == (1,)


def test_everything_ends_and_no_call_mixes_shapes():
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    device = Device(rng.randint(1, 20))
    coming = [
        entry(
            i,
            steps=rng.randint(1, 30),
            group=rng.choice("abc"),
            rows=rng.randint(1, 3),
            num_pixels=rng.choice((16, 64, 256)),
            priority=rng.randint(-3, 3),
        )
        for i in range(60)
    ]
    sizes = {}
    for item in coming:
        item.num_pixels = sizes.setdefault(item.group, item.num_pixels)
    total = len(coming)
    while len(device.finished_s) < total:
        if coming and rng.random() < 0.3:
            device.add(coming.pop())
        decision = device.call()
        if decision is not None:
            groups = {device.entries[i].group for i in decision.drawing_ids}
            assert groups == {decision.group}, f"seed {seed}"
