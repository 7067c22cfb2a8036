import random

import numpy as np
import pytest

from engine.fidelity.faces import Face, FaceGuard, face_weights, find_faces
from engine.pictures.arrays import Bytes
from tests.helpers.pictures import measure, noise, photograph, resized, rounded

ASTRONAUT = (0.35, 0.11, 0.55, 0.34)
"""Left, top, right and bottom of her face, as shares of the photograph's sides."""


@pytest.mark.parametrize("side", [320, 160, 2000])
def test_a_face_is_found_at_any_size(side: int) -> None:
    faces = find_faces(rounded(resized(photograph(), side, side)))
    left, top, right, bottom = ASTRONAUT
    middles = [(face.left + face.width / 2, face.top + face.height / 2) for face in faces]
    assert any(left < x < right and top < y < bottom for x, y in middles), faces


def test_no_face_in_noise_or_in_next_to_nothing() -> None:
    assert find_faces(np.full((200, 300, 3), 90, np.uint8)) == []
    for height, width in ((1, 1), (1, 3000), (3000, 1), (5, 5)):
        assert find_faces(noise(height, width, 4)) == []


def test_the_mask_is_soft_and_ends() -> None:
    face = Face(0.4, 0.4, 0.2, 0.2)
    weights = face_weights([face], (500, 500), 0, 500)
    assert weights[250, 250] == 1
    assert weights[250, 308] == weights[308, 250] == 1
    assert weights[:140].max() == weights[:, 360:].max() == 0
    assert np.abs(np.diff(weights, axis=0)).max() < 0.05
    parts = [face_weights([face], (500, 500), a, a + 100) for a in range(0, 500, 100)]
    assert np.concatenate(parts).tolist() == weights.tolist()


def guarded(result: Bytes, original: Bytes, faces: list[Face], strength: float) -> Bytes:
    """Guard the faces in bands of some rows."""
    guard = FaceGuard(original, faces, *result.shape[:2], strength)
    rows = random.randint(1, len(result))
    starts = range(0, len(result), rows)
    return np.concatenate([guard.guarded(result[start : start + rows], start) for start in starts])


def test_faces_follow_the_original_and_all_else_stays() -> None:
    original, result = noise(50, 50), noise(200, 200)
    face = Face(0.3, 0.3, 0.3, 0.3)
    plain = rounded(resized(original, 200, 200)).astype(int)
    whole = guarded(result, original, [face], 1.0)
    middle = (slice(80, 100), slice(80, 100))
    assert np.abs(whole[middle].astype(int) - plain[middle]).max() <= 1
    outside = face_weights([face], (200, 200), 0, 200) == 0
    assert whole[outside].tolist() == result[outside].tolist()
    half = guarded(result, original, [face], 0.5)[middle].astype(float)
    unclipped = resized(original, 200, 200)[middle]
    expected = np.clip((result[middle] + unclipped) / 2, 0, 255)
    assert np.abs(half - expected).max() <= 0.51


def test_the_guard_lowers_invention() -> None:
    original = photograph()
    faces = find_faces(original)
    result = rounded(resized(original, 640, 640) + noise(640, 640, low=0, high=60))
    scores = [
        measure(guarded(result, original, faces, strength), original).psnr_db
        for strength in (0.0, 0.3, 0.6)
    ]
    assert scores == sorted(set(scores))


def test_without_faces_or_strength_nothing_changes() -> None:
    original, result = noise(10, 10, 4), noise(30, 40, 4)
    assert guarded(result, original, [], 1.0).tolist() == result.tolist()
    assert guarded(result, original, [Face(0, 0, 1, 1)], 0.0).tolist() == result.tolist()
