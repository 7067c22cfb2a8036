"""Inputs for `linear_experts`: packed and plain weights, experts with many rows, few and none."""

from dataclasses import dataclass
from typing import Any

import torch

from kernels.experts.expert_weights import ExpertWeights, GgufRows, Weight
from kernels.experts.routing import Routing
from kernels.linear_gguf.cases import random_weight
from kernels.linear_gguf.fields import fields_apart
from kernels.linear_gguf.quant_type import GGUFType, row_bytes
from kernels.linear_packed import PackedWeight
from kernels.linear_panels import panels_from_gguf
from kernels.shared.work import Work, num_bytes

TOLERANCE = {
    # Sums in fp32 of up to 2048 products, in another order.
    torch.float32: 2e-5,
    # Packed weights are rounded to x's type before they are multiplied; see `linear_gguf`.
    torch.bfloat16: 1.6e-2,
    torch.float16: 2e-3,
}
SLACK = {"cpu": {torch.bfloat16: 2.4e-2}}
"""Activations may become integers of one or two digits, see `digit_activations`."""


@dataclass(frozen=True)
class Case:
    """`tokens` for `top_k` of `experts` weights [`outputs`, `inputs`]."""

    name: str
    quant_type: GGUFType | None
    """The type of the weights; None for plain weights."""
    experts: int
    top_k: int
    tokens: int
    outputs: int
    inputs: int
    gathered: bool = True
    """Whether rows are copies of tokens, sorted by expert; otherwise x has them already."""
    int8_activations: bool = False
    strided: bool = False
    """Whether rows of x are views of wider ones."""
    favourite: int | None = None
    """The expert that gets all rows, if there is one."""
    bias: bool = False
    for_gpu: bool = False
    """Whether weights are in a GPU's form, on any device."""


