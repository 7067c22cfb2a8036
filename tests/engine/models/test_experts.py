"""A mixture against its definition, token by token."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from engine.models.forward_context import NO_CONTEXT
from engine.models.layers.experts import SharedExpert, SparseMlp
from engine.models.layers.weight_slots import WeightOptions
from engine.models.loading import Loader
from engine.models.loading import load_dummy_weights as fill
from engine.quantization.bitsandbytes import Nf4Format
from engine.quantization.int8 import Int8Method
from engine.quantization.rounded import RoundedMethod
from kernels import GGUFType, Routing, native
from kernels.native_recording import NativeRecorder, NotRecordable

CPU = torch.device("cpu")
needs_native = pytest.mark.skipif(native.library() is None, reason=str(native.missing()))


def make(num_experts, top_k, dtype=torch.float32, hidden=48, inner=40, method=None, **settings):
    """`method`: of the path of an expert's layer."""
    mlp = SparseMlp(
        hidden, inner, "silu", num_experts=num_experts, top_k=top_k, normalised=True, **settings
    )
    options = WeightOptions(dtype=dtype, device=CPU, linear_method=method)
    fill(mlp, options, seed=random.randrange(1 << 31))
    return mlp


def choice_of(routing):
    """[T, k] numbers of experts."""
    return torch.searchsorted(routing.starts, routing.places, right=True) - 1


def definition(x, mlp):
    """Each token by itself, each of its experts after the other."""
    routing = mlp.gate.choose(x)
    choice, weights = choice_of(routing), routing.weights
    rows = []
    for token, chosen, shares in zip(x, choice.tolist(), weights, strict=True):
        total = torch.zeros(len(token))
        for expert, share in zip(chosen, shares, strict=True):
            total += mlp.experts[expert](token[None], NO_CONTEXT)[0].float() * share
        rows.append(total.to(x.dtype))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("num_experts", "top_k", "num_tokens"),
    [(1, 1, 3), (5, 2, 1), (5, 5, 7), (64, 8, 33), (7, 1, 40)],
)
def test_equals_its_definition_bit_for_bit(num_experts, top_k, num_tokens, dtype, bias):
    mlp = make(num_experts, top_k, dtype, bias=bias)
    x = torch.randn(num_tokens, 48).to(dtype)
    assert torch.equal(mlp(x, NO_CONTEXT), definition(x, mlp))
    one_by_one(mlp)
    assert torch.equal(mlp(x, NO_CONTEXT), definition(x, mlp))


def one_by_one(mlp):
    """Each expert in a call of its own, as where a row has an adapter."""
    mlp.experts.__dict__["_grouped"] = None


METHODS = {
    "gguf": RoundedMethod(GGUFType.Q4_1),
    "gguf-int8": RoundedMethod(GGUFType.Q8_0, int8_activations=True),
    "int8": Int8Method(),
    "nf4": Nf4Format().method_for(64, 64),
}


@needs_native
@pytest.mark.parametrize("name", METHODS)
def test_weights_of_few_bits_are_multiplied_in_one_call(name):
    bias = random.random() < 0.5
    mlp = make(
        6, 3, torch.bfloat16, hidden=64, inner=64, method=lambda path: METHODS[name], bias=bias
    )
    assert mlp.experts.can_be_recorded
    x = torch.randn(17, 64).bfloat16()
    found = mlp(x, NO_CONTEXT)
    assert torch.equal(found, definition(x, mlp))
    one_by_one(mlp)
    assert torch.equal(found, mlp(x, NO_CONTEXT))


@needs_native
def test_experts_of_several_forms_are_multiplied_one_by_one():
    def method(path):
        return METHODS["gguf"] if path.startswith("experts.1.down") else None

    mlp = make(4, 2, torch.bfloat16, hidden=64, inner=32, method=method)
    assert not mlp.experts.can_be_recorded
    x = torch.randn(9, 64).bfloat16()
    assert torch.equal(mlp(x, NO_CONTEXT), definition(x, mlp))
    with torch.inference_mode(), pytest.raises(NotRecordable):
        NativeRecorder().record(lambda: mlp(x, NO_CONTEXT))


@needs_native
def test_a_recorded_mixture_follows_what_the_router_chooses():
    mlp = make(16, 2, torch.bfloat16)
    x = torch.zeros(5, 48).bfloat16()
    with torch.inference_mode():
        mlp(x, NO_CONTEXT)
        recording = NativeRecorder().record(lambda: mlp(x, NO_CONTEXT))
        for _ in range(3):
            x.copy_(torch.randn(5, 48))
            assert torch.equal(recording.replay(), definition(x, mlp))


@pytest.mark.parametrize("gated", [False, True])
def test_a_shared_expert_is_added_to_the_chosen_ones(gated):
    mlp = make(6, 2, shared=SharedExpert("shared", 24, gated))
    x = torch.randn(17, 48)
    expected = mlp.shared(x, NO_CONTEXT)
    if gated:
        expected = expected * mlp.shared_gate(x, NO_CONTEXT).sigmoid()
    found = mlp(x, NO_CONTEXT)
    torch.testing.assert_close(found, expected + definition(x, mlp))
    assert torch.equal(found, torch.cat([mlp(row[None], NO_CONTEXT) for row in x]))
    if native.library() is not None:
        with torch.inference_mode():
            recording = NativeRecorder().record(lambda: mlp(x, NO_CONTEXT))
            x.normal_()
            assert torch.equal(recording.replay(), mlp(x, NO_CONTEXT))


def test_no_tokens_give_none():
    assert make(4, 2)(torch.zeros(0, 48), NO_CONTEXT).shape == (0, 48)


def test_weights_of_the_chosen_sum_to_one_where_asked():
    mlp = make(9, 4)
    x = torch.randn(20, 48)
    routing = mlp.gate.choose(x)
    torch.testing.assert_close(routing.weights.sum(-1), torch.ones(20))
    assert torch.equal(choice_of(routing), mlp.gate.in_fp32(x).topk(4, -1).indices)


def test_all_tokens_may_choose_the_same_expert():
    mlp = make(3, 1)
    x = torch.randn(6, 48)
    choice, weights = torch.full((6, 1), 2), torch.rand(6, 1)
    found = mlp.experts.mix(x, Routing.of(choice, weights, 3), NO_CONTEXT)
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
    ctx = replace(NO_CONTEXT, adapters=Rows(torch.arange(5)))
    choice = torch.tensor([[1], [0], [1], [1], [0]])
    mlp.experts.mix(torch.randn(5, 48), Routing.of(choice, torch.ones(5, 1), 3), ctx)
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
    assert mlp.gate.choose(torch.randn(3, 48)).weights.shape == (3, 1)
