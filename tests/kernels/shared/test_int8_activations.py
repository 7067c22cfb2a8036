"""The rounding of activations, to the bit: every implementation must agree with it."""

import numpy as np
import torch

from kernels.shared.int8_activations import round_to_int8


def test_rounding_is_by_one_quotient():
    x = torch.randn(200, 64).half().float()
    q, scale = round_to_int8(x, 32)
    groups = x.numpy().reshape(200, 2, 32)
    largest = np.abs(groups).max(-1, keepdims=True)
    assert np.array_equal(scale.numpy(), largest / np.float32(127))
    assert np.array_equal(q.numpy(), np.rint(groups * (np.float32(127) / largest)))


def test_nothing_and_nearly_nothing_become_zeros():
    x = torch.stack([torch.zeros(32), torch.full((32,), 1e-38), torch.ones(32)])
    q, scale = round_to_int8(x, 32)
    assert q[:, 0, 0].tolist() == [0, 0, 127]
    assert scale.isfinite().all()
