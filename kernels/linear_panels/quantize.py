"""Converts plain weights to 8-bit panels."""

import torch
from torch import Tensor

from kernels.linear_panels.panels import BLOCK, LANES, Codes, PanelFormat, Panels, pack

_CHUNK_WEIGHTS = 1 << 22
INT8 = PanelFormat(bits=8, offset=128)
"""The panel format for 8 bits, like GGUF's Q8_0."""


def panels_from_floats(weight: Tensor) -> Panels:
    """Round each 32 inputs of an output to 8 bits with an fp16 scale.

    Args:
        weight: [N, K], any float dtype, K a multiple of 32.
    """
    step = max(1, _CHUNK_WEIGHTS // weight.shape[1] // LANES) * LANES
    parts = [pack(_codes(rows)).data for rows in torch.split(weight, step)]
    rows, columns = weight.shape
    return Panels(format=INT8, out_features=rows, in_features=columns, data=torch.cat(parts))


def _codes(weight: Tensor) -> Codes:
    groups = weight.float().reshape(len(weight), -1, BLOCK)
    # Codes are chosen for the scale as it is stored.
    scales = (groups.abs().amax(2) / 127).to(torch.float16)
    inverse = scales.float().reciprocal().nan_to_num(posinf=0.0)
    codes = (groups * inverse.unsqueeze(2)).round_().clamp_(-127, 127).add_(128)
    return Codes(format=INT8, codes=codes.to(torch.uint8).flatten(1), scales=scales)
