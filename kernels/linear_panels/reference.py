"""The definition, in fp32."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.int8_activations import round_to_int8
from kernels.linear_panels.panels import BLOCK, Panels, unpack


def linear_panels(
    x: Tensor,
    panels: Panels,
    bias: Tensor | None = None,
    *,
    fp32_out: bool = False,
) -> Tensor:
    """See `kernels.linear_panels`."""
    codes, scale = round_to_int8(x, BLOCK)
    rounded = (codes * scale).reshape(x.shape)
    return F.linear(rounded, unpack(panels).dequantised(), bias).to(
        torch.float32 if fp32_out else x.dtype
    )
