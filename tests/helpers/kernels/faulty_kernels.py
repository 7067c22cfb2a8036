"""Triton kernels with the faults that compiling ahead of time must find, and good ones beside."""

import torch

from kernels._triton import tl, triton
from kernels.tools.launches import Launch, recorded


@triton.jit
def _good_kernel(x_ptr, out_ptr, size, BLOCK_SIZE: tl.constexpr):
    at = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    x = tl.load(x_ptr + at, mask=at < size, other=0.0)
    tl.store(out_ptr + at, x + 1, mask=at < size)


@triton.jit
def _spilling_kernel(x_ptr, out_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A kernel with two tiles of which each element is needed until the end."""
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    x = tl.load(x_ptr + at)
    y = tl.load(x_ptr + ROWS * COLUMNS + at)
    by_row, by_column = tl.sum(x * y, 1), tl.sum(x + y, 0)
    tl.store(out_ptr + at, x * by_row[:, None] + y * by_column[None, :])


@triton.jit
def _product_kernel(a_ptr, b_ptr, out_ptr, inner, TILE: tl.constexpr, USE_DOT: tl.constexpr):
    """A kernel that multiplies [TILE, inner] by [inner, TILE]."""
    side, depth = tl.arange(0, TILE), tl.arange(0, 64)
    total = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, inner, 64):
        a = tl.load(a_ptr + side[:, None] * inner + start + depth[None, :])
        b = tl.load(b_ptr + side[None, :] * inner + start + depth[:, None])
        if USE_DOT:
            total = tl.dot(a, b, total)
        else:
            total += tl.sum(a.to(tl.float32), 1)[:, None] * tl.sum(b.to(tl.float32), 0)[None, :]
    tl.store(out_ptr + side[:, None] * TILE + side[None, :], total)


@triton.jit
def _converting_kernel(out_ptr, num_rows):
    """A kernel that cannot be compiled for a single row."""
    tl.store(out_ptr, num_rows.to(tl.int64))


@triton.jit(do_not_specialize=["num_rows"])
def _general_kernel(out_ptr, num_rows):
    tl.store(out_ptr, num_rows.to(tl.int64))


def tensor(dtype: torch.dtype, offset: int = 0) -> torch.Tensor:
    """Make a tensor without memory that starts `offset` elements behind an aligned address."""
    return torch.empty(1 << 20, dtype=dtype, device="meta")[offset:]


def good(size: int = 1000, offset: int = 0) -> None:
    """Launch a kernel that has no fault."""
    x, out = tensor(torch.bfloat16, offset), tensor(torch.bfloat16)
    _good_kernel[(1,)](x, out, size, BLOCK_SIZE=1024)


def product(tile: int, *, use_dot: bool = True, **options: int) -> None:
    a, b, out = tensor(torch.bfloat16), tensor(torch.bfloat16), tensor(torch.float32)
    _product_kernel[(1,)](a, b, out, 4096, TILE=tile, USE_DOT=use_dot, **options)


def spilling() -> None:
    x, out = tensor(torch.float32), tensor(torch.float32)
    _spilling_kernel[(1,)](x, out, ROWS=64, COLUMNS=128, num_warps=1)


CALLS = {
    "good": good,
    "good product": lambda: product(64),
    "any number of rows": lambda: _general_kernel[(1,)](tensor(torch.int64), 1),
    "many rows": lambda: _converting_kernel[(1,)](tensor(torch.int64), 2),
    "spills": spilling,
    "too much shared memory": lambda: product(128, num_warps=8, num_stages=9),
    "no tensor cores": lambda: product(16, use_dot=False),
    "single row": lambda: _converting_kernel[(1,)](tensor(torch.int64), 1),
}
"""The launches, by what they show."""


def launch(name: str, capability: int = 80) -> Launch:
    """Record what one of the calls launches."""
    with recorded(capability) as launches:
        CALLS[name]()
    (found,) = launches
    return found
