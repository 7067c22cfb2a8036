"""Triton's interpreter computes with bf16 as a GPU does, once it is repaired."""

import numpy as np
import pytest
import torch

from kernels import _interpreter
from kernels._triton import tl, triton

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are compiled where there is a GPU"
)


@triton.jit
def _cast_kernel(x_ptr, y_ptr, BLOCK_SIZE: tl.constexpr):
    at = tl.arange(0, BLOCK_SIZE)
    tl.store(y_ptr + at, tl.load(x_ptr + at).to(y_ptr.dtype.element_ty))


@triton.jit
def _dot_kernel(a_ptr, b_ptr, y_ptr, BLOCK_SIZE: tl.constexpr):
    at = tl.arange(0, BLOCK_SIZE)
    square = at[:, None] * BLOCK_SIZE + at[None, :]
    product = tl.dot(tl.load(a_ptr + square), tl.load(b_ptr + square))
    tl.store(y_ptr + square, product.to(y_ptr.dtype.element_ty))


@triton.jit
def _transposed_dot_kernel(a_ptr, b_ptr, y_ptr, ROWS: tl.constexpr):
    at = tl.arange(0, 64)
    some = tl.arange(0, ROWS)[:, None] * 64 + at[None, :]
    b = tl.load(b_ptr + at[:, None] * 64 + at[None, :])
    tl.store(y_ptr + some, tl.dot(tl.load(a_ptr + some), tl.trans(b)))


@triton.jit
def _rectangular_dot_kernel(
    a_ptr, b_ptr, y_ptr, ROWS: tl.constexpr, INNER: tl.constexpr, COLUMNS: tl.constexpr
):
    row, inner, column = tl.arange(0, ROWS), tl.arange(0, INNER), tl.arange(0, COLUMNS)
    a = tl.load(a_ptr + row[:, None] * INNER + inner[None, :])
    b = tl.load(b_ptr + inner[:, None] * COLUMNS + column[None, :])
    tl.store(y_ptr + row[:, None] * COLUMNS + column[None, :], tl.dot(a, b))


@triton.jit
def _integer_dot_kernel(a_ptr, b_ptr, y_ptr, BLOCK_SIZE: tl.constexpr):
    at = tl.arange(0, BLOCK_SIZE)
    square = at[:, None] * BLOCK_SIZE + at[None, :]
    threes = tl.full((BLOCK_SIZE, BLOCK_SIZE), 3, tl.int32)
    product = tl.dot(tl.load(a_ptr + square), tl.load(b_ptr + square), threes, out_dtype=tl.int32)
    tl.store(y_ptr + square, product)


@triton.jit
def _sum_kernel(x_ptr, y_ptr, BLOCK_SIZE: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK_SIZE)).to(tl.float32)
    tl.store(y_ptr, tl.sum(x, 0))
    tl.store(y_ptr + 1, tl.max(x, 0))


@triton.jit
def _converting_kernel(y_ptr, number):
    tl.store(y_ptr, number.to(tl.int64))


@triton.jit(do_not_specialize=["number"])
def _general_kernel(y_ptr, number):
    tl.store(y_ptr, number.to(tl.int64))


@triton.jit
def _constant_kernel(y_ptr, number):
    # A type that only a constant can choose.
    KIND: tl.constexpr = tl.int32 if number == 1 else tl.float32
    tl.store(y_ptr, tl.full((), 3.7, KIND).to(tl.int64))


TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int32]


@pytest.mark.parametrize("source", TYPES)
@pytest.mark.parametrize("target", TYPES)
def test_conversions_equal_pytorch(source, target):
    x = (torch.randn(256) * 50).clamp(-120, 120).to(source)
    y = torch.empty(256, dtype=target)
    _cast_kernel[(1,)](x, y, BLOCK_SIZE=256)
    assert torch.equal(y, x.to(target))


@pytest.mark.parametrize("target", [torch.float32, torch.float16, torch.bfloat16])
def test_all_fp8_numbers_are_read_exactly(target):
    x = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn)
    x = x.where(x.float().isfinite(), 0.0)
    y = torch.empty(256, dtype=target)
    _cast_kernel[(1,)](x, y, BLOCK_SIZE=256)
    assert torch.equal(y, x.to(target))


