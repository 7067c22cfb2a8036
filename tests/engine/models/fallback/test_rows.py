"""Functions in which rows meet, called for each row by itself."""

import random

import pytest
import torch
import torch.nn.functional as F

from engine.models.fallback.rows import RowsApart


@pytest.mark.parametrize("shape", [(7, 20), (1, 7, 20)])
@pytest.mark.parametrize(
    "function",
    [F.linear, torch.sigmoid, torch.Tensor.sigmoid, F.silu, torch.matmul, torch.exp, torch.tanh],
    ids=lambda function: getattr(function, "__name__", str(function)),
)
def test_a_row_has_the_bits_that_it_has_alone(function, shape):
    x = torch.randn(shape)
    takes_weight = function in (F.linear, torch.matmul)
    weight = torch.randn(20, 20)
    others = (weight,) if takes_weight else ()
    rows_apart = RowsApart()
    with rows_apart:
        found = function(x, *others)
        rows = [function(x[..., row : row + 1, :], *others) for row in range(7)]
    assert rows_apart.was_needed
    assert torch.equal(found, torch.cat(rows, dim=-2))
    torch.testing.assert_close(found, function(x, *others))


def test_what_has_a_matrix_for_each_row_is_left_alone():
    rows_apart = RowsApart()
    x, y = torch.randn(3, 4, 5), torch.randn(3, 5, random.randrange(1, 9))
    with rows_apart:
        assert torch.equal(torch.matmul(x, y), torch.bmm(x, y))
    assert not rows_apart.was_needed
