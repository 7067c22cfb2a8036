"""A mixture against its definition, token by token."""

import random
from types import SimpleNamespace

import pytest
import torch

from engine.models.forward_context import NO_CONTEXT
from engine.models.layers.experts import SparseMlp, mix
from engine.models.layers.weight_slots import WeightOptions
from engine.models.loading import Loader
from engine.models.loading import load_dummy_weights as fill

CPU = torch.device("cpu")


def make(num_experts, top_k, dtype=torch.float32, hidden=48, inner=40, **settings):
    mlp = SparseMlp(
        hidden, inner, "silu", num_experts=num_experts, top_k=top_k, normalised=True, **settings
    )
    fill(mlp, WeightOptions(dtype=dtype, device=CPU), seed=random.randrange(1 << 31))
    return mlp


def definition(x, mlp):
    """Each token by itself, each of its experts after the other."""
    choice, weights = mlp.gate.choose(x)
    rows = []
    for token, chosen, shares in zip(x, choice.tolist(), weights, strict=True):
        total = torch.zeros(len(token))
        for expert, share in zip(chosen, shares, strict=True):
            total += mlp.experts[expert](token[None], NO_CONTEXT)[0].float() * share
        rows.append(total.to(x.dtype))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_experts", "top_k", "num_tokens"),
    [(1, 1, 3), (5, 2, 1), (5, 5, 7), (64, 8, 33), (7, 1, 40)],
)
def test_equals_its_definition_bit_for_bit(num_experts, top_k, num_tokens, dtype):
    mlp = make(num_experts, top_k, dtype)
    x = torch.randn(num_tokens, 48).to(dtype)
    assert torch.equal(mlp(x, NO_CONTEXT), definition(x, mlp))


def test_no_tokens_give_none():
    assert make(4, 2)(torch.zeros(0, 48), NO_CONTEXT).shape == (0, 48)


def test_weights_of_the_chosen_sum_to_one_where_asked():
    mlp = make(9, 4)
    x = torch.randn(20, 48)
    choice, weights = mlp.gate.choose(x)
    whole = mlp.gate.in_fp32(x).softmax(-1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(20))
    assert torch.equal(choice, whole.topk(4, -1).indices)


def test_all_tokens_may_choose_the_same_expert():
    mlp = make(3, 1)
    x = torch.randn(6, 48)
    choice, weights = torch.full((6, 1), 2), torch.rand(6, 1)
    found = mix(x, mlp.experts, choice, weights, NO_CONTEXT)
    assert torch.equal(found, mlp.experts[2](x, NO_CONTEXT) * weights)


def test_adapters_get_the_rows_of_their_expert():
    seen = {}

    class Rows:
        def __init__(self, rows):
            self.rows = rows

        def at(self, rows):
            return Rows(self.rows[rows])

        def add(self, path, x, y):
            seen[path] = self.rows.tolist()

    mlp = make(3, 1)
    for number, expert in enumerate(mlp.experts):
        expert.down_proj.path = str(number)
    from dataclasses import replace

    ctx = replace(NO_CONTEXT, adapters=Rows(torch.arange(5)))
    mix(
        torch.randn(5, 48),
        mlp.experts,
        torch.tensor([[1], [0], [1], [1], [0]]),
        torch.ones(5, 1),
        ctx,
    )
    assert (seen["0"], seen["1"]) == ([1, 4], [0, 2, 3])
    assert "2" not in seen


def test_a_router_stays_plain_where_weights_are_made_small():
    asked = []
    method = SimpleNamespace(takes_plain_weights=True)

    def method_of(name):
        asked.append(name)
        return method

    mlp = SparseMlp(48, 40, "silu", num_experts=2, top_k=1, normalised=True)
    options = WeightOptions(dtype=torch.float32, device=CPU, linear_method=method_of)
    slots = mlp.gate.create_weights("mlp.gate", options)
    assert list(slots) == ["mlp.gate.weight"]
    assert asked == ["mlp.gate"]
    Loader(mlp.gate, WeightOptions(dtype=torch.float32, device=CPU)).load(
        [("gate.weight", torch.randn(2, 48))]
    )
    assert mlp.gate.choose(torch.randn(3, 48))[0].shape == (3, 1)
