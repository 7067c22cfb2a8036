"""Mixtures of experts: what the table of all ops does not see."""

import random

import pytest
import torch

from kernels import (
    ExpertWeights,
    PackedWeight,
    Panels,
    Routing,
    _triton,
    linear,
    linear_experts,
    linear_gguf,
    linear_packed,
    linear_panels,
    native,
)
from kernels import route_experts as route
from kernels.experts import cpu, linear_cases

CPU = torch.device("cpu")
GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Triton's kernels are interpreted where there is none."""
ON_CPU = [case for case in linear_cases.CASES if not case.for_gpu]
ON_GPU = [case for case in linear_cases.CASES if case.for_gpu]
needs_native = pytest.mark.skipif(native.library() is None, reason=str(native.missing()))
needs_triton = pytest.mark.skipif(not _triton.AVAILABLE, reason="Triton is not installed")


def alone(x, weight, int8_activations):
    """One row times one weight."""
    if isinstance(weight, PackedWeight):
        return linear_packed(x, weight)
    if isinstance(weight, Panels):
        return linear_panels(x, weight, int8_activations=int8_activations)
    if isinstance(weight, torch.Tensor):
        return linear.implementations()["triton"].function(x, weight, invariant=True)
    return linear_gguf.implementations()["triton"].function(x, weight.data, weight.quant_type)


def check_rows(case, dtype, device, run, count):
    inputs = linear_cases.make_inputs(case, dtype, device)
    if case.bias:  # a product alone has none
        inputs["bias"] = torch.zeros_like(inputs["bias"])
    found = run(**inputs)
    x, rows, starts = inputs["x"], inputs["rows"], inputs["starts"].tolist()
    for row in random.sample(range(len(found)), min(len(found), count)):
        weight = inputs["weights"].of[sum(row >= end for end in starts[1:])]
        one = x[row : row + 1] if rows is None else x[rows[row : row + 1]]
        assert torch.equal(found[row], alone(one, weight, case.int8_activations)[0])


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ON_CPU, ids=lambda case: case.name)
def test_a_row_has_the_bits_of_its_own_product(case, dtype):
    check_rows(case, dtype, CPU, linear_experts, 12)


@needs_triton
@pytest.mark.parametrize("case", ON_GPU, ids=lambda case: case.name)
def test_so_it_has_on_a_gpu(case, interpreted):
    """Whatever tiles other rows are in: sums go in the order of a weight's own kernel."""
    run = linear_experts.implementations()["triton"].function
    check_rows(case, torch.bfloat16, GPU, run, 3)


def check_routing(found: Routing, tokens: int, experts: int, top_k: int) -> None:
    """Each token has `top_k` experts, each pair one place among those of its expert."""
    assert found.starts[0] == 0 and found.starts[-1] == tokens * top_k
    assert (found.starts.diff() >= 0).all() and len(found.starts) == experts + 1
    assert sorted(found.places.flatten().tolist()) == list(range(tokens * top_k))
    assert torch.equal(found.rows[found.places], torch.arange(tokens)[:, None].expand(-1, top_k))
    choice = torch.searchsorted(found.starts, found.places, right=True) - 1
    assert all(len(set(row)) == top_k for row in choice.tolist())


@needs_native
@pytest.mark.parametrize("filled", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_no_numbers_choose_something(filled):
    """A damaged model must not write beyond its memory; its answers are refused elsewhere."""
    logits = torch.randn(40, 12)
    logits[torch.rand(40, 12) < 0.5] = filled
    logits[7] = filled
    check_routing(cpu.route_experts(logits, 5, normalised=True), 40, 12, 5)


def test_a_token_is_routed_alike_in_any_company():
    logits = torch.randn(50, 30)
    found = route(logits, 4, normalised=True)
    for token in random.sample(range(50), 5):
        alone = route(logits[token : token + 1], 4, normalised=True)
        assert torch.equal(alone.weights[0], found.weights[token])


def test_weights_of_several_forms_are_not_together():
    first, second = (
        linear_cases.make_inputs(case, torch.bfloat16, CPU)["weights"].of[0]
        for case in linear_cases.CASES
        if case.name in ("plain", "each_row_another")
    )
    assert ExpertWeights.together([first, first]) is not None
    assert ExpertWeights.together([first, second]) is None
    assert ExpertWeights.together([second, None]) is None
    # Plain tensors have a product of their own on a GPU only.
    assert ExpertWeights.together([torch.randn(3, 4)]) is None
