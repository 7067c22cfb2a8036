"""A model's VAE, which turns pixels into the denoiser's latents and back.

Outside of it latents are scaled and shifted to about unit variance, as `AutoencoderKL`'s config
says.
"""

import torch
from diffusers import AutoencoderKL

from engine.diffusion.families.cpu_calls import CpuCalls
from engine.diffusion.families.fused_layers import fuse_layers

_FIT_CELLS = 32
"""The side, in latent cells, of the picture to which previews are fitted."""
_FIT_PATCHES = 9


class Autoencoder:
    """Wraps an `AutoencoderKL`. Safe to use from several threads.

    Args:
        dtype: the type of the VAE's weights.

    Attributes:
        channels: the channels of a latent cell.
        factor: the pixels per latent cell, on a side.
        num_decoder_weights: the decoder's size, which tells whether decoding is cheap.
    """

    def __init__(self, vae: AutoencoderKL, *, dtype: torch.dtype, device: torch.device) -> None:
        self._vae = vae.to(device).eval()
        fuse_layers(self._vae)
        self._dtype, self._device = dtype, device
        self._scale = float(vae.config.scaling_factor)
        self._shift = float(vae.config.get("shift_factor") or 0.0)
        self._to_rgb: torch.Tensor | None = None
        self.num_decoder_weights = sum(weight.numel() for weight in vae.decoder.parameters())
        self.channels = int(vae.config.latent_channels)
        self.factor = int(2 ** (len(vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def encode(
        self,
        image: torch.Tensor,
        generator: torch.Generator | None,
        *,
        scaled: bool = True,
    ) -> torch.Tensor:
        """Encode pixels `[N, 3, H, W]` in [-1, 1] as latents, fp32.

        Args:
            generator: the source for draws from the posterior; None takes its mode.
            scaled: whether to scale the latents; InstructPix2Pix takes its image unscaled.
        """
        pixels = image.to(device=self._device, dtype=self._dtype)
        with CpuCalls():
            posterior = self._vae.encode(pixels).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        plain: torch.Tensor = latents.float()
        return (plain - self._shift) * self._scale if scaled else plain

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode scaled latents `[N, C, h, w]` to pixels `[N, 3, H, W]`, fp32, clipped to [-1,
        1]."""
        unscaled = latents / self._scale + self._shift
        with CpuCalls():
            pixels = self._vae.decode(unscaled.to(device=self._device, dtype=self._dtype)).sample
        clipped: torch.Tensor = pixels.float().clamp(-1.0, 1.0)
        return clipped

    @torch.no_grad()
    def preview(self, latents: torch.Tensor) -> torch.Tensor:
        """A rough picture `[N, 3, h, w]` with a pixel per latent cell, the best linear mix of its
        channels."""
        if self._to_rgb is None:
            self._to_rgb = self._fit()
        weights = self._to_rgb.to(latents.device)
        colours = torch.einsum("nchw,cr->nrhw", latents.float(), weights[:-1])
        return (colours + weights[-1].view(1, 3, 1, 1)).clamp(-1.0, 1.0)

    def _fit(self) -> torch.Tensor:
        """Fit latents, and a constant, to RGB by least squares, over a picture of soft patches of
        colour.

        Returns `[C + 1, 3]`. It costs one encoding and works for every VAE, so no table of known
        ones is needed. The solver copes with channels that are all zero.
        """
        generator = torch.Generator().manual_seed(0)
        patches = torch.rand((1, 3, _FIT_PATCHES, _FIT_PATCHES), generator=generator) * 2 - 1
        side = _FIT_CELLS * self.factor
        image = torch.nn.functional.interpolate(patches, size=(side, side), mode="bilinear")
        cells = self.encode(image, None)[0].flatten(1).T.cpu()
        colours = torch.nn.functional.avg_pool2d(image, self.factor)[0].flatten(1).T
        inputs = torch.cat([cells, torch.ones(len(cells), 1)], dim=1)
        solution: torch.Tensor = torch.linalg.lstsq(inputs, colours, driver="gelsd").solution
        return solution
