"""The norm with one program per row, which keeps all of the row in registers."""

from torch import Tensor

from kernels import _triton
from kernels._triton import tl, triton

MAX_SIZE = 16384
"""The most elements of a row."""


@triton.jit
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    x_row_stride,
    residual_row_stride,
    size,
    eps,
    offset,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK_SIZE)
    mask = at < size
    x = tl.load(x_ptr + row * x_row_stride + at, mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        residual_at = residual_ptr + row * residual_row_stride + at
        x += tl.load(residual_at, mask, other=0.0).to(tl.float32)
        rounded = x.to(residual_ptr.dtype.element_ty)
        tl.store(residual_at, rounded, mask)
        x = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / size + eps)
    weight = tl.load(weight_ptr + at, mask, other=0.0).to(tl.float32)
    y = x * scale * (offset + weight)
    tl.store(out_ptr + row * size + at, y.to(out_ptr.dtype.element_ty), mask)


def supports(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> bool:
    """Supports CUDA tensors of two dimensions whose last one is contiguous and not too long."""
    return (
        _triton.runs_on(x, weight)
        and x.dim() == 2
        and x.stride(1) == 1
        and x.shape[1] <= MAX_SIZE
        and weight.is_contiguous()
    )


def supports_add(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0
) -> bool:
    """Supports the tensors that `supports` does, for both inputs."""
    return supports(x, weight, eps) and _triton.runs_on(residual) and residual.stride(1) == 1


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0) -> Tensor:
    """See `kernels.rms_norm`."""
    return _run(x, None, weight, eps, offset)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, offset: float = 0.0
) -> Tensor:
    """See `kernels.rms_norm`."""
    return _run(x, residual, weight, eps, offset)


def _run(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, offset: float) -> Tensor:
    rows, size = x.shape
    out = x.new_empty(rows, size)
    if rows == 0:
        return out
    block_size = triton.next_power_of_2(size)
    _rms_norm_kernel[(rows,)](
        x,
        residual,
        weight,
        out,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        size,
        eps,
        offset,
        HAS_RESIDUAL=residual is not None,
        BLOCK_SIZE=block_size,
        num_warps=_num_warps(block_size),
    )
    return out


def _num_warps(block_size: int) -> int:
    """Return the warps for eight elements per thread, 16 bytes of bf16, up to the threads that a
    block can have."""
    return min(max(block_size // 256, 1), 16)
