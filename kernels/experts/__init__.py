"""Mixtures of experts: the routing of rows to experts, products with each expert's weights, and the
sum of the results."""

from kernels import _triton
from kernels.experts import cpu, linear_cases, reference, route_cases, sum_cases
from kernels.experts.expert_weights import ExpertWeights, GgufRows
from kernels.experts.routing import Routing
from kernels.registry import op

__all__ = [
    "ExpertWeights",
    "GgufRows",
    "Routing",
    "linear_experts",
    "route_experts",
    "sum_experts",
]

route_experts = op(route_cases)(reference.route_experts)
linear_experts = op(linear_cases)(reference.linear_experts)
sum_experts = op(sum_cases)(reference.sum_experts)
route_experts.implementation("cpu", supports=cpu.supports_route)(cpu.route_experts)
linear_experts.implementation("cpu", supports=cpu.supports_linear)(cpu.linear_experts)
sum_experts.implementation("cpu", supports=cpu.supports_sum)(cpu.sum_experts)
if _triton.AVAILABLE:
    from kernels.experts import triton, triton_linear

    route_experts.implementation("triton", supports=triton.supports_route)(triton.route_experts)
    linear_experts.implementation("triton", supports=triton_linear.supports)(
        triton_linear.linear_experts
    )
    sum_experts.implementation("triton", supports=triton.supports_sum)(triton.sum_experts)