def test_rounding_keeps_what_is_special():
    x = torch.tensor([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-40, 3.4e38, 1.00390625])
    y = torch.empty(8, dtype=torch.bfloat16)
    _cast_kernel[(1,)](x, y, BLOCK_SIZE=8)
    torch.testing.assert_close(y, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_products_equal_pytorch(dtype):
    a, b = torch.randn(2, 32, 32).to(dtype)
    y = torch.empty(32, 32)
    _dot_kernel[(1,)](a, b, y, BLOCK_SIZE=32)
    torch.testing.assert_close(y, a.float() @ b.float(), rtol=1e-4, atol=1e-4)


def test_rows_of_a_product_do_not_depend_on_their_place():
    a, b = torch.randn(2, 32, 32).to(torch.bfloat16)
    y, shuffled = torch.empty(2, 32, 32)
    order = torch.randperm(32)
    _dot_kernel[(1,)](a, b, y, BLOCK_SIZE=32)
    _dot_kernel[(1,)](a[order].contiguous(), b, shuffled, BLOCK_SIZE=32)
    assert torch.equal(shuffled, y[order])


def test_rows_of_a_product_do_not_depend_on_their_number():
    a, b = torch.randn(2, 64, 64).to(torch.bfloat16)
    y, few = torch.empty(64, 64), torch.empty(16, 64)
    _transposed_dot_kernel[(1,)](a, b, y, ROWS=64)
    _transposed_dot_kernel[(1,)](a[32:48].contiguous(), b, few, ROWS=16)
    assert torch.equal(few, y[32:48])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("inner", [16, 32, 128])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (16, 64), (32, 16), (64, 128), (128, 32)])
def test_products_add_one_by_one_on_every_processor(rows, inner, columns, dtype):
    """The bits, not only the value: no processor's BLAS gives these."""
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    y = torch.empty(rows, columns)
    _rectangular_dot_kernel[(1,)](a, b, y, ROWS=rows, INNER=inner, COLUMNS=columns)
    expected = torch.zeros(rows, columns)
    for i in range(inner):
        expected = expected + a[:, i, None].float() * b[i].float()
    assert torch.equal(y, expected)


def test_a_blas_that_multiplies_otherwise_is_found_out(monkeypatch):
    """The tests above can fail: the interpreter's own product is another one."""
    a, b = torch.randn(2, 64, 64)
    products = torch.empty(2, 64, 64)
    _dot_kernel[(1,)](a, b, products[0], BLOCK_SIZE=64)
    monkeypatch.setattr(_interpreter, "_product", lambda a, b, dtype: np.matmul(a, b, dtype=dtype))
    _dot_kernel[(1,)](a, b, products[1], BLOCK_SIZE=64)
    torch.testing.assert_close(products[0], products[1], rtol=1e-4, atol=1e-4)
    assert not torch.equal(products[0], products[1])


def test_products_are_added_to_what_was_there_and_integers_are_exact():
    a, b = torch.randint(-128, 127, (2, 32, 32)).to(torch.int8)
    y = torch.empty(32, 32, dtype=torch.int32)
    _integer_dot_kernel[(1,)](a, b, y, BLOCK_SIZE=32)
    assert torch.equal(y, a.int() @ b.int() + 3)


def test_tritons_own_functions_are_interpreted_too():
    x, y = torch.randn(64).to(torch.bfloat16), torch.empty(2)
    _sum_kernel[(1,)](x, y, BLOCK_SIZE=64)
    torch.testing.assert_close(y, torch.stack((x.float().sum(), x.float().max())))


def test_an_integer_that_is_one_arrives_as_a_constant():
    y = torch.zeros(1, dtype=torch.int64)
    _converting_kernel[(1,)](y, 2)
    assert y.item() == 2
    with pytest.raises(Exception, match="'int' object has no attribute 'to'"):
        _converting_kernel[(1,)](y, 1)
    with pytest.raises(Exception, match="'int' object has no attribute 'to'"):
        _converting_kernel[(1,)](y, number=1)


def test_unless_the_kernel_is_not_to_be_specialised_by_it():
    y = torch.zeros(1, dtype=torch.int64)
    _general_kernel[(1,)](y, 1)
    assert y.item() == 1


def test_a_constant_can_choose_a_type():
    y = torch.zeros(1, dtype=torch.int64)
    _constant_kernel[(1,)](y, 1)
    assert y.item() == 3
