"""What the op × implementation test cannot see of `linear_w8`: integer sums are exact."""

import torch

from kernels import linear_w8
from kernels.linear_w8 import composed


def test_integer_sums_are_exact_on_every_processor():
    q = torch.randint(-127, 128, (3, 5000), dtype=torch.int8)
    weight = torch.randint(-128, 128, (7, 5000), dtype=torch.int8)
    q[0], weight[0] = 127, -128
    expected = (q.double() @ weight.double().T).to(torch.int32)
    assert torch.equal(composed._integer_product(q, weight), expected)
    assert int(expected[0, 0]) == -127 * 128 * 5000


def test_rows_are_rounded_halves_to_even():
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5], [254.0, 1.0, 3.0, 0.0]])
    found = linear_w8(x, torch.eye(4, dtype=torch.int8), torch.ones(4), int8_activations=True)
    assert torch.equal(found, torch.tensor([[127.0, 0.0, 2.0, -2.0], [254.0, 0.0, 4.0, 0.0]]))
