"""Triton kernels with the faults that compiling ahead of time must find, and good ones beside."""

from kernels._triton import Variant, tl, triton


@triton.jit
def _good_kernel(x_ptr, out_ptr, size, BLOCK_SIZE: tl.constexpr):
    at = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    x = tl.load(x_ptr + at, mask=at < size, other=0.0)
    tl.store(out_ptr + at, x + 1, mask=at < size)


@triton.jit
def _spilling_kernel(x_ptr, out_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Two tiles of which each element is needed until the end."""
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    x = tl.load(x_ptr + at)
    y = tl.load(x_ptr + ROWS * COLUMNS + at)
    by_row, by_column = tl.sum(x * y, 1), tl.sum(x + y, 0)
    tl.store(out_ptr + at, x * by_row[:, None] + y * by_column[None, :])


@triton.jit
def _product_kernel(a_ptr, b_ptr, out_ptr, inner, TILE: tl.constexpr, USE_DOT: tl.constexpr):
    """[TILE, inner] times [inner, TILE]."""
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


_PRODUCT = {"a_ptr": "*bf16", "b_ptr": "*bf16", "out_ptr": "*fp32", "inner": "i32"}


def variants() -> dict[str, Variant]:
    """By what they are to show."""
    return {
        "good": Variant(
            kernel=_good_kernel,
            name="good",
            signature={"x_ptr": "*bf16", "out_ptr": "*bf16", "size": "i32"},
            constants={"BLOCK_SIZE": 1024},
            unaligned=("size",),
        ),
        "good product": Variant(
            kernel=_product_kernel,
            name="good product",
            signature=_PRODUCT,
            constants={"TILE": 64, "USE_DOT": True},
            uses_tensor_cores=True,
        ),
        "spills": Variant(
            kernel=_spilling_kernel,
            name="spills",
            signature={"x_ptr": "*fp32", "out_ptr": "*fp32"},
            constants={"ROWS": 64, "COLUMNS": 128},
            num_warps=1,
        ),
        "too much shared memory": Variant(
            kernel=_product_kernel,
            name="too much shared memory",
            signature=_PRODUCT,
            constants={"TILE": 128, "USE_DOT": True},
            num_warps=8,
            num_stages=9,
            uses_tensor_cores=True,
        ),
        "no tensor cores": Variant(
            kernel=_product_kernel,
            name="no tensor cores",
            signature=_PRODUCT,
            constants={"TILE": 16, "USE_DOT": False},
            uses_tensor_cores=True,
        ),
        "incomplete": Variant(
            kernel=_good_kernel,
            name="incomplete",
            signature={"x_ptr": "*bf16", "out_ptr": "*bf16"},
            constants={"BLOCK_SIZE": 1024, "NO_SUCH": 1},
        ),
    }
