"""Remembered keys and values give the results of diffusers' own attention."""

import copy
import random

import pytest
import torch
from diffusers import UNet2DConditionModel

from engine.diffusion.families.cross_attention import MAX_COMPOSITIONS, CrossAttentionCache
from tests.helpers.diffusion.tiny_pipelines import tiny_unet


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny_unet()


def call(
    unet: UNet2DConditionModel, states: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    latents = torch.randn((len(states), 4, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        prediction: torch.Tensor = unet(
            latents, torch.tensor(500), states, encoder_attention_mask=mask, return_dict=False
        )[0]
    return prediction


@pytest.mark.parametrize("masked", [False, True])
def test_equals_plain_attention_on_every_call(unet: UNet2DConditionModel, masked: bool) -> None:
    seed = random.randrange(2**31)
    generator = torch.Generator().manual_seed(seed)
    cached_unet = copy.deepcopy(unet)
    cache = CrossAttentionCache(cached_unet)
    prompts = {key: torch.randn((1, 5, 16), generator=generator) for key in "abc"}
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool() if masked else None
    for pair in ("ab", "ab", "ac", "ab", "cb", "cb"):
        states = torch.cat([prompts[key] for key in pair])
        cache.select(tuple(pair))
        torch.testing.assert_close(
            call(cached_unet, states, mask),
            call(unet, states, mask),
            msg=lambda text: f"seed {seed}: {text}",
        )
    layers = sum(".attn2." in name for name in unet.attn_processors)
    assert layers > 0
    assert cache.num_hits == 3 * layers


def test_keys_are_not_computed_again(unet: UNet2DConditionModel) -> None:
    cached_unet = copy.deepcopy(unet)
    cache = CrossAttentionCache(cached_unet)
    cache.select("a")
    first = call(cached_unet, torch.ones((1, 5, 16)))
    # Only a cache can give the same answer for other states.
    assert torch.equal(call(cached_unet, torch.zeros((1, 5, 16))), first)
    cache.clear()
    assert not torch.equal(call(cached_unet, torch.zeros((1, 5, 16))), first)


def test_memory_is_bounded(unet: UNet2DConditionModel) -> None:
    cached_unet = copy.deepcopy(unet)
    cache = CrossAttentionCache(cached_unet)
    cache.select("first")
    call(cached_unet, torch.ones((1, 5, 16)))
    one = cache.num_bytes
    assert one > 0
    bounded_unet = copy.deepcopy(unet)
    cache = CrossAttentionCache(bounded_unet, max_bytes=3 * one)
    for key in range(10):
        cache.select(key)
        call(bounded_unet, torch.full((1, 5, 16), float(key)))
        assert cache.num_bytes <= 3 * one
    assert cache.num_bytes == 3 * one
    hits = cache.num_hits
    for key in (7, 8, 9):
        cache.select(key)
        call(bounded_unet, torch.full((1, 5, 16), float(key)))
    assert hits == 0
    assert cache.num_hits == 3 * len(_cross(unet))


def test_ended_requests_leave_few_compositions(unet: UNet2DConditionModel) -> None:
    cached_unet = copy.deepcopy(unet)
    cache = CrossAttentionCache(cached_unet)
    sizes = []
    for key in range(MAX_COMPOSITIONS + 5):
        cache.select(key)
        call(cached_unet, torch.full((1, 5, 16), float(key)))
        sizes.append(cache.num_bytes)
    assert sizes[-6:] == [MAX_COMPOSITIONS * sizes[0]] * 6


def test_what_does_not_fit_is_computed(unet: UNet2DConditionModel) -> None:
    bounded_unet = copy.deepcopy(unet)
    cache = CrossAttentionCache(bounded_unet, max_bytes=1)
    states = torch.ones((2, 5, 16))
    for _ in range(2):
        cache.select("a")
        torch.testing.assert_close(call(bounded_unet, states), call(unet, states))
    assert cache.num_bytes == cache.num_hits == 0


def _cross(unet: UNet2DConditionModel) -> list[str]:
    return [name for name in unet.attn_processors if ".attn2." in name]
