"""Names, shapes, memory and ranks: what happens between a checkpoint and a model."""

import random
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from engine.errors import MissingWeight, ShapeMismatch
from engine.models.forward_context import NO_CONTEXT
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.weight_slots import WeightOptions
from engine.models.loading import Loader
from engine.models.registry import create_model
from engine.quantization.plain import UnquantizedMethod
from kernels import PackedWeight
from tests.helpers.models.tiny_pairs import (
    create_pair,
    named_weights,
    random_text,
    run_alone,
    their_logits,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair():
    return create_pair("Qwen2")


def fresh(pair, **options):
    return create_model(pair[2], **({"dtype": torch.float32} | options))


def test_a_missing_tensor_is_named(pair):
    weights = dict(named_weights(pair[1]))
    del weights["model.layers.1.self_attn.k_proj.bias"]
    with pytest.raises(MissingWeight, match=r"lacks model\.layers\.1\.self_attn\.k_proj\.bias;"):
        fresh(pair).load_weights(weights.items())


def test_of_many_missing_tensors_some_are_named():
    pair = create_pair("Llama")
    with pytest.raises(MissingWeight, match=r"lacks lm_head\.weight, .* and 16 more"):
        fresh(pair).load_weights([])


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
)
def test_a_wrong_shape_is_told_with_both_shapes(pair, name):
    weights = dict(named_weights(pair[1]))
    shape = tuple(weights[name].shape)
    weights[name] = torch.zeros(3, 5)
    with pytest.raises(ShapeMismatch) as caught:
        fresh(pair).load_weights(weights.items())
    assert all(part in str(caught.value) for part in (name, "(3, 5)", str(shape)))


def test_unexpected_tensors_are_listed_and_ignored(pair):
    weights = dict(named_weights(pair[1]))
    names = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.9.mlp.up_proj.weight"]
    weights |= dict.fromkeys(names, torch.zeros(8))
    assert fresh(pair).load_weights(weights.items()) == names


def test_order_of_tensors_does_not_matter(pair):
    _, theirs, config = pair
    weights = named_weights(theirs)
    random.shuffle(weights)
    model = fresh(pair)
    model.load_weights(weights)
    text = random_text(9)
    found = run_alone(model, config, text, [9])
    torch.testing.assert_close(found, their_logits(theirs, text), atol=1e-4, rtol=0)


def test_weights_are_copies_of_the_checkpoints_memory(pair):
    _, theirs, config = pair
    weights = [(name, tensor.clone()) for name, tensor in named_weights(theirs)]
    model = fresh(pair)
    model.load_weights(weights)
    for _, tensor in weights:
        tensor.fill_(torch.nan)
    assert run_alone(model, config, [1, 2, 3], [3]).isfinite().all()


def test_a_layer_is_finished_as_soon_as_its_tensors_are_there(pair):
    """So that plain and packed weights of the whole model never exist at one time."""
    model = fresh(pair, dtype=torch.bfloat16)
    finished = []
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            original = module.process_weights_after_loading
            module.process_weights_after_loading = lambda p=path, o=original: (
                finished.append(p),
                o(),
            )
    seen = []

    def weights():
        for name, tensor in named_weights(pair[1]):
            if name == "model.layers.1.self_attn.q_proj.weight":
                seen.extend(finished)
            yield name, tensor

    model.load_weights(weights())
    assert "model.layers.0.mlp.down_proj" in seen
    assert "model.layers.1.mlp.down_proj" not in seen
    layer = model.model.layers[0].mlp.down_proj
    assert isinstance(layer._parts[0][1].weight, PackedWeight)
    assert not layer._loading, "a packed weight replaces the plain one"


class DoublingMethod(UnquantizedMethod):
    """Stands for another weight format."""

    def apply(self, state, x):
        return super().apply(state, x) * 2


def test_shards_of_different_methods_keep_their_order():
    weights = {name: torch.randn(size, 8) for name, size in (("q", 6), ("k", 4), ("v", 2))}
    methods = {"a.q": UnquantizedMethod(), "a.k": DoublingMethod()}
    methods["a.v"] = methods["a.k"]
    layer = Linear(8, [Shard(name, len(w)) for name, w in weights.items()])
    options = WeightOptions(dtype=torch.float32, device=CPU, linear_method=methods.__getitem__)
    parent = torch.nn.Module()
    parent.a = torch.nn.Module()
    parent.a.qkv_proj = layer
    Loader(parent, options).load([(f"a.{name}.weight", w) for name, w in weights.items()])
    assert len(layer._parts) == 2
    x = torch.randn(3, 8)
    expected = torch.cat((x @ weights["q"].T, 2 * x @ weights["k"].T, 2 * x @ weights["v"].T), 1)
    torch.testing.assert_close(layer(x, NO_CONTEXT), expected)


def test_dummy_weights_fill_the_model(pair):
    model = fresh(pair)
    model.load_dummy_weights(seed=1)
    assert run_alone(model, pair[2], [5, 6, 7], [3]).isfinite().all()


def test_layers_hand_their_rows_to_the_adapters():
    class Doubling:
        seen: ClassVar[list] = []

        def add(self, path, x, y):
            self.seen.append((path, x.shape[1], y.shape[1]))
            y.mul_(2)

    ours, _, _ = create_pair("Llama")
    layers = {m.path: m for m in ours.modules() if isinstance(m, Linear)}
    layer = layers["model.layers.1.self_attn.qkv_proj"]
    x = torch.randn(3, layer.in_features)
    doubled = layer(x, replace(NO_CONTEXT, adapters=Doubling()))
    assert torch.equal(doubled, 2 * layer(x, NO_CONTEXT))
    assert Doubling.seen == [(layer.path, 48, 160)]
    assert layer.shard_paths == [f"model.layers.1.self_attn.{one}_proj" for one in "qkv"]
