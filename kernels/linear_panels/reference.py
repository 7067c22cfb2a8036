"""The definition, in fp32."""

import torch.nn.functional as F
from torch import Tensor

from kernels.linear_panels.panels import BLOCK, Panels, unpack
from kernels.shared.int8_activations import round_to_int8


def linear_panels(
    x: Tensor,
    panels: Panels,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
    fp32_out: bool = False,
) -> Tensor:
    """See `kernels.linear_panels`."""
    weight = unpack(panels).dequantised()
    if int8_activations:
        codes, scale = round_to_int8(x, BLOCK)
        y = F.linear((codes * scale).reshape(x.shape), weight, bias)
    else:
        y = F.linear(x.float(), weight.to(x.dtype).float(), bias)
    return y if fp32_out else y.to(x.dtype)
