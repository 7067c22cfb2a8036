"""Pools of several sizes: who has a turn when, and the same rows after a stop."""

import torch

from tools.demo_image_model.latent_pool import LatentPools, num_steps_at

TURNS = [128, 128, 64]


def pools(step: int) -> LatentPools[tuple[int, int]]:
    return LatentPools(
        TURNS,
        lambda size, index: (size, index),
        lambda size, scenes: torch.tensor([[float(size), float(i)] for _, i in scenes]),
        pool_size=10,
        batch=8,
        refresh=4,
        step=step,
    )


def test_counts_the_turns_of_each_size():
    for steps in range(10):
        taken = [TURNS[i % 3] for i in range(steps)]
        for size in (64, 128):
            assert num_steps_at(size, TURNS, steps) == taken.count(size)


def test_a_size_named_twice_has_one_pool_and_two_turns():
    running = pools(0)
    for step in range(7):
        scenes, rows = running.sample(step, torch.Generator().manual_seed(step))
        size = TURNS[step % 3]
        assert {one for one, _ in scenes} == {size}
        assert len(scenes) == (8 if size == 64 else 2)
        assert rows.tolist() == [[float(size), float(i)] for _, i in scenes]


def test_rebuilds_what_a_stopped_run_held():
    running = pools(0)
    for step in range(50):
        running.sample(step, torch.Generator())
    rebuilt = pools(50)
    for step in range(50, 53):
        generators = [torch.Generator().manual_seed(step) for _ in range(2)]
        assert running.sample(step, generators[0])[0] == rebuilt.sample(step, generators[1])[0]
