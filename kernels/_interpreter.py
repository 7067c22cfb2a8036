"""Corrections of Triton's interpreter (3.6 to 3.9) for processes that interpret kernels.

The interpreter keeps bf16 numbers as their bits: it multiplies the bits in `tl.dot`, converts them
as if they were integers to every type but fp32, and truncates fp32 numbers instead of rounding
them. GPUs do not, so kernels need no way around it. It leaves products to BLAS, whose order of
additions depends on the processor, the number of rows and their place; a GPU's does not, so there
is one order here. Sums and products of bf16 numbers remain wrong: kernels widen the numbers that
they load.

The interpreter has no specialisation either: an integer that is 1 reaches a compiled kernel as a
constant, which has no `.to`, so it must reach an interpreted one as a constant, too.

It searches the language for what it replaces by its own whenever a kernel calls a function, and
compares types anew for each number. Here that is done once per launch and type, which halves a
kernel's time.
"""

import functools
import types
from typing import Any

import numpy as np
import triton.language as tl
from triton.backends.compiler import BaseBackend
from triton.runtime import interpreter
from triton.runtime.interpreter import (
    GridExecutor,
    InterpretedFunction,
    InterpreterBuilder,
    TensorHandle,
)
from triton.runtime.jit import JITFunction, create_function_from_signature


def repair() -> None:
    """Give the interpreter correct conversions and products of bf16, and specialised arguments."""
    InterpretedFunction.run = _run_specialised
    interpreter._patch_lang = functools.partial(_patched_once, interpreter._patch_lang)
    interpreter._get_np_dtype = functools.partial(_np_dtype, {}, interpreter._get_np_dtype)
    plain_cast, plain_dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot
    plain_fp_to_fp = InterpreterBuilder.create_fp_to_fp

    def cast(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar == tl.bfloat16:
            if dst_type.scalar == tl.bfloat16:
                return src
            src = _widened(src)
        if dst_type.scalar == tl.bfloat16:
            return _rounded(plain_cast(self, src, _like(dst_type, tl.float32)))
        return src if src.dtype.scalar == dst_type.scalar else plain_cast(self, src, dst_type)

    def fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        src = _widened(src)
        if dst_type.scalar == tl.bfloat16:
            return _rounded(fp_to_fp(self, src, _like(dst_type, tl.float32), rounding_mode))
        if src.dtype.scalar == dst_type.scalar:
            return src
        return plain_fp_to_fp(self, src, dst_type, rounding_mode)

    def dot(self: Any, a: Any, b: Any, d: Any, *args: Any, **kwargs: Any) -> Any:
        a, b = _widened(a), _widened(b)
        if a.dtype.scalar.is_fp8() or not d.dtype.scalar.is_floating():
            # The interpreter widens fp8 there; sums of integers are exact in any order.
            return plain_dot(self, a, b, d, *args, **kwargs)
        return TensorHandle(_product(a.data, b.data, d.data.dtype) + d.data, d.dtype.scalar)

    InterpreterBuilder.cast_impl = cast
    InterpreterBuilder.create_fp_to_fp = fp_to_fp
    InterpreterBuilder.create_dot = dot


def _run_specialised(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    """Pass as constants the arguments that the JIT would."""
    if warmup:
        return
    executor = GridExecutor(self.rewrite(), self.arg_names, grid, self.pre_run_hooks)
    _, specialization, _ = _binder(self)(*args, **kwargs)
    kinds = zip(self.arg_names, specialization, strict=True)
    executor.constexprs = [name for name, (kind, _) in kinds if kind == "constexpr"]
    executor(*args, **kwargs)


def _patched_once(patch_lang: Any, fn: Any) -> Any:
    """Patch the language for a kernel and for the functions it calls, which find it patched."""
    if tl.core.is_builtin(tl.core.load):
        return patch_lang(types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    return types.SimpleNamespace(restore=lambda: None)


def _np_dtype(known: dict[str, Any], np_dtype: Any, dtype: Any) -> Any:
    """Return NumPy's type for elements of a type; `known` has those of earlier calls by name."""
    name = dtype.scalar.name
    if name not in known:
        known[name] = np_dtype(dtype)
    return known[name]


@functools.cache
def _binder(interpreted: Any) -> Any:
    """Return the JIT's function that determines types and specialisations of a kernel's
    arguments."""
    compiled = JITFunction(interpreted.fn, **interpreted.kwargs)
    return create_function_from_signature(compiled.signature, compiled.params, BaseBackend)


def _widened(handle: Any) -> Any:
    """Widen bf16 to fp32; keep everything else."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = handle.data.astype(np.uint32) << 16
    return TensorHandle(bits.view(np.float32), tl.float32)


def _product(a: Any, b: Any, dtype: Any) -> Any:
    """Compute `a @ b`, [..., M, K] and [..., K, N], by adding the K products of each number one by
    one."""
    columns = np.ascontiguousarray(np.moveaxis(a, -1, 0), dtype)[..., None]
    rows = np.ascontiguousarray(np.moveaxis(b, -2, 0), dtype)[..., None, :]
    with np.errstate(over="ignore", invalid="ignore"):
        total = columns[0] * rows[0]
        product = np.empty_like(total)
        for column, row in zip(columns[1:], rows[1:], strict=True):
            total += np.multiply(column, row, out=product)
    return total


def _rounded(handle: Any) -> Any:
    """Round fp32 to bf16: to the nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(handle.data).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    bits = np.where(np.isnan(handle.data), (bits >> 16) | 0x40, nearest)
    return TensorHandle(bits.astype(np.uint16), tl.bfloat16)


def _like(dst_type: Any, scalar: Any) -> Any:
    """Return `dst_type` with another element type."""
    return tl.block_type(scalar, dst_type.shape) if dst_type.is_block() else scalar
