"""AWQ layers against the weights that their tensors stand for, and what is wrong with some."""

import math
import random

import pytest
import torch
from awq_checkpoints import config, quantised
from torch import nn

from engine.errors import CorruptFile, MissingWeight, ModelLoadError, ShapeMismatch
from engine.models.forward_context import NO_CONTEXT
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.parallel import TensorParallel
from engine.models.layers.weight_slots import WeightOptions
from engine.models.loading import Loader
from engine.quantization.awq import AwqFormat
from engine.quantization.format import TensorHeader
from engine.quantization.int4_groups import GroupPanels
from kernels import linear_w4a16
from kernels.linear_panels.panels import unpack

TYPES = {torch.int32: "I32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
CASES = [("gemm", 32), ("gemm", 256), ("gemm", 48), ("gemm", -1), ("gemv", 32), ("gemv", 64)]
"""The last of the groups of 256 is cut."""
SIZE = 384


def headers_of(tensors):
    return {name: TensorHeader(tuple(t.shape), TYPES[t.dtype]) for name, t in tensors.items()}


def random_layer(version, group_size, shards=(("q", 48), ("k", 16)), bias=True, **options):
    tensors, weights = {}, {}
    for name, outputs in shards:
        made, weights[name] = quantised(outputs, SIZE, version, group_size, **options)
        tensors |= {f"a.{name}.{kind}": tensor for kind, tensor in made.items()}
        if bias:
            tensors[f"a.{name}.bias"] = torch.randn(outputs)
    return tensors, weights


def loaded(tensors, weights, given, *, parallel=None, partition="none", dtype=torch.float32):
    found = AwqFormat.detect(given, headers_of(tensors))
    methods = {name: one.method for name, one in found.layers(headers_of(tensors)).items()}
    layer = Linear(
        next(iter(weights.values())).shape[1],
        [Shard(name, len(weight)) for name, weight in weights.items()],
        bias=any(name.endswith("bias") for name in tensors),
        partition=partition,
    )
    parent = nn.Module()
    parent.a = nn.Module()
    parent.a.qkv_proj = layer
    settings = {"dtype": dtype, "device": torch.device("cpu"), "linear_method": methods.get}
    if parallel is not None:
        settings["parallel"] = parallel
    order = sorted(tensors.items(), key=lambda _: random.random())
    Loader(parent, WeightOptions(**settings)).load(order)
    return layer


@pytest.mark.parametrize(("version", "group_size"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_are_those_of_the_dequantised_weight(version, group_size, dtype):
    tensors, weights = random_layer(version, group_size)
    layer = loaded(tensors, weights, config(version, group_size), dtype=dtype)
    x = torch.randn(7, SIZE).to(dtype)
    bias = torch.cat([tensors[f"a.{name}.bias"] for name in weights]).to(dtype).float()
    expected = x.float() @ torch.cat(list(weights.values())).T + bias
    tolerance = linear_w4a16.cases.TOLERANCE[dtype] + torch.finfo(dtype).eps * 4
    assert (layer(x, NO_CONTEXT).float() - expected).abs().max() <= tolerance


@pytest.mark.parametrize(("version", "group_size"), CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_panels_hold_the_same_numbers(version, group_size, dtype):
    tensors, weights = random_layer(version, group_size, dtype=dtype)
    state = loaded(tensors, weights, config(version, group_size))._parts[0][1]
    assert isinstance(state, GroupPanels) is (group_size != 48)
    if group_size != 48:
        found = unpack(state.state.panels).dequantised()
        torch.testing.assert_close(found, torch.cat(list(weights.values())), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("version", "group_size"), CASES)
def test_a_row_has_the_same_bits_in_any_batch(version, group_size):
    tensors, weights = random_layer(version, group_size)
    for dtype in (torch.bfloat16, torch.float32):
        layer = loaded(tensors, weights, config(version, group_size), dtype=dtype)
        x = torch.randn(33, SIZE).to(dtype)
        together = layer(x, NO_CONTEXT)
        for rows in (slice(0, 1), slice(5, 9), slice(2, 32)):
            assert torch.equal(layer(x[rows], NO_CONTEXT), together[rows])


@pytest.mark.parametrize(("version", "group_size"), CASES)
def test_memory_is_what_is_stated(version, group_size):
    tensors, weights = random_layer(version, group_size, bias=False)
    found = AwqFormat.detect(config(version, group_size), headers_of(tensors))
    for device in ("cpu", "cuda"):
        layers = found.layers(headers_of(tensors), device).values()
        stated = sum(layer.num_bytes(2) for layer in layers)
        state = loaded(tensors, weights, config(version, group_size))._parts[0][1]
        if device == "cpu" and isinstance(state, GroupPanels):
            assert state.state.panels.data.nbytes == stated
        else:
            groups = math.ceil(SIZE / (SIZE if group_size == -1 else group_size))
            assert stated == 64 * (SIZE / 2 + 3 * groups)


@pytest.mark.parametrize(
    ("version", "partition"), [("gemm", "outputs"), ("gemm", "inputs"), ("gemv", "outputs")]
)
def test_ranks_divide_a_layer(version, partition):
    tensors, weights = random_layer(version, 32, (("q", 32),))
    x, given = torch.randn(4, SIZE), config(version)
    whole = loaded(tensors, weights, given)(x, NO_CONTEXT)
    ranks = [
        loaded(
            tensors,
            weights,
            given,
            partition=partition,
            parallel=TensorParallel(rank, 2, lambda partial: partial),
        )
        for rank in (0, 1)
    ]
    if partition == "outputs":
        found = torch.cat([layer(x, NO_CONTEXT) for layer in ranks], 1)
    else:
        parts = zip(ranks, x.chunk(2, 1), strict=True)
        found = sum(layer(part.contiguous(), NO_CONTEXT) for layer, part in parts)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("version", "group_size"), [("gemm", 256), ("gemv", 64)])
def test_ranks_cannot_divide_a_group(version, group_size):
    tensors, weights = random_layer(version, group_size, (("q", 16),))
    with pytest.raises(ModelLoadError, match=r"tensor_parallel_size"):
        parallel = TensorParallel(1, 2, lambda partial: partial)
        given = config(version, group_size)
        loaded(tensors, weights, given, partition="inputs", parallel=parallel)


def test_groups_are_not_cut_in_gemv():
    """Zero points have room for whole groups alone: here for eight, of eight and a half."""
    made, weight = quantised(16, 1088, "gemv", 128)
    tensors = {f"a.q.{kind}": tensor for kind, tensor in made.items()}
    for kind, width in (("qzeros", 1), ("scales", 8)):
        tensors[f"a.q.{kind}"] = tensors[f"a.q.{kind}"][:, :width].contiguous()
    with pytest.raises(
        ModelLoadError, match=r"1088 input features cannot be divided into groups of 128"
    ):
        loaded(tensors, {"q": weight}, config("gemv", 128))


def spoilt(change):
    tensors, weights = random_layer("gemm", 32, (("q", 48),))
    change(tensors)
    with pytest.raises(ModelLoadError) as caught:
        loaded(tensors, weights, config())
    return caught


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scales_that_are_no_numbers(value):
    caught = spoilt(lambda tensors: tensors["a.q.scales"].__setitem__((2, 5), value))
    assert caught.type is CorruptFile
    assert "a.q.scales has values that are not numbers" in str(caught.value)


@pytest.mark.parametrize("kind", ["qweight", "qzeros", "scales"])
@pytest.mark.parametrize("damage", ["rows", "columns", "type", "gone"])
def test_tensors_that_do_not_fit(kind, damage):
    name = f"a.q.{kind}"

    def change(tensors):
        tensor = tensors.pop(name)
        if damage == "rows":
            tensors[name] = tensor[:-1].contiguous()
        elif damage == "columns":
            tensors[name] = tensor[:, :-1].contiguous()
        elif damage == "type":
            tensors[name] = tensor.to(torch.int32 if kind == "scales" else torch.float32)

    caught = spoilt(change)
    missing = damage == "gone"
    assert caught.type is (MissingWeight if missing else ShapeMismatch)
    if missing:
        assert "lacks a.q." in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bits", 3),
        ("bits", "4"),
        ("bits", True),
        ("bits", 4.0),
        ("group_size", 0),
        ("group_size", None),
        ("group_size", 2**70),
        ("zero_point", False),
        ("zero_point", "yes"),
        ("version", "marlin"),
        ("version", ["gemm"]),
        ("version", None),
    ],
)
def test_configurations_that_are_not_supported_are_refused_by_key(key, value):
    with pytest.raises(ModelLoadError, match=rf"quantization_config: {key} is .*for AWQ"):
        AwqFormat.detect(config() | {key: value}, {})


def test_other_names_of_the_same():
    old = {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"}
    assert AwqFormat.detect(old, {}) is not None
    assert AwqFormat.detect({"quant_method": "gptq", "bits": 4}, {}) is None
    assert AwqFormat.detect({}, {}) is None
