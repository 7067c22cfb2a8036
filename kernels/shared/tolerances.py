"""Tolerances that the cases of several operations share."""

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""The types of inputs that have a tolerance."""
ROUNDED_WEIGHTS = {
    # Sums in fp32 of up to 14336 products in another order.
    torch.float32: 2e-5,
    # Weights are rounded to x's type before they are multiplied, by up to 2^-8 and 2^-11 of each.
    # Rounding errors are random: an output near one is off by a thousandth, by ten at worst among
    # ten thousand.
    torch.bfloat16: 1.6e-2,
    torch.float16: 2e-3,
}
"""The tolerance where implementations may round dequantised weights."""
ROUNDED_SUMS = {torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
"""The slack of PyTorch's products, which are rounded before a bias of up to 8 is added."""
