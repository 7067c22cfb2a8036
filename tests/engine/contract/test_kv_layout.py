"""How layers share blocks, and how many a text takes, against counting."""

from random import choice, randint

import pytest

from engine.contract.kv_layout import MAX_GROUPS, KvLayout, KvShape, LayerKind, group_layers

SHAPE = KvShape(2, 64)


def kinds_of(windows, shapes=None):
    shapes = shapes or [SHAPE] * len(windows)
    return dict(enumerate(map(LayerKind, windows, shapes)))


@pytest.mark.parametrize(
    ("windows", "sizes"),
    [
        ([None] * 4, [4]),
        ([7] * 4, [4]),
        # Gemma 3 with 270 M, 1 B, 4 B, 12 B and 27 B parameters.
        ([None if i % 6 == 5 else 512 for i in range(18)], [3] * 6),
        ([None if i % 6 == 5 else 512 for i in range(26)], [4] * 5 + [2, 4]),
        ([None if i % 6 == 5 else 1024 for i in range(34)], [5] * 5 + [4, 5]),
        ([None if i % 6 == 5 else 1024 for i in range(48)], [8] * 6),
        ([None if i % 6 == 5 else 1024 for i in range(62)], [10] * 5 + [2, 10]),
        # Every second one.
        ([8, None] * 5, [5, 5]),
        # So few that a block of their size would take too many tables.
        ([None] + [8] * 40, [1, 6, 6, 6, 6, 6, 6, 4]),
    ],
)
def test_groups_have_one_window_and_about_one_size(windows, sizes):
    groups = group_layers(kinds_of(windows))
    assert [len(group.layers) for group in groups] == sizes
    assert sorted(layer for group in groups for layer in group.layers) == list(range(len(windows)))
    for group in groups:
        assert {windows[layer] for layer in group.layers} == {group.window}
        assert list(group.layers) == sorted(group.layers)


@pytest.mark.parametrize(
    ("num_layers", "period", "sliding", "full", "sizes"),
    [
        # Gemma 4 E2B and E4B (without the layers that read others' keys), 26B-A4B and 31B.
        (15, 5, KvShape(1, 256), KvShape(1, 512), [6, 6, 3]),
        (24, 6, KvShape(2, 256), KvShape(2, 512), [4] * 5 + [2, 2]),
        (30, 6, KvShape(8, 256), KvShape(2, 512), [4] * 6 + [1, 5]),
        (60, 6, KvShape(16, 256), KvShape(4, 512), [8] * 6 + [2, 10]),
    ],
)
def test_groups_of_two_shapes_fill_blocks_of_one_size(num_layers, period, sliding, full, sizes):
    is_full = [layer % period == period - 1 for layer in range(num_layers)]
    groups = group_layers(
        kinds_of([None if f else 512 for f in is_full], [full if f else sliding for f in is_full])
    )
    assert [len(group.layers) for group in groups] == sizes
    assert {group.shape for group in groups if group.window is None} == {full}
    assert {group.shape for group in groups if group.window == 512} == {sliding}


def test_more_windows_than_groups_get_a_group_each():
    assert len(group_layers(kinds_of(range(1, MAX_GROUPS + 3)))) == MAX_GROUPS + 2


def random_layout():
    return KvLayout(
        block_size=choice([1, 2, 3, 4, 16]),
        windows=tuple(choice([None, randint(1, 40)]) for _ in range(randint(1, 4))),
        max_in_flight=randint(1, 30),
    )


def test_passed_blocks_are_those_that_nothing_later_looks_at():
    for _ in range(300):
        size, window, num_tokens = randint(1, 9), randint(1, 30), randint(0, 100)
        layout = KvLayout(block_size=size, windows=(window,))
        unseen = layout.num_unseen(window, num_tokens)
        first_seen = max(0, num_tokens - window + 1)
        assert unseen * size <= first_seen < (unseen + 1) * size
        # One token more is kept.
        one_short = layout.num_unseen(window, max(0, num_tokens - 1))
        assert layout.num_passed(window, num_tokens) == one_short
    assert layout.num_passed(None, 10**6) == layout.num_unseen(None, 10**6) == 0


def test_a_growing_text_never_takes_more_blocks_than_it_says():
    for _ in range(200):
        layout, size = random_layout(), 0
        end = randint(1, 150)
        computed, most = 0, 0
        while computed < end:
            reached = min(end, computed + choice([1, randint(1, layout.max_in_flight)]))
            held = sum(
                -(-reached // layout.block_size) - layout.num_passed(window, computed)
                for window in layout.windows
            )
            most, computed = max(most, held), reached
        assert most <= layout.most_blocks(end)
        size = layout.most_blocks(end)
        assert layout.most_tokens(size) >= end
        assert layout.most_tokens(size - 1) < end


def test_a_plain_model_takes_a_block_per_block_size_tokens():
    layout = KvLayout(block_size=16, max_in_flight=512)
    assert [layout.most_blocks(n) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]
    assert layout.most_tokens(10) == 160
    assert not layout.slides
    assert KvLayout(block_size=16, windows=(None, 8)).slides
