"""Rotary embedding of a step's queries and keys, and storage of its keys and values in the paged
cache."""

from kernels import _triton
from kernels.registry import every_call, op
from kernels.rope_store_kv import cases, composed, cpu, reference

rope_store_kv = op(cases)(reference.rope_store_kv)
rope_store_kv.implementation("composed", supports=every_call)(composed.rope_store_kv)
rope_store_kv.implementation("cpu", supports=cpu.supports)(cpu.rope_store_kv)
if _triton.AVAILABLE:
    from kernels.rope_store_kv import triton

    rope_store_kv.implementation("triton", supports=triton.supports)(triton.rope_store_kv)
