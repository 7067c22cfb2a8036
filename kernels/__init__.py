"""The hot operations: one folder per op, each fast version beside its readable reference.

This package is arithmetic on tensors; it contains nothing about models, requests or HTTP. Start at
`kernels/registry.py`, then read one folder, for example `kernels/rms_norm/`. Code that several
operations use is in `shared` (Python and Triton) and `cpp` (headers), timings of this machine are
in `measured`, programs in `tools`.

Shape letters: `T` packed tokens, `B` sequences, `H` query heads, `K` key/value heads, `D` head dim,
`C` hidden size, `I` intermediate size, `N` blocks, `S` block size, `M` blocks per table. For
images: `R` rows (request × guidance branch), `Q` queries, `L` keys.
"""

from kernels.attention import attention
from kernels.conv3x3 import Convolution, conv3x3
from kernels.copy_matrices import copy_matrices
from kernels.experts import (
    ExpertWeights,
    GgufRows,
    Routing,
    linear_experts,
    route_experts,
    sum_experts,
)
from kernels.gated_delta import gated_delta
from kernels.geglu import geglu
from kernels.gelu_mul import gelu_mul
from kernels.group_norm_silu import group_norm_silu
from kernels.linear import linear
from kernels.linear_gguf import GGUFType, fields_apart, linear_gguf
from kernels.linear_nf4 import linear_nf4
from kernels.linear_packed import PackedWeight, linear_packed
from kernels.linear_panels import (
    Panels,
    linear_panels,
    panels_from_floats,
    panels_from_gguf,
)
from kernels.linear_w4a16 import linear_w4a16
from kernels.linear_w8 import linear_w8
from kernels.lora_gather import LoraShard, lora_gather
from kernels.lora_rows import RowUpdates, lora_rows
from kernels.mul import mul
from kernels.paged_attention import PagedBatch, paged_attention
from kernels.rms_norm import add_rms_norm, rms_norm
from kernels.rope_store_kv import rope_store_kv
from kernels.sample_tokens import EditLists, SampledTokens, SamplingRows, sample_tokens
from kernels.score_tokens import TokenScores, score_tokens
from kernels.selective_scan import selective_scan
from kernels.short_conv import short_conv
from kernels.sigmoid_mul import sigmoid_mul
from kernels.silu_mul import silu_mul

OPS = (
    rms_norm,
    add_rms_norm,
    rope_store_kv,
    silu_mul,
    gelu_mul,
    sigmoid_mul,
    mul,
    paged_attention,
    group_norm_silu,
    geglu,
    attention,
    linear_gguf,
    linear_panels,
    linear_w8,
    linear_w4a16,
    linear_nf4,
    lora_gather,
    lora_rows,
    copy_matrices,
    linear,
    linear_packed,
    route_experts,
    linear_experts,
    sum_experts,
    sample_tokens,
    score_tokens,
    conv3x3,
    short_conv,
    gated_delta,
    selective_scan,
)
"""Every op, for tests and benchmarks."""

__all__ = [
    "OPS",
    "Convolution",
    "EditLists",
    "ExpertWeights",
    "GGUFType",
    "GgufRows",
    "LoraShard",
    "PackedWeight",
    "PagedBatch",
    "Panels",
    "Routing",
    "RowUpdates",
    "SampledTokens",
    "SamplingRows",
    "TokenScores",
    "add_rms_norm",
    "attention",
    "conv3x3",
    "copy_matrices",
    "fields_apart",
    "gated_delta",
    "geglu",
    "gelu_mul",
    "group_norm_silu",
    "linear",
    "linear_experts",
    "linear_gguf",
    "linear_nf4",
    "linear_packed",
    "linear_panels",
    "linear_w4a16",
    "linear_w8",
    "lora_gather",
    "lora_rows",
    "mul",
    "paged_attention",
    "panels_from_floats",
    "panels_from_gguf",
    "rms_norm",
    "rope_store_kv",
    "route_experts",
    "sample_tokens",
    "score_tokens",
    "selective_scan",
    "short_conv",
    "sigmoid_mul",
    "silu_mul",
    "sum_experts",
]
