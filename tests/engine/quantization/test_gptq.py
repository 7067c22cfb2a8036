"""GPTQ layers against the weights that their tensors stand for, and what is wrong with some."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from engine.errors import CorruptFile, MissingWeight, ModelLoadError, ShapeMismatch
from engine.models.forward_context import NO_CONTEXT
from engine.models.layers.embedding import LmHead, TokenEmbedding
from engine.models.layers.parallel import TensorParallel
from engine.models.layers.weight_slots import WeightOptions
from engine.models.loading import Loader
from engine.quantization.gptq import GptqFormat, GptqMethod
from engine.quantization.int4_groups import GroupPanels
from engine.quantization.plain import UnpackingMethod, UnquantizedMethod
from kernels import linear_w4a16
from kernels.linear_panels.panels import unpack
from tests.helpers.quantization import format_layers
from tests.helpers.quantization.format_layers import (
    assert_divided,
    assert_multiplies,
    assert_product,
    assert_rows_alike,
    filled,
    headers_of,
    layers_of,
)
from tests.helpers.quantization.gptq_checkpoints import Layout, quantised

LAYOUTS = (
    Layout(),
    Layout(version="gptq_v2"),
    Layout(sym=True),
    Layout(group_size=-1),
    Layout(group_size=-1, desc_act=True),
    Layout(group_size=16, desc_act=True, version="gptq_v2"),
    Layout(group_size=128, desc_act=True, sym=True),
    Layout(group_size=48, scale_dtype=torch.bfloat16),
    Layout(writes_g_idx=False, scale_dtype=torch.float32),
    Layout(bits=3),
    Layout(bits=2, sym=True, group_size=16),
    Layout(bits=3, version="gptq_v2", desc_act=True),
    Layout(sym=True, group_size=48),
    Layout(bits=8, sym=True),
    Layout(bits=8, group_size=-1),
    Layout(bits=8, desc_act=True, version="gptq_v2"),
    Layout(bits=8, sym=True, desc_act=True, group_size=64, scale_dtype=torch.bfloat16),
    Layout(bits=8, sym=True, group_size=-1, scale_dtype=torch.float32),
)
IDS = [f"{i}" for i in range(len(LAYOUTS))]


def random_layer(layout, shards=None, size=160, *, bias=False):
    """Tensors by checkpoint name, and the weights by shard."""
    few = 32 if layout.bits == 3 else 16
    shards = shards or (("q", 3 * few), ("k", few), ("v", few))
    tensors, weights, shared = {}, {}, None
    for name, outputs in shards:
        made, weights[name] = quantised(torch.randn(outputs, size) / size**0.5, layout, shared)
        shared = made.get("g_idx")
        tensors |= {f"a.{name}.{kind}": tensor for kind, tensor in made.items()}
        if bias:
            tensors[f"a.{name}.bias"] = torch.randn(outputs)
    return tensors, weights


def outputs_of(state):
    """Give the outputs of one product."""
    is_panels = isinstance(state, GroupPanels)
    return state.state.panels.out_features if is_panels else state.out_features


def loaded(tensors, weights, layout, dtype=torch.float32, **options):
    return format_layers.loaded(tensors, weights, layout.config(), dtype, **options)


@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_are_those_of_the_dequantised_weight(layout, dtype):
    tensors, weights = random_layer(layout, bias=True)
    layer = loaded(tensors, weights, layout, dtype)
    assert len(layer._parts[0][1]) == 1  # One product for all shards.
    weight = torch.cat(list(weights.values()))
    assert_product(layer, tensors, weight, dtype, linear_w4a16.cases.TOLERANCE[dtype])


@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
def test_a_row_has_the_same_bits_in_any_batch(layout):
    tensors, weights = random_layer(layout)
    assert_rows_alike(partial(loaded, tensors, weights, layout), 160)


def test_bits_are_those_of_the_unpacked_twin():
    layout = Layout(group_size=16, desc_act=True)
    tensors, weights = random_layer(layout)
    plain = {
        name: UnpackingMethod(one.method, UnquantizedMethod())
        for name, one in layers_of(tensors, layout.config()).items()
    }
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        packed = loaded(tensors, weights, layout, dtype)
        twin = filled(tensors, weights, plain, dtype)
        x = torch.randn(9, 160).to(dtype)
        assert torch.equal(packed(x, NO_CONTEXT), twin(x, NO_CONTEXT))


def test_shards_with_other_orders_of_inputs_are_multiplied_apart():
    layout = Layout(desc_act=True)
    tensors, weights = random_layer(layout)
    made, weights["k"] = quantised(torch.randn(16, 160) / 13, layout)
    tensors |= {f"a.k.{kind}": tensor for kind, tensor in made.items()}
    layer = loaded(tensors, weights, layout)
    assert [outputs_of(one) for one in layer._parts[0][1]] == [48, 16, 16]
    assert_multiplies(layer, weights, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
def test_panels_hold_the_same_numbers(layout):
    """Wherever 32 neighbours may share a scale, in their own order or another."""
    tensors, weights = random_layer(layout)
    (state,) = loaded(tensors, weights, layout)._parts[0][1]
    fits = layout.group_size % 32 == 0 or layout.group_size == -1
    assert isinstance(state, GroupPanels) is fits
    if fits:
        found = unpack(state.state.panels).dequantised()
        if state.order is not None:
            found = found[:, torch.argsort(state.order)]
        # A minimum is a scale times a zero point: of fp32 scales it is rounded.
        tolerance = 1e-6 if layout.scale_dtype == torch.float32 else 0.0
        expected = torch.cat(list(weights.values()))
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("sym", "has_zeros"), [(True, False), (False, True)])
def test_symmetric_zero_points_are_not_kept(sym, has_zeros):
    layout = Layout(sym=sym)
    tensors, weights = random_layer(layout)
    (state,) = loaded(tensors, weights, layout)._parts[0][1]
    assert state.state.panels.format.has_min is has_zeros
    odd = replace(layout, group_size=48)
    tensors, weights = random_layer(odd)
    (state,) = loaded(tensors, weights, odd)._parts[0][1]
    assert (state.zeros is not None) is has_zeros


@pytest.mark.parametrize("layout", LAYOUTS, ids=IDS)
def test_memory_is_what_is_stated(layout):
    tensors, weights = random_layer(layout)
    stated = sum(layer.num_bytes(2) for layer in layers_of(tensors, layout.config()).values())
    (state,) = loaded(tensors, weights, layout)._parts[0][1]
    if isinstance(state, GroupPanels):
        kept = [state.state.panels.data, state.order]
    else:
        kept = [state.qweight, state.scales, state.zeros, state.g_idx]
    found = sum(tensor.nbytes for tensor in kept if tensor is not None)
    # Shards with one order of inputs keep it once.
    shared = 4 * 160 * (len(weights) - 1) if layout.desc_act else 0
    trivial = 4 * 160 if layout.desc_act and kept[-1] is None else 0
    assert found == stated - shared - trivial
    method = layers_of(tensors, layout.config())["a.q"].method
    size = 1 << 20
    assert method.num_bytes(8, size, 2) == pytest.approx(
        size * method.bits_per_weight(2) + (4 * size if layout.desc_act else 0), rel=1e-3
    )


@pytest.mark.parametrize("layout", LAYOUTS[:6], ids=IDS[:6])
@pytest.mark.parametrize("partition", ["outputs", "inputs"])
def test_ranks_divide_a_layer(layout, partition):
    """The sum of the parts, or one after the other, is the whole."""
    size = 192
    tensors, weights = random_layer(layout, (("q", 32),), size, bias=True)
    assert_divided(partial(loaded, tensors, weights, layout), partition, size)


@pytest.mark.parametrize("size", [96, 160])
def test_ranks_cannot_divide_a_group(size):
    layout = Layout(group_size=64)
    tensors, weights = random_layer(layout, (("q", 16),), size)
    with pytest.raises(ModelLoadError, match=r"a\.q\.(scales|qzeros).*tensor_parallel_size"):
        parallel = TensorParallel(1, 2, lambda partial: [partial])
        loaded(tensors, weights, layout, partition="inputs", parallel=parallel)


def test_an_order_that_the_configuration_denies_is_kept_on_one_rank_alone():
    layout = Layout(desc_act=True)
    tensors, weights = random_layer(layout)
    denied = Layout()
    assert_multiplies(loaded(tensors, weights, denied), weights, atol=1e-5)
    tensors, weights = random_layer(layout, (("q", 16),), 128)
    with pytest.raises(ModelLoadError, match=r"a\.q\.g_idx .*desc_act is false"):
        parallel = TensorParallel(1, 2, lambda partial: [partial])
        loaded(tensors, weights, denied, partition="inputs", parallel=parallel)


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_and_an_output_layer_may_be_quantised(tied):
    layout = Layout()
    made, weight = quantised(torch.randn(40, 64) / 8, layout)
    tensors = {f"{name}.{kind}": t for name in ("embed", "head") for kind, t in made.items()}
    model = nn.Module()
    model.embed = TokenEmbedding(40, 64)
    model.head = LmHead(model.embed, tied=tied)
    methods = {name: one.method for name, one in layers_of(tensors, layout.config()).items()}
    if tied:
        del methods["head"]
        tensors = {name: t for name, t in tensors.items() if name.startswith("embed")}
    options = WeightOptions(
        dtype=torch.float32, device=torch.device("cpu"), linear_method=methods.get
    )
    Loader(model, options).load(tensors.items())
    ids = torch.tensor([0, 39, 7])
    torch.testing.assert_close(model.embed(ids), weight[ids], atol=1e-6, rtol=0)
    x = torch.randn(3, 64)
    torch.testing.assert_close(model.head(x), x @ weight.T, atol=1e-5, rtol=0)
    assert isinstance(model.head._method, UnquantizedMethod if tied else GptqMethod)


def check_spoilt(change, error, words):
    """Check the error of loading one layer after `change(tensors)`."""
    layout = Layout(desc_act=True)
    tensors, weights = random_layer(layout, (("q", 48),))
    change(tensors)
    with pytest.raises(ModelLoadError) as caught:
        loaded(tensors, weights, layout)
    assert caught.type is error
    assert words in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scales_that_are_no_numbers(value):
    check_spoilt(
        lambda tensors: tensors["a.q.scales"].__setitem__((2, 5), value),
        CorruptFile,
        "a.q.scales has values that are not numbers",
    )


@pytest.mark.parametrize("group", [-1, 5, 2**31 - 1, -(2**31)])
def test_groups_that_are_not_there(group):
    check_spoilt(
        lambda tensors: tensors["a.q.g_idx"].__setitem__(17, group),
        CorruptFile,
        f"a.q.g_idx names group {group}; the tensors have groups 0 to 4",
    )


DAMAGES = {
    "rows": (lambda tensor: tensor[:-1], "has"),
    "columns": (lambda tensor: tensor[..., :-8], "has"),
    "empty": (lambda tensor: tensor[:0], "has"),
    "one more": (lambda tensor: torch.cat([tensor, tensor[:1]]), "has"),
    "type": (
        lambda tensor: tensor.to(torch.int32 if tensor.is_floating_point() else torch.float32),
        "has type",
    ),
}


@pytest.mark.parametrize("kind", ["qweight", "qzeros", "scales", "g_idx"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_tensors_that_do_not_fit(kind, damage):
    name = f"a.q.{kind}"
    spoil, words = DAMAGES[damage]
    check_spoilt(
        lambda tensors: tensors.update({name: spoil(tensors[name]).contiguous()}),
        ShapeMismatch,
        f"{name} {words}",
    )


@pytest.mark.parametrize("kind", ["qweight", "qzeros", "scales", "g_idx"])
def test_tensors_that_are_not_there(kind):
    """A layer without its qweight is a plain one that is missing."""
    named = "weight" if kind == "qweight" else kind
    check_spoilt(lambda tensors: tensors.pop(f"a.q.{kind}"), MissingWeight, f"lacks a.q.{named}")


RULES = {"+:.*k": {"bits": 8, "group_size": -1}, "w": {"bits": 3, "sym": True}, "-:.*v": {}}


def mixed_layer():
    """One of 4, 8 and 3 bits by rules that are patterns, and a plain one."""
    layouts = {"q": Layout(), "k": Layout(bits=8, group_size=-1), "w": Layout(bits=3, sym=True)}
    tensors, weights = {}, {"v": torch.randn(32, 160) / 13}
    for name, layout in layouts.items():
        made, weights[name] = random_layer(layout, ((name, 32),))
        tensors |= made
        weights[name] = weights[name][name]
    return tensors | {"a.v.weight": weights["v"]}, weights


@pytest.mark.parametrize("pattern", ["+:.*k", "(a+)+$" * 20])
def test_layers_may_have_bits_and_groups_of_their_own(pattern):
    """Told by their tensors: no pattern is matched."""
    tensors, weights = mixed_layer()
    config = Layout().config() | {"dynamic": {pattern: RULES["+:.*k"]} | RULES}
    headers = headers_of(tensors)
    layers = GptqFormat.detect(config, headers).layers(headers)
    methods = {name: one.method for name, one in layers.items()}
    assert {name: method.bits for name, method in methods.items()} == {"a.q": 4, "a.k": 8, "a.w": 3}
    assert methods["a.k"].group_size in (-1, 160)
    assert_multiplies(filled(tensors, weights, methods), weights)


@pytest.mark.parametrize(
    ("rules", "is_symmetric"),
    [({}, True), ({"+:.*k": {"bits": 8}}, True), ({"+:.*k": {"sym": False}}, False)],
)
def test_zero_points_are_kept_where_some_rule_speaks_of_them(rules, is_symmetric):
    layout = Layout(sym=True)
    tensors, _ = random_layer(layout, (("q", 32),))
    headers = headers_of(tensors)
    config = layout.config() | {"dynamic": rules}
    [layer] = GptqFormat.detect(config, headers).layers(headers).values()
    assert layer.method.is_symmetric == is_symmetric


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update({"a.k.qzeros": t["a.k.qzeros"][:, :-1]}),
        lambda t: t.update({"a.k.qzeros": t["a.k.qzeros"][0]}),
        lambda t: t.update({"a.k.scales": t["a.k.scales"][:0]}),
        lambda t: t.update({"a.k.scales": torch.ones(7, 32)}),
        lambda t: t.update({"a.k.qweight": t["a.k.qweight"][:0]}),
    ],
)
@pytest.mark.parametrize("group_size", [32, -1])
def test_tensors_that_go_with_no_rule_are_named(change, group_size):
    tensors, _ = mixed_layer()
    change(tensors)
    headers = headers_of(tensors)
    config = Layout().config() | {"dynamic": RULES, "group_size": group_size}
    with pytest.raises(ShapeMismatch, match=r"a\.k\.q(zeros|weight) has shape"):
        GptqFormat.detect(config, headers).layers(headers)


@pytest.mark.parametrize("cut", [lambda t: t[:0], lambda t: t[:, :0]])
def test_a_weight_without_numbers(cut):
    tensors, _ = random_layer(Layout(), (("q", 32),))
    tensors["a.q.qweight"] = cut(tensors["a.q.qweight"])
    with pytest.raises(ShapeMismatch, match=r"a\.q\.qweight has shape"):
        layers_of(tensors, Layout().config())


def test_outputs_that_are_not_packed_evenly():
    tensors = {"a.q.qweight": torch.zeros(4, 20, dtype=torch.int32)}
    tensors |= {"a.q.scales": torch.ones(1, 20).half(), "a.q.g_idx": torch.zeros(32).int()}
    tensors["a.q.qzeros"] = torch.zeros(1, 3, dtype=torch.int32)
    with pytest.raises(ShapeMismatch, match=r"a\.q\.qweight has 20 outputs"):
        layers_of(tensors, Layout().config())


def test_inputs_that_are_not_packed_evenly():
    layout = Layout(group_size=-1, writes_g_idx=False)
    tensors, weights = random_layer(layout, (("q", 16),), 24)
    with pytest.raises(ModelLoadError, match=r"a\.q\.qweight: 20 input features"):
        loaded(tensors, {"q": weights["q"][:, :20]}, layout)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bits", 1),
        ("bits", 16),
        ("bits", 4.0),
        ("bits", "4"),
        ("bits", None),
        ("group_size", 0),
        ("group_size", -2),
        ("group_size", True),
        ("group_size", 2**70),
        ("group_size", 1.5),
        ("group_size", [128]),
        ("desc_act", "yes"),
        ("sym", 1),
        ("checkpoint_format", "marlin"),
        ("checkpoint_format", ["gptq"]),
        ("pack_dtype", "int8"),
        ("dynamic", "+:x"),
        ("dynamic", ["-:x"]),
    ],
)
def test_configurations_that_are_not_supported_are_refused_by_key(key, value):
    with pytest.raises(ModelLoadError, match=rf"quantization_config: {key} is"):
        GptqFormat.detect(Layout().config() | {key: value}, {})


def test_other_configurations_are_other_formats():
    assert GptqFormat.detect({}, {}) is None
    assert GptqFormat.detect({"quant_method": "awq", "bits": 4}, {}) is None
    assert GptqFormat.detect(Layout().config() | {"dynamic": {"-:.*mlp.*": {}}}, {}) is not None
    assert GptqFormat.detect(Layout(side_file=True).config(), {}) is not None
