"""Layers whose rows do not depend on each other, beside torch's own."""

import copy
import random

import pytest
import torch
from torch import nn

from engine.diffusion.families import onednn, products
from engine.diffusion.families.products import (
    PointwiseConvolution,
    RowConvolution,
    RowProduct,
    packed_bytes,
    separate_rows,
)
from kernels import native

FORMATS = (torch.channels_last, torch.contiguous_format)


def simplified(layer):
    model = nn.Sequential(copy.deepcopy(layer))
    separate_rows(model)
    return model[0]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 12), (3, 5, 12), (0, 12), (12,)])
def test_linear_layers(shape, bias):
    linear = nn.Linear(12, 20, bias=bias).requires_grad_(False)
    x = torch.randn(shape)
    found = simplified(linear)
    assert type(found) is RowProduct
    with torch.inference_mode():
        torch.testing.assert_close(found(x), linear(x), rtol=1e-5, atol=1e-6)
        before = x.clone()
        found(x)
        assert torch.equal(x, before)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_convolutions_of_single_cells(bias, memory_format):
    rows, channels, outputs = (random.randrange(1, 20) for _ in range(3))
    layer = nn.Conv2d(channels, outputs, 1, bias=bias).requires_grad_(False)
    layer.to(memory_format=torch.channels_last)
    x = torch.randn(rows, channels, 5, 9).to(memory_format=memory_format)
    found = simplified(layer)
    assert type(found) is PointwiseConvolution
    with torch.inference_mode():
        y = found(x)
        torch.testing.assert_close(y, layer(x), rtol=1e-5, atol=1e-6)
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_not_plain_is_computed_as_before(dtype):
    """Other dtypes, and where gradients may be wanted, which adding in place would break."""
    for layer, shape in ((nn.Linear(8, 6), (4, 8)), (nn.Conv2d(8, 6, 1), (2, 8, 3, 3))):
        layer.to(dtype)
        x = torch.randn(shape).to(dtype)
        assert torch.equal(simplified(layer)(x), layer(x))
    linear = simplified(nn.Linear(8, 6))
    linear(torch.randn(4, 8)).sum().backward()
    assert linear.bias.grad is not None


def test_other_layers_stay():
    class Adapted(nn.Linear):
        pass

    for layer in (Adapted(8, 6), nn.ConvTranspose2d(8, 6, 1)):
        assert type(simplified(layer)) is type(layer)


OTHER_CONVOLUTIONS = (
    {"kernel_size": 3},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 1, "padding": 1},
    {"kernel_size": 1, "groups": 2, "bias": False},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "padding_mode": "reflect"},
)


@pytest.mark.parametrize("how", OTHER_CONVOLUTIONS)
def test_other_convolutions(how):
    layer = nn.Conv2d(8, 6, **how).requires_grad_(False)
    x = torch.randn(random.randrange(1, 5), 8, 9, 7).to(memory_format=torch.channels_last)
    found = simplified(layer)
    assert type(found) is RowConvolution
    with torch.inference_mode():
        torch.testing.assert_close(found(x), layer(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("padding", [0, 1, (2, 0)])
def test_large_convolutions_of_few_cells_are_products(dtype, stride, padding, monkeypatch):
    monkeypatch.setattr(products, "MOST_BYTES", -1)
    monkeypatch.setattr(products, "MOST_CELLS", 40)
    multiplied = []
    multiply = onednn.multiply
    monkeypatch.setattr(
        onednn, "multiply", lambda x, *more: multiplied.append(len(x)) or multiply(x, *more)
    )
    channels, outputs = (random.randrange(1, 30) for _ in range(2))
    kernel = random.choice([3, (3, 1), (1, 3), 5])
    bias = random.random() < 0.5
    layer = nn.Conv2d(channels, outputs, kernel, stride, padding, bias=bias, dtype=dtype)
    layer.requires_grad_(False).to(memory_format=random.choice(FORMATS))
    x = torch.randn(3, channels, random.randint(5, 9), random.randint(5, 9)).to(dtype)
    x = x.to(memory_format=random.choice(FORMATS))
    found = simplified(layer)
    with torch.inference_mode():
        y, expected = found(x), layer(x)
        can_multiply = onednn.can_multiply(x, layer.weight)
    close = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(y, expected, rtol=close, atol=close)
    num_cells = y[0, 0].numel()
    calls = [num_cells] * 3 if dtype is torch.float32 else [3 * num_cells]
    assert multiplied == calls * (can_multiply and calls[0] <= 40)


WIDE = 600
"""A width whose square matrices are too large to be arranged."""


@pytest.mark.skipif(native.missing() is not None, reason="no C++ operations")
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(256, 96), ()),
        (nn.Linear(256, 96), (5,)),
        (nn.Linear(WIDE, WIDE, bias=False), ()),
        (nn.Linear(WIDE, WIDE), (17,)),
        (nn.Conv2d(48, 20, 1), (4, 4)),
        (nn.Conv2d(WIDE, WIDE, 1), (3, 3)),
        (nn.Conv2d(4, 20, 3, padding=1), (8, 8)),
        (nn.Conv2d(48, 20, 3, stride=2), (7, 9)),
    ],
    ids=lambda value: str(value),
)
def test_a_row_has_the_same_bits_alone_and_among_others(layer, shape):
    is_map = isinstance(layer, nn.Conv2d)
    size = (random.randrange(2, 40), *((layer.in_channels, *shape) if is_map else shape))
    x = torch.randn(size if is_map else (*size, layer.in_features))
    if is_map:
        x = x.to(memory_format=torch.channels_last)
    found = simplified(layer.requires_grad_(False))
    with torch.inference_mode():
        together = found(x)
        for row in range(len(x)):
            assert torch.equal(found(x[row : row + 1].clone()), together[row : row + 1])


@pytest.mark.skipif(native.missing() is not None, reason="no C++ operations")
@pytest.mark.parametrize("most_bytes", [-1, 1 << 20])
@pytest.mark.parametrize("layer", [nn.Linear(48, 20), nn.Conv2d(48, 20, 1)])
def test_rows_stay_apart_without_onednn(layer, most_bytes, monkeypatch):
    monkeypatch.setattr(products, "MOST_BYTES", most_bytes)
    monkeypatch.setattr(onednn, "can_multiply", lambda x, weight: False)
    alone = []
    linear = onednn.linear
    monkeypatch.setattr(onednn, "linear", lambda x, *more: alone.append(len(x)) or linear(x, *more))
    shape = (48, 3, 5) if isinstance(layer, nn.Conv2d) else (7, 48)
    x = torch.randn(4, *shape)
    found = simplified(layer.requires_grad_(False))
    with torch.inference_mode():
        torch.testing.assert_close(found(x), layer(x), rtol=1e-5, atol=1e-5)
    assert alone == ([1] * 4 if most_bytes < 0 else [])


def test_what_is_there_a_second_time():
    assert packed_bytes((512, 512)) == packed_bytes((512, 512, 1, 1)) == 1 << 20
    assert packed_bytes((512, 513)) == packed_bytes((8, 8, 3, 3)) == packed_bytes((8,)) == 0


def test_weights_and_names_stay():
    model = nn.Sequential(nn.Linear(8, 6), nn.ModuleDict({"one": nn.Conv2d(6, 4, 1)}))
    before = {name: weight.data_ptr() for name, weight in model.state_dict().items()}
    separate_rows(model)
    separate_rows(model)
    assert {name: weight.data_ptr() for name, weight in model.state_dict().items()} == before
