"""Products and attention of diffusers' own layers, beside PyTorch's."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.diffusion.families import cpu_calls, onednn
from engine.diffusion.families.cpu_calls import CpuCalls

DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture
def own(monkeypatch):
    """Counts what is not left to PyTorch."""
    found = []

    def counted(name, whole):
        return lambda *args: found.append(name) or whole(*args)

    monkeypatch.setattr(cpu_calls, "attention", counted("attention", cpu_calls.attention))
    monkeypatch.setattr(onednn, "multiply", counted("product", onednn.multiply))
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_products_equal_pytorchs(dtype, bias, own):
    inputs, outputs = random.randint(1, 70), random.randint(1, 70)
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    shape = random.choice([(), (0,), (1,), (7,), (2, 5), (1, 3, 4)])
    x = torch.randn(*shape, inputs, dtype=dtype)
    with torch.no_grad():
        expected = layer(x)
        with CpuCalls():
            found = layer(x)
        calls = ["product"] * onednn.can_multiply(x, layer.weight)
    assert found.dtype is dtype
    torch.testing.assert_close(found, expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])
    assert own == calls


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_equals_pytorchs(dtype, own):
    heads, head_dim = random.randint(1, 4), random.choice([8, 33, 64, 128])
    num_queries, num_keys = random.randint(1, 90), random.randint(1, 90)
    query, key, value = (
        torch.randn(2, length, heads, head_dim, dtype=dtype).transpose(1, 2)
        for length in (num_queries, num_keys, num_keys)
    )
    with torch.no_grad():
        expected = F.scaled_dot_product_attention(query, key, value)
        with CpuCalls():
            found = F.scaled_dot_product_attention(query=query, key=key, value=value, dropout_p=0.0)
    torch.testing.assert_close(found, expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])
    assert own == ["attention"]


def test_the_rest_is_left_to_pytorch(own):
    """Masks, causal attention, other scales, shared heads and whatever needs gradients."""
    query, key, value = torch.randn(3, 2, 4, 6, 8)
    options = (
        {"attn_mask": torch.ones(6, 6).tril().bool()},
        {"is_causal": True},
        {"scale": 0.5},
    )
    with CpuCalls():
        for option in options:
            with torch.no_grad():
                found = F.scaled_dot_product_attention(query, key, value, **option)
            expected = F.scaled_dot_product_attention(query, key, value, **option)
            torch.testing.assert_close(found, expected)
        with torch.no_grad():
            F.scaled_dot_product_attention(query, key[:, :2], value[:, :2], enable_gqa=True)
            F.linear(query.double(), key[0, 0].double())
        weight = torch.randn(5, 8, requires_grad=True)
        F.linear(query, weight).sum().backward()
        F.scaled_dot_product_attention(query @ weight.T @ weight, key, value).sum().backward()
    assert weight.grad is not None
    assert own == []
