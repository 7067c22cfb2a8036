"""Arranged convolutions beside torch's own, and which layers are."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from engine.diffusion.families.convolutions import (
    LEAST_CHANNELS,
    MOST_BYTES,
    ArrangedConvolution,
    arrange_convolutions,
    arranged_bytes,
)
from kernels import isa, native
from tests.helpers.diffusion.tiny_pipelines import tiny_vae

pytestmark = pytest.mark.skipif(native.missing() is not None, reason="no C++ operations")


HAS_PAIRS = isa.multiplies_bf16() and not isa.multiplies_tiles()
"""Whether bf16 convolutions are arranged on this processor."""


def arranged(layer):
    model = nn.Sequential(copy.deepcopy(layer))
    arrange_convolutions(model)
    return model[0]


def convolution(bias=True, **changes):
    channels = (random.randrange(LEAST_CHANNELS, 80) for _ in range(2))
    settings = {"kernel_size": 3, "padding": 1, "bias": bias} | changes
    return nn.Conv2d(*channels, **settings).requires_grad_(False)


def maps(rows, layer, layout=torch.channels_last):
    size = random.randrange(1, 20), random.randrange(1, 20)
    return torch.randn(rows, layer.in_channels, *size).contiguous(memory_format=layout)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_it_convolves(bias, layout):
    for _ in range(5):
        layer = convolution(bias)
        found, x = arranged(layer), maps(random.randrange(4), layer, layout)
        assert type(found) is ArrangedConvolution
        exact = F.conv2d(
            x.double(), layer.weight.double(), layer.bias.double() if bias else None, padding=1
        )
        with torch.inference_mode():
            y = found(x)
        assert (y - exact).abs().sum() <= 3e-6 * max(1, y.numel())
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_a_row_has_the_same_bits_alone_and_among_others():
    found = arranged(convolution())
    x = maps(7, found)
    with torch.inference_mode():
        together = found(x)
        for row in range(7):
            assert torch.equal(found(x[row : row + 1])[0], together[row])


@pytest.mark.skipif(not HAS_PAIRS, reason="this processor does not multiply pairs of bf16 numbers")
def test_bf16_maps_are_convolved_row_by_row_with_the_same_bits():
    for bias in (False, True):
        layer = convolution(bias, dtype=torch.bfloat16)
        found, x = arranged(layer), maps(random.randrange(1, 5), layer).bfloat16()
        assert type(found) is ArrangedConvolution
        added = layer.bias.double() if bias else None
        exact = F.conv2d(x.double(), layer.weight.double(), added, padding=1)
        with torch.inference_mode():
            y = found(x)
            assert torch.equal(found(x[:1]), y[:1])
        assert y.dtype is torch.bfloat16
        assert (y - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("changes", [{"dtype": torch.bfloat16}, {"requires_grad": True}])
def test_what_is_not_plain_is_computed_as_before(changes):
    """Moved to another type after all, and where gradients are wanted."""
    found = arranged(convolution())
    found.to(changes.get("dtype", torch.float32))
    x = maps(2, found).to(found.weight.dtype).requires_grad_(changes.get("requires_grad", False))
    y = found(x)
    assert torch.equal(y, F.conv2d(x, found.weight, found.bias, padding=1))
    assert y.requires_grad == x.requires_grad


def test_other_layers_stay():
    class Adapted(nn.Conv2d):
        pass

    few = LEAST_CHANNELS - 1
    others = (
        Adapted(32, 32, 3, padding=1),
        convolution(stride=2),
        convolution(padding=0),
        convolution(padding=2, dilation=2),
        convolution(dilation=2),
        convolution(padding_mode="reflect"),
        convolution(kernel_size=1, padding=0),
        convolution(kernel_size=5),
        convolution(dtype=torch.float16),
        *([] if HAS_PAIRS else [convolution(dtype=torch.bfloat16)]),
        convolution(device="meta"),
        nn.Conv2d(32, 32, 3, padding=1, groups=2),
        nn.Conv2d(few, 32, 3, padding=1),
        nn.Conv2d(32, few, 3, padding=1),
    )
    for layer in others:
        assert type(arranged(layer)) is type(layer)


def test_what_they_take_is_told_by_their_shape():
    for _ in range(5):
        layer = arranged(convolution())
        taken = layer.arranged.transformed.nbytes
        assert arranged_bytes(tuple(layer.weight.shape), torch.float32) == taken
    fp32 = torch.float32
    assert arranged_bytes((320, 640, 3, 3), fp32) == 4 * 36 * 320 * 640 <= MOST_BYTES[fp32]
    maps = (512, 512, 3, 3), (336, 656, 3, 3), (2, 64, 3, 3), (64, 64, 1, 1)
    for shape in (*maps, (64, 64), (64,), ()):
        assert arranged_bytes(shape, fp32) == 0
    for shape in ((1280, 1280, 3, 3), (32, 17, 3, 3), (1296, 1280, 3, 3)):
        padded = 2 * 16 * shape[0] * -(-shape[1] // 16) * 16
        is_worth_it = HAS_PAIRS and padded <= MOST_BYTES[torch.bfloat16]
        assert arranged_bytes(shape, torch.bfloat16) == is_worth_it * padded


def test_a_whole_autoencoder():
    """Convolutions that follow a doubled map, and some that halve one among them."""
    vae = tiny_vae(32, 48, groups=8).to(memory_format=torch.channels_last)
    served = copy.deepcopy(vae)
    arrange_convolutions(served)
    kinds = [type(one) for one in served.modules()]
    assert kinds.count(ArrangedConvolution) > 10 and nn.Conv2d in kinds
    x = torch.rand(2, 3, 22, 26) * 2 - 1
    with torch.inference_mode():
        expected = vae.decode(vae.encode(x).latent_dist.mode()).sample
        found = served.decode(served.encode(x).latent_dist.mode()).sample
    assert (found - expected).abs().max() < 1e-4
