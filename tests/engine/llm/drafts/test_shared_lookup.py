"""Guesses from texts that have ended: the newest place of an n-gram, and nobody else's texts."""

import random
from collections.abc import Sequence

from engine.llm.drafts.shared_lookup import SharedLookup

KEY, OTHER = b"key", b"other"


def _newest(
    texts: list[tuple[bytes, list[int]]], key: bytes, text: list[int], size: int
) -> list[int]:
    """All that follows the newest place, by looking everywhere."""
    for owner, kept in reversed(texts):
        for place in range(len(kept) - 1, size - 1, -1):
            if owner == key and kept[place - size : place] == text[-size:]:
                return kept[place:]
    return []


def test_it_equals_looking_everywhere() -> None:
    num_found = 0
    for _ in range(30):
        size, most = random.randrange(1, 4), random.randrange(20, 120)
        lookup, texts = SharedLookup(most, size), list[tuple[bytes, list[int]]]()
        for _ in range(25):
            text = [random.randrange(4) for _ in range(random.randrange(0, 40))]
            key = random.choice([KEY, OTHER])
            lookup.add(key, text)
            if size < len(text) <= most:
                texts.append((key, text))
            while sum(len(kept) for _, kept in texts) > most:
                texts.pop(0)
            while lookup.read(random.randrange(1, 30)):
                pass
            asked = [random.randrange(4) for _ in range(random.randrange(0, 8))]
            expected = _newest(texts, KEY, asked, size) if len(asked) >= size else []
            num = random.randrange(1, 9)
            found = lookup.find(KEY, asked, num)
            assert found == expected[:num]
            num_found += bool(found)
    assert num_found > 50


def test_what_has_the_same_hash_is_not_the_same() -> None:
    class Crowded(SharedLookup):
        def _head(self, key: bytes, token_ids: Sequence[int], place: int) -> int:
            return 0

    lookup = Crowded(100, 2)
    lookup.add(KEY, [1, 2, 3])
    lookup.read(3)
    assert lookup.find(KEY, [1, 2], 3) == [3]
    assert lookup.find(KEY, [2, 1], 3) == []
    assert lookup.find(OTHER, [1, 2], 3) == []


def test_texts_come_in_bit_by_bit_and_leave_nothing() -> None:
    lookup = SharedLookup(100, 2)
    lookup.add(KEY, [*range(60)])
    assert lookup.read(10) == 10
    assert lookup.find(KEY, [7, 8], 3) == [9, 10, 11]
    assert lookup.find(KEY, [20, 21], 3) == []
    lookup.add(KEY, [*range(200, 270)])  # the first must go, half read
    assert lookup.find(KEY, [7, 8], 3) == []
    assert [lookup.read(50), lookup.read(50), lookup.read(50)] == [50, 20, 0]
    assert lookup.find(KEY, [268, 269], 3) == []
    assert lookup.find(KEY, [260, 261], 3) == [262, 263, 264]
    assert lookup.find(OTHER, [260, 261], 3) == []
    lookup.add(KEY, [*range(101)])  # more than there is room for
    assert lookup.read(9) == 0