CASES = (
    Case("qwen3_30b_decode", GGUFType.Q4_K, 16, 8, 1, 192, 256),
    Case("qwen3_30b_down", GGUFType.Q6_K, 16, 8, 5, 128, 768, gathered=False),
    Case("each_row_another", GGUFType.Q4_0, 40, 8, 9, 48, 64),
    Case("plain", None, 40, 8, 9, 48, 64),
    Case("plain_decode", None, 8, 2, 1, 64, 96),
    Case("plain_odd", None, 5, 2, 33, 45, 37, strided=True),
    Case("plain_down", None, 5, 3, 21, 64, 40, gathered=False),
    Case("bytes", GGUFType.Q8_0, 6, 2, 70, 37, 96, strided=True),
    Case("bytes_int8", GGUFType.Q8_0, 6, 2, 17, 37, 96, int8_activations=True),
    Case("all_the_same", GGUFType.Q4_1, 4, 1, 50, 64, 64, favourite=3),
    Case("one_expert", GGUFType.Q5_0, 1, 1, 3, 16, 32),
    Case("no_rows", GGUFType.Q4_0, 3, 2, 0, 16, 32),
    Case("bias", GGUFType.Q4_0, 6, 2, 9, 37, 96, bias=True),
    Case("plain_bias", None, 6, 2, 70, 45, 96, bias=True),
    Case("gpu_q4_k", GGUFType.Q4_K, 12, 4, 1, 40, 1024, for_gpu=True),
    Case("gpu_q6_k", GGUFType.Q6_K, 5, 2, 21, 40, 256, gathered=False, for_gpu=True),
    Case("gpu_q8_0", GGUFType.Q8_0, 6, 3, 40, 37, 96, strided=True, for_gpu=True),
    Case("gpu_plain", None, 9, 2, 7, 48, 128, for_gpu=True),
    Case("gpu_plain_odd", None, 3, 2, 40, 45, 72, gathered=False, for_gpu=True),
    Case("gpu_all_the_same", None, 4, 1, 70, 33, 64, favourite=2, for_gpu=True),
    Case("gpu_bias", GGUFType.Q8_0, 6, 2, 9, 37, 1024, for_gpu=True, bias=True),
    Case("gpu_plain_bias", None, 6, 2, 70, 45, 96, gathered=False, for_gpu=True, bias=True),
    Case("gpu_no_rows", None, 3, 2, 0, 16, 32, for_gpu=True),
)
REFUSED = {
    "cpu": {case.name for case in CASES if case.for_gpu},
    "triton": {case.name for case in CASES if not case.for_gpu},
}
"""Cases that an implementation leaves to the next."""
_SIZES = {"gate_up": (1536, 2048), "down": (2048, 768)}
"""The sizes of Qwen3-30B-A3B, of which these cases have a quarter of the experts, to fit many
machines."""
BENCHMARKS: dict[str, tuple[Case, ...]] = {
    "cpu": tuple(
        Case(f"qwen3_30b {layer} {tokens} {kind}", one, 32, 8, tokens, *_SIZES[layer])
        for layer, kind, one in (
            ("gate_up", "q4_k", GGUFType.Q4_K),
            ("down", "q6_k", GGUFType.Q6_K),
            ("gate_up", "bf16", None),
        )
        for tokens in (1, 8, 64)
    ),
    "cuda": tuple(
        Case(
            f"qwen3_30b {layer} {tokens} {kind}", one, 128, 8, tokens, *_SIZES[layer], for_gpu=True
        )
        for layer, kind, one in (
            ("gate_up", "q4_k", GGUFType.Q4_K),
            ("down", "q6_k", GGUFType.Q6_K),
            ("gate_up", "bf16", None),
        )
        for tokens in (1, 64, 2048)
    ),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    if not case.for_gpu:
        device = torch.device("cpu")
    routing = _routing(case, device)
    num_rows = case.tokens if case.gathered else case.tokens * case.top_k
    width = case.inputs * 2 if case.strided else case.inputs
    x = torch.randn(num_rows, width, device=device).to(dtype)[:, : case.inputs]
    weights = [_weight(case, dtype, device) for _ in range(case.experts)]
    return {
        "x": x,
        "weights": ExpertWeights(tuple(weights)),
        "starts": routing.starts,
        "rows": routing.rows if case.gathered else None,
        "bias": torch.randn(case.experts, case.outputs, device=device) if case.bias else None,
        "int8_activations": case.int8_activations,
    }


def _routing(case: Case, device: torch.device) -> Routing:
    if device.type == "meta":
        pairs = torch.empty(case.tokens * case.top_k, dtype=torch.int64, device=device)
        starts = torch.empty(case.experts + 1, dtype=torch.int64, device=device)
        return Routing(weights=pairs, places=pairs, rows=pairs, starts=starts)
    choice = torch.rand(case.tokens, case.experts, device=device).argsort(-1)[:, : case.top_k]
    if case.favourite is not None:
        choice = torch.full_like(choice, case.favourite)
    return Routing.of(choice, torch.ones(choice.shape, device=device), case.experts)


def _weight(case: Case, dtype: torch.dtype, device: torch.device) -> Weight:
    if case.quant_type is None:
        weight = torch.randn(case.outputs, case.inputs, device=device) / case.inputs**0.5
        return weight.to(dtype) if case.for_gpu else PackedWeight.pack(weight.to(dtype))
    if device.type == "meta":
        shape = (case.outputs, row_bytes(case.quant_type, case.inputs))
        return GgufRows(torch.empty(shape, dtype=torch.uint8, device=device), case.quant_type)
    rows = random_weight(case.quant_type, case.outputs, case.inputs)
    if case.for_gpu:
        return GgufRows(fields_apart(rows, case.quant_type).to(device), case.quant_type)
    return panels_from_gguf(rows, case.quant_type)


def work(inputs: dict[str, Any]) -> Work:
    """The work; weights without rows are not read."""
    weights, x = inputs["weights"], inputs["x"]
    wanted = int((inputs["starts"].diff() > 0).sum())
    rows = int(inputs["starts"][-1])
    size = weights.out_features
    moved = wanted * num_bytes(weights.of[0]) + num_bytes(x) + rows * size * x.element_size()
    return Work(moved, 2 * rows * weights.in_features * size)
