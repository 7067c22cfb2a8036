"""A model most of whose layers look back a window only, through the whole engine."""

import random

import pytest

WINDOW, BLOCK = 40, 16
LENGTH = 6000


@pytest.fixture(scope="module")
def folder(tiny_gemma3):
    """Five sliding layers to one that looks back at all."""
    return tiny_gemma3(
        seed=2,
        num_hidden_layers=6,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
        sliding_window=WINDOW,
        max_position_embeddings=8192,
    )


def held(engine):
    """By window, blocks that each running sequence holds in each group."""
    [sequence] = engine._scheduler._sequences.running
    return sequence.num_computed, [(t.window, len(t.block_ids)) for t in sequence.table.tables]


@pytest.mark.parametrize("budget", [512, 100])
@pytest.mark.parametrize("asynchronous", ["off", "on"])
def test_on_a_long_prompt_sliding_layers_hold_their_windows_blocks(
    engines, folder, budget, asynchronous
):
    engine = engines.make(
        folder,
        # The text's blocks for the layer that keeps all, and next to nothing for the others.
        num_kv_blocks=-(-LENGTH // BLOCK) + 5 * 70,
        max_num_batched_tokens=budget,
        async_scheduling=asynchronous,
        debug_invariants=False,
    )
    prompt = [random.randrange(400) for _ in range(LENGTH - 10)]
    engine.add(engines.request("long", prompt, max_tokens=10, ignore_eos=True))
    num_steps = 0
    while engine.has_work():
        engine.step()
        num_steps += 1
        if not engine.has_work():
            break
        num_computed, blocks = held(engine)
        steps_ahead = 2 if asynchronous == "on" else 0
        most = -(-(WINDOW + steps_ahead * budget) // BLOCK) + 1
        for window, num_blocks in blocks:
            if window is None:
                assert num_blocks >= num_computed // BLOCK
            else:
                assert num_blocks <= most, (num_computed, blocks)
    assert [window for window, _ in blocks] == [WINDOW] * 5 + [None]
    assert num_steps >= LENGTH // budget
    stats = engine.stats()
    assert (stats.kv_blocks_used, stats.kv_slots_unused) == (0, 0)
    engine._scheduler.check_invariants()


def test_many_long_texts_share_a_pool_that_would_hold_few_of_them_whole(engines, folder):
    """If all layers kept all, four texts of 2,000 tokens would take 3,000 blocks."""
    # A window, a step's tokens and a block to grow in each of five groups.
    engine = engines.make(folder, num_kv_blocks=4 * (125 + 5 * 20 + 6), max_num_batched_tokens=256)
    requests = [
        engines.request(
            str(i), [random.randrange(400) for _ in range(1800)], max_tokens=200, ignore_eos=True
        )
        for i in range(4)
    ]
    most_running = 0
    for request in requests:
        engine.add(request)
    while engine.has_work():
        engine.step()
        most_running = max(most_running, engine.stats().num_running)
    assert most_running == 4
    assert engine.stats().num_preemptions == 0


def test_a_cached_prefix_needs_its_last_window_only(engines, folder):
    engine = engines.make(
        folder, max_num_batched_tokens=256, num_kv_blocks=400, prefix_cache_memory_gib=1.0
    )
    prefix = [random.randrange(400) for _ in range(640)]
    first = engines.request("a", [*prefix, 1, 2, 3], max_tokens=2)
    engines.run(engine, [first])
    cache = engine._scheduler._pool.cache
    # The sliding groups' blocks go, but for a few at the end: they were given back in that order.
    sliding = [block_id for block_id in cache.idle if cache._key_of[block_id][0] < 5]
    assert len(sliding) == 5 * 40
    for block_id in sliding[: 5 * 30]:
        del cache._idle[block_id]
        cache.forget(block_id)
        engine._scheduler._pool._free.append(block_id)
    second = engines.request("b", [*prefix, 4, 5], max_tokens=5)
    done = engines.run(engine, [second])
    assert done["b", 0].num_cached_tokens == 640
    fresh = engines.make(folder, enable_prefix_caching=False)
    assert done["b", 0].token_ids == engines.run(fresh, [second])["b", 0].token_ids
