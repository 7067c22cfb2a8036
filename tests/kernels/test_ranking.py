"""The order of tokens, against numpy's stable sort."""

import numpy as np
import pytest
import torch

from kernels.score_tokens.ranking import first_ids, key_ids, order_keys


def _values(kind: str, shape: tuple[int, int]) -> torch.Tensor:
    values = torch.randn(shape) * 4
    if kind == "bf16":
        return values.bfloat16().float()
    if kind == "few":
        return values.sign() * (values.abs() > 4)
    if kind == "equal":
        return torch.zeros(shape)
    if kind == "masked":
        return values.masked_fill(torch.rand(shape) < 0.9, -torch.inf)
    return values


@pytest.mark.parametrize("kind", ["plain", "bf16", "few", "equal", "masked"])
@pytest.mark.parametrize("num_ids", [1, 31, 32, 33, 1000, 4097])
def test_first_ids_are_the_stable_sort_s_first(kind: str, num_ids: int) -> None:
    values = _values(kind, (5, num_ids))
    expected = np.argsort(-(values.numpy() + 0.0), axis=1, kind="stable")
    for k in {1, min(5, num_ids), min(40, num_ids), min(300, num_ids), num_ids}:
        assert np.array_equal(first_ids(values, k).numpy(), expected[:, :k]), k


def test_minus_zero_equals_zero() -> None:
    values = torch.tensor([[-0.0, 0.0, -0.0, -1.0]])
    assert first_ids(values, 4).tolist() == [[0, 1, 2, 3]]


def test_keys_give_their_ids_back_and_sort_extremes() -> None:
    values = torch.tensor([torch.inf, 3e38, 1e-45, 0.0, -1e-45, -3e38, -torch.inf])
    ids = torch.arange(7)
    keys = order_keys(values, ids)
    assert keys.tolist() == sorted(keys.tolist(), reverse=True)
    assert key_ids(keys).tolist() == ids.tolist()


def test_a_row_with_nan_gets_valid_ids_and_spares_the_others() -> None:
    values = torch.randn(3, 5000)
    expected = first_ids(values, 20)
    values[1, 7:4000:3] = torch.nan
    got = first_ids(values, 20)
    assert torch.equal(got[[0, 2]], expected[[0, 2]])
    assert bool(((got >= 0) & (got < 5000)).all())
