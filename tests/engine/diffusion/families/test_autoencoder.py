import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.cpu_calls import CpuCalls
from tests.helpers.diffusion.tiny_transformers import vae

CPU = torch.device("cpu")
FACTOR = 4


class LinearVae(torch.nn.Module):
    """Latents are a linear mix of a cell's mean colour: previews can be exact."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = torch.nn.Parameter(torch.randn(channels, 3))
        self.decoder = torch.nn.Identity()
        self.config = SimpleNamespace(
            scaling_factor=0.4,
            latent_channels=channels,
            block_out_channels=(1, 1, 1),
            get=lambda name: {"shift_factor": 0.3}[name],
        )

    def encode(self, image: torch.Tensor) -> Any:
        cells = torch.nn.functional.avg_pool2d(image, FACTOR)
        latents = torch.einsum("nrhw,cr->nchw", cells, self.mix)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))


def autoencoder(model: Any) -> Autoencoder:
    return Autoencoder(model, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("channels", [4, 16])
def test_previews_show_the_colours(channels: int) -> None:
    """More channels than colours leave the fit's matrix without full rank."""
    seed = random.randrange(2**31)
    torch.manual_seed(seed)
    coder = autoencoder(LinearVae(channels))
    image = torch.rand((2, 3, 8, 20)) * 2 - 1
    preview = coder.preview(coder.encode(image, None))
    expected = torch.nn.functional.avg_pool2d(image, FACTOR)
    torch.testing.assert_close(preview, expected, atol=1e-3, rtol=0, msg=f"{seed=}")


def test_decoding_clips_and_inverts_the_scale() -> None:
    model = vae()
    coder = autoencoder(model)
    assert (coder.channels, coder.factor) == (16, 4)
    latents = torch.randn((2, 16, 4, 3))
    with torch.no_grad(), CpuCalls():
        expected = model.decode(latents / 1.5 + 0.06).sample.clamp(-1, 1)
    assert torch.equal(coder.decode(latents), expected)
    assert coder.decode(latents * 1e6).abs().max() <= 1


def test_encoding_is_the_generators() -> None:
    coder = autoencoder(vae())
    image = torch.rand((1, 3, 16, 8)) * 2 - 1
    first, second = (coder.encode(image, torch.Generator().manual_seed(4)) for _ in range(2))
    other, mode = coder.encode(image, torch.Generator().manual_seed(5)), coder.encode(image, None)
    assert first.shape == (1, 16, 4, 2)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(mode, coder.encode(image, None))
