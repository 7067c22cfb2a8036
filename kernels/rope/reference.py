"""The definition, in fp32, half by half."""

import torch
from torch import Tensor


def rope_inplace(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """See `kernels.rope`."""
    half = x.shape[-1] // 2
    x1, x2 = x[..., :half].float(), x[..., half:].float()
    cosine, sine = cos[..., half:], sin[..., half:]
    x.copy_(torch.cat((x1 * cosine - x2 * sine, x2 * cosine + x1 * sine), dim=-1))
