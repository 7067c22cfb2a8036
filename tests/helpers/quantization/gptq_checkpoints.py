"""Random weights in GPTQ's layouts, packed as the tools that write them do, and their twins.

The packing is written out number by number, and shares no code with what reads it.
"""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.helpers.quantization.packed_folders import Made, write_packed


@dataclass(frozen=True)
class Layout:
    """How a checkpoint stores its quantised layers."""

    bits: int = 4
    group_size: int = 32
    desc_act: bool = False
    sym: bool = False
    version: str = "gptq"
    """The value of `checkpoint_format`."""
    scale_dtype: torch.dtype = torch.float16
    writes_g_idx: bool = True
    lm_head: bool = False
    side_file: bool = False
    """Whether `quantize_config.json` replaces a key of config.json."""

    def config(self) -> dict[str, Any]:
        """The value of `quantization_config`."""
        found: dict[str, Any] = {
            "bits": self.bits,
            "group_size": self.group_size,
            "desc_act": self.desc_act,
            "sym": self.sym,
            "lm_head": self.lm_head,
            "true_sequential": True,
            "damp_percent": 0.01,
        }
        if self.version != "gptq" or not self.side_file:
            found["checkpoint_format"] = self.version
        return found if self.side_file else found | {"quant_method": "gptq"}


def pack_inputs(q: Tensor, bits: int = 4) -> Tensor:
    """[K, N] of 0 ... 2^bits - 1 → [K * bits / 32, N] int32, bit by bit."""
    packed = torch.zeros(q.shape[0] * bits // 32, q.shape[1], dtype=torch.int32)
    for row in range(q.shape[0]):
        for bit in range(bits):
            word, place = divmod(row * bits + bit, 32)
            packed[word] |= (q[row].int() >> bit & 1) << place
    return packed


def pack_outputs(q: Tensor, bits: int = 4) -> Tensor:
    """[G, N] → [G, N * bits / 32] int32."""
    return pack_inputs(q.T, bits).T.contiguous()


def g_idx_of(size: int, layout: Layout) -> Tensor:
    """[K] int32."""
    runs = torch.arange(size) // (size if layout.group_size == -1 else layout.group_size)
    return (runs[torch.randperm(size)] if layout.desc_act else runs).int()


def quantised(weight: Tensor, layout: Layout, g_idx: Tensor | None = None) -> Made:
    """A layer's tensors by kind, and the weight [N, K] fp32 that they stand for.

    Args:
        weight: [N, K].
        g_idx: of another layer with the same inputs; None: its own.
    """
    size = weight.shape[1]
    if g_idx is None:
        g_idx = g_idx_of(size, layout)
    groups = 1 if layout.group_size == -1 else math.ceil(size / layout.group_size)
    by_input = weight.T.float()
    scales = torch.empty(groups, weight.shape[0])
    most = 2**layout.bits - 1
    zeros = torch.full((groups, weight.shape[0]), (most + 1) // 2)
    for group in range(groups):
        some = by_input[g_idx == group]
        if layout.sym:
            scales[group] = some.abs().amax(0) / (most // 2)
        else:
            low, high = some.amin(0).clamp(max=0), some.amax(0).clamp(min=0)
            scales[group] = (high - low) / most
            zeros[group] = (-low / scales[group]).round().clamp(0, most).long()
    scales = scales.clamp(min=1e-4).to(layout.scale_dtype)
    of_input = g_idx.long()
    q = (by_input / scales.float()[of_input]).round().long() + zeros[of_input]
    q = q.clamp(0, most)
    stored = (zeros - 1) % (most + 1) if layout.version == "gptq" else zeros
    tensors = {
        "qweight": pack_inputs(q, layout.bits),
        "qzeros": pack_outputs(stored, layout.bits),
        "scales": scales,
    }
    if layout.writes_g_idx:
        tensors["g_idx"] = g_idx.clone()
    return tensors, ((q - zeros[of_input]) * scales.float()[of_input]).T.contiguous()


def write_gptq(original: Path, folder: Path, layout: Layout, seed: int = 0) -> tuple[Path, Path]:
    """Write a model folder in GPTQ's layout, and its twin with the same weights in fp32.

    Linear layers inside the blocks are quantised, and the output layer if `layout` says so.
    """
    torch.manual_seed(seed)
    orders: dict[tuple[str, int], Tensor] = {}

    def quantise(layer: str, weight: Tensor) -> Made | None:
        if not (layer.endswith("_proj") or (layer == "lm_head" and layout.lm_head)):
            return None
        # Layers with the same inputs share their order, but not always.
        key = (layer.rpartition(".")[0], weight.shape[1])
        order = orders.setdefault(key, g_idx_of(weight.shape[1], layout))
        own = None if random.Random(f"{seed}{layer}.weight").random() < 0.2 else order
        return quantised(weight, layout, own)

    config = ... if layout.side_file else layout.config()
    packed, twin = write_packed(original, folder, quantise, config)
    if layout.side_file:
        (packed / "quantize_config.json").write_text(json.dumps(layout.config()))
    return packed, twin
