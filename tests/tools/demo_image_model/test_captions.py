"""What captions say of a scene."""

from tools.demo_image_model.captions import caption
from tools.demo_image_model.palette import SHAPES
from tools.demo_image_model.scenes import draw_scene, scene_rng


def test_a_caption_names_all_objects_or_none() -> None:
    lengths = set()
    for index in range(4000):
        scene = draw_scene(scene_rng(11, index))
        text = caption(scene, scene_rng(12, index))
        named = [word for word in text.replace(",", "").split() if word in SHAPES]
        lengths.add((len(scene.items), len(named)))
        if len(scene.items) == 2 and text:
            assert sorted(named) == sorted(item.shape for item in scene.items), text
    assert lengths == {(1, 0), (1, 1), (2, 0), (2, 2)}
