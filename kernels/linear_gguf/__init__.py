"""Multiplication by a matrix that keeps the bytes that it has in a GGUF file."""

from kernels import _triton
from kernels.linear_gguf import cases, composed, reference
from kernels.linear_gguf.fields import fields_apart
from kernels.linear_gguf.quant_type import GGUFType
from kernels.registry import every_call, op

linear_gguf = op(cases)(reference.linear_gguf)
linear_gguf.implementation("composed", supports=every_call)(composed.linear_gguf)
if _triton.AVAILABLE:
    from kernels.linear_gguf import triton as triton_gguf

    linear_gguf.implementation("triton", supports=triton_gguf.supports)(triton_gguf.linear_gguf)

__all__ = ["GGUFType", "fields_apart", "linear_gguf"]
