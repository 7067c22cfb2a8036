"""Layers of a model filled with a format's tensors, without a file."""

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.models.forward_context import NO_CONTEXT
from engine.models.layers.linear import Linear, Shard
from engine.models.layers.parallel import TensorParallel
from engine.models.layers.weight_slots import WeightOptions
from engine.models.loading import Loader
from engine.quantization.format import QuantizedLayer, TensorHeader
from engine.quantization.method import LinearMethod
from engine.quantization.registry import detect

TYPES = {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
}


def headers_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorHeader]:
    """Make the headers that a file would have."""
    return {
        name: TensorHeader(
            tuple(one.shape), TYPES[one.dtype], lambda one=one: one.numpy().tobytes()
        )
        if one.dtype not in (torch.bfloat16, torch.float8_e4m3fn)
        else TensorHeader(tuple(one.shape), TYPES[one.dtype])
        for name, one in tensors.items()
    }


def layers_of(
    tensors: Mapping[str, Tensor], config: dict[str, Any], device: str = "cpu"
) -> dict[str, QuantizedLayer]:
    """Find the quantised layers by their tensors."""
    found = detect(config, headers_of(tensors))
    assert found is not None
    return found[1].layers(headers_of(tensors), device)


def random_layer(
    quantise: Callable[[Tensor], tuple[dict[str, Tensor], Tensor]],
    shards: Mapping[str, int],
    size: int,
    *,
    bias: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Make a random layer: tensors by checkpoint name, and the weights by shard."""
    tensors, weights = {}, {}
    for name, outputs in shards.items():
        made, weights[name] = quantise(torch.randn(outputs, size) / size**0.5)
        tensors |= {f"a.{name}.{kind}": one for kind, one in made.items()}
        if bias:
            tensors[f"a.{name}.bias"] = torch.randn(outputs)
    return tensors, weights


def filled(
    tensors: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    methods: Mapping[str, LinearMethod[Any]],
    dtype: torch.dtype = torch.float32,
    *,
    may_have_others: bool = False,
    **options: Any,
) -> Linear:
    """Make a `Linear` that has loaded the tensors, in any order."""
    layer = Linear(
        next(iter(weights.values())).shape[1],
        [Shard(name, len(weight)) for name, weight in weights.items()],
        bias=any(name.endswith("bias") for name in tensors),
        partition=options.pop("partition", "none"),
    )
    parent = nn.Module()
    parent.a = nn.Module()
    parent.a.qkv_proj = layer
    slots = WeightOptions(
        dtype=dtype, device=torch.device("cpu"), linear_method=methods.get, **options
    )
    shuffled = sorted(tensors.items(), key=lambda _: random.random())
    unexpected = Loader(parent, slots).load(shuffled)
    assert may_have_others or not unexpected
    return layer


def loaded(
    tensors: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    config: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Linear:
    """Make the same with the methods of the format that the tensors have."""
    methods = {name: one.method for name, one in layers_of(tensors, config).items()}
    return filled(tensors, weights, methods, dtype, **options)


def assert_product(
    layer: Linear,
    tensors: Mapping[str, Tensor],
    weight: Tensor,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    """Assert that the layer multiplies by the weight and adds the bias among the tensors."""
    x = torch.randn(7, weight.shape[1]).to(dtype)
    bias = torch.cat([one for name, one in tensors.items() if name.endswith(".bias")])
    expected = x.float() @ weight.T + bias.to(dtype).float()
    difference = (layer(x, NO_CONTEXT).float() - expected).abs().max()
    assert difference <= tolerance + torch.finfo(dtype).eps * 4


def assert_multiplies(layer: Linear, weights: Mapping[str, Tensor], atol: float = 1e-4) -> None:
    """Assert that the layer, which has no bias, multiplies by the weights of its shards."""
    weight = torch.cat(list(weights.values()))
    x = torch.randn(3, weight.shape[1])
    torch.testing.assert_close(layer(x, NO_CONTEXT), x @ weight.T, atol=atol, rtol=0)


def assert_rows_alike(make: Callable[[torch.dtype], Linear], size: int) -> None:
    """Assert that a row has the same bits in any batch."""
    for dtype in (torch.bfloat16, torch.float32):
        layer = make(dtype)
        x = torch.randn(33, size).to(dtype)
        together = layer(x, NO_CONTEXT)
        for rows in (slice(0, 1), slice(5, 9), slice(2, 32)):
            assert torch.equal(layer(x[rows], NO_CONTEXT), together[rows])


def assert_divided(make: Callable[..., Linear], partition: str, size: int) -> None:
    """Assert that two ranks make, one after the other or in sum, what one makes."""
    x = torch.randn(4, size)
    whole = make()(x, NO_CONTEXT)
    ranks = [
        make(partition=partition, parallel=TensorParallel(rank, 2, lambda partial: [partial]))
        for rank in (0, 1)
    ]
    if partition == "outputs":
        found = torch.cat([layer(x, NO_CONTEXT) for layer in ranks], 1)
    else:
        first, second = (part.contiguous() for part in x.chunk(2, 1))
        found = ranks[0](first, NO_CONTEXT) + ranks[1](second, NO_CONTEXT)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)
