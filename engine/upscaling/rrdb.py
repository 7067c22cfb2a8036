"""ESRGAN's network of residual-in-residual dense blocks (Wang et al. 2018, arXiv 1809.00219),
with Real-ESRGAN's pixel-unshuffle in front for scales below 4 (arXiv 2107.10833).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.upscaling.convolution import Conv3x3
from engine.upscaling.network import NetworkFacts

_RESIDUAL_SCALE = 0.2
_SLOPE = 0.2
_CONVS_OF_BLOCK = 15
"""The number of consecutive convolutions: 3 dense blocks of 5."""


def _twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class DenseBlock(nn.Module):
    """Five convolutions, each of which reads the input and all earlier outputs."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = Conv3x3(features, growth, _SLOPE)
        self.conv2 = Conv3x3(features + growth, growth, _SLOPE)
        self.conv3 = Conv3x3(features + 2 * growth, growth, _SLOPE)
        self.conv4 = Conv3x3(features + 3 * growth, growth, _SLOPE)
        self.conv5 = Conv3x3(features + 4 * growth, features)

    def forward(self, x: Tensor) -> Tensor:
        known = [x.to(self.conv1.weight.dtype)]
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            known.append(conv(torch.cat(known, 1)))
        made: Tensor = self.conv5(torch.cat(known, 1), x, _RESIDUAL_SCALE)
        return made

    def write(self, wide: Tensor, out: Tensor) -> None:
        """Compute the block without copies: x is the first channels of `wide`, which has room for
        all that is computed from it. Only if arranged."""
        features, growth = self.conv1.in_channels, self.conv1.out_channels
        num_known = features
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            conv.write(wide[:, :num_known], wide[:, num_known : num_known + growth])
            num_known += growth
        self.conv5.write(wide, out, wide[:, :features], _RESIDUAL_SCALE)


class ResidualBlock(nn.Module):
    """Three dense blocks with a bypass for the input."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(features, growth)
        self.rdb2 = DenseBlock(features, growth)
        self.rdb3 = DenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.rdb3(self.rdb2(self.rdb1(x))), alpha=_RESIDUAL_SCALE)

    def replace(self, wide: Sequence[Tensor]) -> None:
        """Compute the block in place, in the first channels of the first of three wide maps."""
        x, once, twice = (whole[:, : self.rdb1.conv1.in_channels] for whole in wide)
        self.rdb1.write(wide[0], once)
        self.rdb2.write(wide[1], twice)
        self.rdb3.write(wide[2], once)
        x.add_(once, alpha=_RESIDUAL_SCALE)


class RrdbNet(nn.Module):
    """An `engine.upscaling.network.Network`; parameters have the names of Real-ESRGAN's files.

    Args:
        num_doublings: how often the sides are doubled after the blocks.
        shuffle: the side in pixels of the squares that become channels before the blocks. The
            network enlarges `2 ** num_doublings / shuffle` times.
    """

    def __init__(
        self,
        *,
        features: int = 64,
        growth: int = 32,
        num_blocks: int = 23,
        num_doublings: int = 2,
        shuffle: int = 1,
    ) -> None:
        super().__init__()
        self._shuffle = shuffle
        self._num_doublings = num_doublings
        self._num_known = features + 4 * growth
        self.conv_first = Conv3x3(3 * shuffle**2, features)
        self.body = nn.Sequential(*(ResidualBlock(features, growth) for _ in range(num_blocks)))
        self.conv_body = Conv3x3(features, features)
        for number in range(1, num_doublings + 1):
            setattr(self, f"conv_up{number}", Conv3x3(features, features, _SLOPE))
        self.conv_hr = Conv3x3(features, features, _SLOPE)
        self.conv_last = Conv3x3(features, 3)
        self.facts = NetworkFacts(
            architecture="ESRGAN",
            scale=2**num_doublings // shuffle,
            receptive_radius=shuffle * _radius(num_blocks, num_doublings),
            size_multiple=shuffle,
            flops_per_pixel=self._flops_per_pixel(),
            # After the last doubling: a convolution's input, output and workspace.
            bytes_per_pixel=4 * 3 * features * 4**num_doublings // shuffle**2,
        )

    def forward(self, images: Tensor) -> Tensor:
        if self._shuffle > 1:
            images = functional.pixel_unshuffle(images, self._shuffle)
        first = self.conv_first(images).to(images.dtype)
        blocks = self._blocks_in_place if self.conv_first.arranged else self.body
        x: Tensor = self.conv_body(blocks(first), first)
        for conv in self._convs_up:
            x = conv(_twice(x.to(conv.weight.dtype)))
        made: Tensor = self.conv_last(self.conv_hr(x))
        return made

    def arrange(self) -> None:
        """Use our own operation for all convolutions from now on, on a CPU in fp32."""
        for module in self.modules():
            if isinstance(module, Conv3x3):
                module.arrange()

    def _blocks_in_place(self, first: Tensor) -> Tensor:
        rows, features, height, width = first.shape
        size = (rows, self._num_known, height, width)
        wide = [torch.empty(size, memory_format=torch.channels_last) for _ in range(3)]
        x = wide[0][:, :features].copy_(first)
        for block in self.body:
            assert isinstance(block, ResidualBlock)
            block.replace(wide)
        return x

    @property
    def last_convolution(self) -> nn.Conv2d:
        return self.conv_last

    @property
    def _convs_up(self) -> list[Conv3x3]:
        numbers = range(1, self._num_doublings + 1)
        return [self.get_submodule(f"conv_up{number}") for number in numbers]  # type: ignore[misc]

    def _flops_per_pixel(self) -> float:
        """The arithmetic, where each weight counts once per pixel at its convolution's size."""
        total = 0.0
        for name, parameter in self.named_parameters():
            times = 4**self._num_doublings if name.startswith(("conv_hr", "conv_last")) else 1
            if name.startswith("conv_up"):
                times = 4 ** int(name[len("conv_up")])
            total += 2.0 * times * parameter.numel()
        return total / self._shuffle**2


def _radius(num_blocks: int, num_doublings: int) -> int:
    """The receptive radius in pixels of the first convolution's input. After the blocks two
    convolutions work at the largest size, and one at each size that a doubling makes."""
    left, right = -2, 1
    for _ in range(num_doublings):
        left, right = (left - 1) // 2, (right + 1) // 2
    return max(-left, right + 1) + _CONVS_OF_BLOCK * num_blocks + 2
