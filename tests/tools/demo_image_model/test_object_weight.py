"""Cells of objects count more, small objects as much as large ones."""

import pytest
import torch

from tools.demo_image_model.object_weight import LARGEST, OBJECT_WEIGHT, object_weight, weighted_mse
from tools.demo_image_model.scenes import Item


def item(x: float, y: float, radius: float) -> Item:
    return Item("circle", "red", "large", x, y, radius)


def test_cells_of_objects_count_more_and_others_one():
    above = object_weight([[item(0.25, 0.5, LARGEST)], []], 16)
    assert above.shape == (2, 1, 16, 16)
    assert above[0, 0, 8, 4] == OBJECT_WEIGHT
    assert above[0, 0, 8, 12] == 0 and not above[1].any()


def test_a_small_object_counts_as_much_as_a_large_one():
    small, large = (object_weight([[item(0.5, 0.5, r)]], 64).sum() for r in (LARGEST / 2, LARGEST))
    assert float(small / large) == pytest.approx(1.0, abs=0.15)


def test_two_objects_keep_their_own_weights():
    items = [item(0.25, 0.5, LARGEST), item(0.75, 0.5, LARGEST / 2)]
    both = object_weight([items], 32)
    alone = [object_weight([[one]], 32) for one in items]
    assert torch.equal(both, torch.maximum(*alone))


def test_rows_count_alike_and_no_weight_is_the_plain_mean():
    output, target = torch.randn(2, 3, 4, 8, 8).unbind()
    zero = torch.zeros(3, 1, 8, 8)
    plain = torch.nn.functional.mse_loss(output, target)
    assert torch.allclose(weighted_mse(output, target, zero), plain)
    assert torch.allclose(weighted_mse(output, target, zero + 5), plain)
    above = zero.clone()
    above[:, :, :4] = 3
    error = (output - target).square().mean(dim=1)
    expected = (0.4 * 4 * error[:, :4]).mean() / 2 + (0.4 * error[:, 4:]).mean() / 2
    assert torch.allclose(weighted_mse(output, target, above), expected)
