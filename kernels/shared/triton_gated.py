"""The common part of the Triton gates: one elementwise kernel with four activations."""

import torch
from torch import Tensor

from kernels import _triton
from kernels._triton import tl, triton

BLOCK_SIZE = 1024


@triton.jit
def _gated_mul_kernel(
    halves_ptr,
    out_ptr,
    halves_row_stride,
    size,
    ACTIVATION: tl.constexpr,
    GATE_FIRST: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = at < size
    first = tl.load(halves_ptr + row * halves_row_stride + at, mask, other=0.0).to(tl.float32)
    second = tl.load(halves_ptr + row * halves_row_stride + size + at, mask, other=0.0)
    second = second.to(tl.float32)
    gate, up = (first, second) if GATE_FIRST else (second, first)
    if ACTIVATION == "silu":
        gate *= _sigmoid(gate)
    elif ACTIVATION == "sigmoid":
        gate = _sigmoid(gate)
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(u)) / 2 is sigmoid(2u).
        gate *= _sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    else:
        gate *= 0.5 + 0.5 * tl.erf(gate * 0.7071067811865476)
    tl.store(out_ptr + row * size + at, (gate * up).to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _sigmoid(x):
    # exp(-|x|) never overflows.
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


def supports(halves: Tensor) -> bool:
    """Supports CUDA tensors of two dimensions whose last one is contiguous."""
    return _triton.runs_on(halves) and halves.dim() == 2 and halves.stride(1) == 1


def run(
    halves: Tensor, activation: str, second: Tensor | None = None, *, gate_first: bool = True
) -> Tensor:
    """Run a gate: [T, 2·I], or [T, I] of each half, to [T, I], contiguous. `activation`: `silu`,
    `sigmoid`, `gelu_tanh` or `gelu`."""
    if second is not None:
        halves = torch.cat((halves, second), 1)
    rows, size = halves.shape[0], halves.shape[1] // 2
    out = halves.new_empty(rows, size)
    if out.numel():
        _gated_mul_kernel[(rows, triton.cdiv(size, BLOCK_SIZE))](
            halves,
            out,
            halves.stride(0),
            size,
            ACTIVATION=activation,
            GATE_FIRST=gate_first,
            BLOCK_SIZE=BLOCK_SIZE,
        )
    return out
