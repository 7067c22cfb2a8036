"""AWQ layers against the weights that their tensors stand for, and what is wrong with some."""

import math
from functools import partial

import pytest
import torch

from engine.errors import CorruptFile, MissingWeight, ModelLoadError, ShapeMismatch
from engine.models.layers.parallel import TensorParallel
from engine.quantization.awq import AwqFormat
from engine.quantization.int4_groups import GroupPanels
from kernels import linear_w4a16
from kernels.linear_panels.panels import unpack
from tests.helpers.quantization.awq_checkpoints import config, quantised
from tests.helpers.quantization.format_layers import (
    assert_divided,
    assert_product,
    assert_rows_alike,
    layers_of,
    loaded,
)

CASES = [("gemm", 32), ("gemm", 256), ("gemm", 48), ("gemm", -1), ("gemv", 32), ("gemv", 64)]
"""The last of the groups of 256 is cut."""
SIZE = 384


def random_layer(version, group_size, shards=(("q", 48), ("k", 16)), bias=True, **options):
    tensors, weights = {}, {}
    for name, outputs in shards:
        made, weights[name] = quantised(outputs, SIZE, version, group_size, **options)
        tensors |= {f"a.{name}.{kind}": tensor for kind, tensor in made.items()}
        if bias:
            tensors[f"a.{name}.bias"] = torch.randn(outputs)
    return tensors, weights


@pytest.mark.parametrize(("version", "group_size"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_are_those_of_the_dequantised_weight(version, group_size, dtype):
    tensors, weights = random_layer(version, group_size)
    layer = loaded(tensors, weights, config(version, group_size), dtype)
    weight = torch.cat(list(weights.values()))
    assert_product(layer, tensors, weight, dtype, linear_w4a16.cases.TOLERANCE[dtype])


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
    given = config(version, group_size)
    assert_rows_alike(lambda dtype: loaded(tensors, weights, given, dtype), SIZE)


@pytest.mark.parametrize(("version", "group_size"), CASES)
def test_memory_is_what_is_stated(version, group_size):
    tensors, weights = random_layer(version, group_size, bias=False)
    for device in ("cpu", "cuda"):
        layers = layers_of(tensors, config(version, group_size), device).values()
        stated = sum(layer.num_bytes(2) for layer in layers)
        state = loaded(tensors, weights, config(version, group_size))._parts[0][1]
        if device == "cpu" and isinstance(state, GroupPanels):
            assert state.state.panels.data.nbytes == stated
        else:
            groups = math.ceil(SIZE / (SIZE if group_size == -1 else group_size))
            assert stated == 64 * (SIZE / 2 + 3 * groups)


@pytest.mark.parametrize(("version", "group_size"), CASES)
@pytest.mark.parametrize("are_stored", [True, False])
def test_symmetric_layers(version, group_size, are_stored):
    tensors, weights = random_layer(version, group_size, sym=True)
    if not are_stored:
        tensors = {name: one for name, one in tensors.items() if "qzeros" not in name}
    given = config(version, group_size, zero_point=False)
    layer = loaded(tensors, weights, given)
    weight = torch.cat(list(weights.values()))
    assert_product(layer, tensors, weight, torch.float32, 1e-4)
    state = layer._parts[0][1]
    if isinstance(state, GroupPanels):
        stated = sum(one.num_bytes(2) for one in layers_of(tensors, given).values())
        assert state.state.panels.data.nbytes == stated == weight.numel() * 4.5 / 8


@pytest.mark.parametrize(
    ("version", "partition"), [("gemm", "outputs"), ("gemm", "inputs"), ("gemv", "outputs")]
)
def test_ranks_divide_a_layer(version, partition):
    tensors, weights = random_layer(version, 32, (("q", 32),))
    assert_divided(partial(loaded, tensors, weights, config(version)), partition, SIZE)


@pytest.mark.parametrize(("version", "group_size"), [("gemm", 256), ("gemv", 64)])
def test_ranks_cannot_divide_a_group(version, group_size):
    tensors, weights = random_layer(version, group_size, (("q", 16),))
    with pytest.raises(ModelLoadError, match=r"tensor_parallel_size"):
        parallel = TensorParallel(1, 2, lambda partial: [partial])
        given = config(version, group_size)
        loaded(tensors, weights, given, partition="inputs", parallel=parallel)


def test_groups_are_not_cut_in_gemv():
    """Zero points have room for whole groups alone: here for eight, of eight and a half."""
    made, weight = quantised(16, 1088, "gemv", 128)
    tensors = {f"a.q.{kind}": tensor for kind, tensor in made.items()}
    for kind, width in (("qzeros", 1), ("scales", 8)):
        tensors[f"a.q.{kind}"] = tensors[f"a.q.{kind}"][:, :width].contiguous()
    words = "1088 input features cannot be divided into groups of 128"
    with pytest.raises(ModelLoadError, match=words):
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
    assert caught.type is (MissingWeight if damage == "gone" else ShapeMismatch)
    assert damage != "gone" or "lacks a.q." in str(caught.value)


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
