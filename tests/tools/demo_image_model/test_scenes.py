"""Scenes whose objects lie on a grid."""

import random

from tools.demo_image_model.palette import SIZES
from tools.demo_image_model.scenes import GRID, draw_scene, scene_rng, snapped


def test_snapped_scenes_lie_on_the_grid_inside_and_apart_and_mean_the_same():
    seed = random.randrange(2**31)
    radii = set()
    for index in range(2000):
        scene = draw_scene(scene_rng(seed, index))
        snap = snapped(scene)
        assert (snap.background, snap.place, snap.relation) == (
            scene.background,
            scene.place,
            scene.relation,
        )
        for old, new in zip(scene.items, snap.items, strict=True):
            assert (new.x * GRID).is_integer() and (new.y * GRID).is_integer(), index
            assert new.radius <= min(new.x, new.y, 1 - new.x, 1 - new.y), index
            assert abs(new.x - old.x) <= 0.5 / GRID and abs(new.y - old.y) <= 0.5 / GRID, index
            radii.add((new.size, new.radius))
        assert snapped(snap) == snap
    assert {size for size, _ in radii} == set(SIZES) and len(radii) == len(SIZES)
