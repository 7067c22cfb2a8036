"""Fused layers beside the diffusers layers that they replace."""

import copy
import random

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D

from engine.diffusion.families.convolutions import ArrangedConvolution
from engine.diffusion.families.fused_layers import (
    FusedGeglu,
    FusedGroupNorm,
    FusedResnetBlock,
    FusedSelfAttention,
    fuse_layers,
)
from tests.helpers.diffusion.tiny_pipelines import tiny_vae

ROUNDING = 1e-4
"""The error of values of about 1. Winograd's sums have ten times the error of others."""


def seeded():
    seed = random.randrange(1 << 31)
    torch.manual_seed(seed)
    return seed


def unet(**changes):
    settings = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**settings | changes).eval().requires_grad_(False)


def vae():
    return tiny_vae(16, 32, groups=8)


def predict(model, dtype=torch.float32):
    inputs = torch.Generator().manual_seed(5)
    x = torch.randn(3, 4, 8, 12, generator=inputs).to(dtype)
    states = torch.randn(3, 7, 16, generator=inputs).to(dtype)
    with torch.inference_mode():
        return model(
            x.to(memory_format=torch.channels_last), torch.tensor([9.0, 500.0, 999.0]), states
        ).sample


@pytest.mark.parametrize(
    "changes", [{}, {"use_linear_projection": True}, {"attention_head_dim": (1, 4)}]
)
def test_a_unet_predicts_what_it_did(changes):
    seed = seeded()
    plain = unet(**changes).to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    fuse_layers(fused)
    expected, found = predict(plain), predict(fused)
    assert (found - expected).abs().max() < ROUNDING, f"seed {seed}"
    kinds = {type(module) for module in fused.modules()}
    expected_kinds = {FusedGroupNorm, FusedResnetBlock, FusedGeglu, ArrangedConvolution}
    assert expected_kinds <= kinds and ResnetBlock2D not in kinds


def test_a_vae_gives_what_it_did():
    seed = seeded()
    plain = vae().to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    fuse_layers(fused)
    x = torch.rand(1, 3, 20, 28) * 2 - 1
    with torch.inference_mode():
        expected = plain.decode(plain.encode(x).latent_dist.mode()).sample
        found = fused.decode(fused.encode(x).latent_dist.mode()).sample
    assert (found - expected).abs().max() < ROUNDING, f"seed {seed}"


@pytest.mark.parametrize("make", [unet, vae])
def test_weights_keep_their_names(make):
    model = make()
    before = {name: weight.data_ptr() for name, weight in model.state_dict().items()}
    fuse_layers(model)
    assert {name: weight.data_ptr() for name, weight in model.state_dict().items()} == before


def test_bfloat16_is_as_near_to_the_truth_as_before():
    seed = seeded()
    truth = unet()
    plain = copy.deepcopy(truth).to(torch.bfloat16)
    fused = copy.deepcopy(plain)
    fuse_layers(fused)
    expected = predict(truth)
    error = (predict(fused, torch.bfloat16) - expected).abs().mean()
    usual = (predict(plain, torch.bfloat16) - expected).abs().mean()
    assert error < 1.2 * usual, f"seed {seed}"


def test_other_kinds_of_layers_stay():
    model = unet(resnet_time_scale_shift="scale_shift")
    fuse_layers(model)
    kinds = {type(module) for module in model.modules()}
    assert ResnetBlock2D in kinds and FusedResnetBlock not in kinds
    fuse_layers(model)
    processors = {
        name: type(module.processor)
        for name, module in model.named_modules()
        if isinstance(module, Attention)
    }
    assert all((kind is FusedSelfAttention) == ("attn1" in n) for n, kind in processors.items())
