"""Products with their biases apart, beside torch's own layers."""

import copy
import random

import pytest
import torch
from torch import nn

from engine.diffusion.families.products import (
    BiasedProduct,
    PointwiseConvolution,
    simplify_products,
)


def simplified(layer):
    model = nn.Sequential(copy.deepcopy(layer))
    simplify_products(model)
    return model[0]


@pytest.mark.parametrize("shape", [(7, 12), (3, 5, 12), (0, 12), (12,)])
def test_linear_layers(shape):
    linear = nn.Linear(12, 20).requires_grad_(False)
    x = torch.randn(shape)
    found = simplified(linear)
    assert type(found) is BiasedProduct
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

    others = (
        nn.Linear(8, 6, bias=False),
        Adapted(8, 6),
        nn.Conv2d(8, 6, 3),
        nn.Conv2d(8, 6, 1, stride=2),
        nn.Conv2d(8, 6, 1, padding=1),
        nn.Conv2d(8, 6, 1, groups=2),
        nn.ConvTranspose2d(8, 6, 1),
    )
    for layer in others:
        assert type(simplified(layer)) is type(layer)


def test_weights_and_names_stay():
    model = nn.Sequential(nn.Linear(8, 6), nn.ModuleDict({"one": nn.Conv2d(6, 4, 1)}))
    before = {name: weight.data_ptr() for name, weight in model.state_dict().items()}
    simplify_products(model)
    simplify_products(model)
    assert {name: weight.data_ptr() for name, weight in model.state_dict().items()} == before
