import random

import numpy as np
import pytest

from engine.contract.examination import Examination, Faithfulness
from engine.fidelity.aftercare import Aftercare
from engine.fidelity.back_projection import back_project
from engine.pictures.arrays import Bytes
from tests.helpers.pictures import heat_map, measure, noise, photograph, resized, rounded


def cared_for(
    result: Bytes, original: Bytes, **wanted: float
) -> tuple[list[Bytes], Bytes, Examination]:
    """What came before the end, all that came, and what was said of it."""
    care = Aftercare(original, *result.shape[:2], Faithfulness(**wanted))
    early, first = [], 0
    while first < len(result):
        end = min(len(result), first + random.randint(0, 9))
        early.append(care.take(result[first:end]))
        first = end
    late, examination = care.end()
    return early, np.concatenate([*early, late]), examination


@pytest.mark.parametrize("channels", [3, 4])
def test_rows_go_on_as_they_come(channels: int) -> None:
    result, original = noise(61, 40, channels), noise(16, 10, channels)
    early, all_rows, examination = cared_for(result, original)
    assert all_rows.tolist() == result.tolist()
    assert sum(map(len, early)) == len(result)
    assert examination.consistency.psnr_db == pytest.approx(measure(result, original).psnr_db)
    assert examination.num_faces is None
    assert examination.heat_map is None


def test_with_fidelity_they_wait_and_agree_more() -> None:
    result, original = noise(61, 40), noise(16, 10)
    early, all_rows, examination = cared_for(result, original, fidelity=0.8)
    assert sum(map(len, early)) == 0
    expected = result.copy()
    back_project(expected, original, 0.8)
    assert all_rows.tolist() == expected.tolist()
    plain = measure(result, original).psnr_db
    assert examination.consistency.psnr_db > plain + 3


def test_a_heat_map_is_of_what_goes_out() -> None:
    result, original = noise(61, 40), noise(16, 10)
    _, all_rows, examination = cared_for(result, original, fidelity=0.5, heat_map=True)
    found = examination.heat_map
    assert found is not None
    assert (found.width, found.height, found.channels) == (10, 16, 3)
    expected = heat_map(all_rows, original)
    shown = np.frombuffer(found.data, np.uint8).reshape(expected.shape)
    # Sums in another order.
    assert np.abs(shown.astype(int) - expected).max() <= 1


def test_faces_are_guarded_and_counted() -> None:
    original = photograph()
    result = rounded(resized(original, 480, 480) + noise(480, 480, low=0, high=80))
    _, guarded, examination = cared_for(result, original, face_guard=1.0)
    assert examination.num_faces is not None
    assert examination.num_faces >= 1
    assert examination.consistency.psnr_db > measure(result, original).psnr_db
    assert 0 < (guarded != result).any(axis=2).mean() < 0.5
    _, _, examination = cared_for(noise(40, 40), noise(10, 10), face_guard=1.0)
    assert examination.num_faces == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_lines_and_points(size: tuple[int, int]) -> None:
    height, width = size
    result, original = noise(4 * height, 4 * width), noise(height, width)
    wanted = {"fidelity": 1.0, "face_guard": 1.0, "heat_map": True}
    _, all_rows, examination = cared_for(result, original, **wanted)
    assert all_rows.shape == result.shape
    assert examination.consistency.psnr_db >= measure(result, original).psnr_db
