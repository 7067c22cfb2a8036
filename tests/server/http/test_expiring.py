"""What is kept for a while, on a clock of its own, against a plain model of it."""

import random

from server.http.expiring import ExpiringTable


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_what_is_renewed_is_as_new() -> None:
    clock = Clock()
    table: ExpiringTable[str] = ExpiringTable(ttl_s=10, max_items=2, clock=clock)
    table.put("a", "A")
    table.put("b", "B")
    clock.now_s += 6
    table.renew("a")
    table.put("c", "C")
    assert [table.get(name) for name in "abc"] == ["A", None, "C"]
    clock.now_s += 6
    assert table.get("a") == "A" and table.seconds_left("a") == 4
    clock.now_s += 4
    assert table.get("a") is None and len(table) == 0


def test_what_has_no_room_is_not_kept_and_costs_nothing() -> None:
    table: ExpiringTable[str] = ExpiringTable(ttl_s=10, max_bytes=10)
    assert table.put("a", "A", 6)
    assert not table.put("b", "B", 11)
    assert table.get("a") == "A" and table.get("b") is None
    assert table.put("a", "A2", 7) and table.num_bytes == 7


def test_random_use_keeps_to_the_bounds() -> None:
    rng = random.Random(7)
    clock = Clock()
    table: ExpiringTable[int] = ExpiringTable(ttl_s=9, max_items=5, max_bytes=30, clock=clock)
    sizes: dict[str, int] = {}
    for step in range(2000):
        name = str(rng.randrange(12))
        clock.now_s += rng.random()
        if table.get(name) is not None and rng.random() < 0.3:
            table.renew(name)
        elif rng.random() < 0.1:
            table.pop(name)
        elif table.put(name, step, size := rng.randrange(36)):
            sizes[name] = size
            assert table.get(name) == step
        kept = [name for name in sizes if table.get(name) is not None]
        assert len(table) == len(kept) <= 5
        assert table.num_bytes == sum(sizes[name] for name in kept) <= 30
