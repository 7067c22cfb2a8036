"""Qwen-Image's VAE, which was made for videos, for pictures.

Its convolutions see zeros before the first frame, so only the last slice of each kernel acts on it,
and layers that halve or double the number of frames leave it alone. What remains has a third of
the weights, and none of the state between frames that would tie it to one thread.
"""

import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import nn

from engine.diffusion.families.autoencoder import Autoencoder
from engine.errors import UnsupportedArchitecture


class FrameAutoencoder(Autoencoder):
    """An `Autoencoder` whose latents are scaled and shifted by channel.

    Args:
        vae: the VAE, whose layers are replaced.

    Raises:
        UnsupportedArchitecture: its pictures have other channels than RGB.
    """

    def __init__(
        self, vae: AutoencoderKLQwenImage, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        config = vae.config
        if config.input_channels != 3:
            raise UnsupportedArchitecture(
                f"the VAE takes pictures of {config.input_channels} channels; only 3 are supported"
            )
        super().__init__(_Frame(vae), dtype=dtype, device=device)
        shape = (1, config.z_dim, 1, 1)
        self._mean = torch.tensor(config.latents_mean, device=device).view(shape)
        self._deviation = torch.tensor(config.latents_std, device=device).view(shape)

    def encode(
        self, image: torch.Tensor, generator: torch.Generator | None, *, scaled: bool = True
    ) -> torch.Tensor:
        plain = super().encode(image, generator, scaled=False)
        return (plain - self._mean) / self._deviation if scaled else plain

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return super().decode(latents * self._deviation + self._mean)


class _Frame(nn.Module):
    """The VAE with `AutoencoderKL`'s interface."""

    def __init__(self, vae: AutoencoderKLQwenImage) -> None:
        super().__init__()
        for module in list(vae.modules()):
            for name, child in list(module.named_children()):
                if type(child) is QwenImageCausalConv3d:
                    is_idle = name == "time_conv"
                    setattr(module, name, nn.Identity() if is_idle else _FrameConvolution(child))
        vae.to(memory_format=torch.channels_last)
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder
        self.config = FrozenDict(
            scaling_factor=1.0,
            latent_channels=vae.config.z_dim,
            block_out_channels=vae.config.dim_mult,
        )

    def encode(self, pixels: torch.Tensor) -> AutoencoderKLOutput:
        moments = self.quant_conv(self.encoder(pixels.unsqueeze(2)))
        return AutoencoderKLOutput(DiagonalGaussianDistribution(moments.squeeze(2)))

    def decode(self, latents: torch.Tensor) -> DecoderOutput:
        pixels = self.decoder(self.post_quant_conv(latents.unsqueeze(2)))
        return DecoderOutput(pixels.squeeze(2))


class _FrameConvolution(nn.Module):
    """The part of a convolution over frames that acts on the first of them."""

    def __init__(self, convolution: QwenImageCausalConv3d) -> None:
        super().__init__()
        width, _, height, *_ = convolution._padding
        self.plane = nn.Conv2d(
            convolution.in_channels,
            convolution.out_channels,
            convolution.kernel_size[1:],
            padding=(height, width),
            device="meta",
        )
        last = convolution.weight[:, :, -1].clone()
        self.plane.weight = nn.Parameter(last, requires_grad=False)
        self.plane.bias = convolution.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve `[N, C, 1, h, w]` to `[N, C', 1, h, w]`."""
        convolved: torch.Tensor = self.plane(x.squeeze(2))
        return convolved.unsqueeze(2)
