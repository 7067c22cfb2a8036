"""Real-ESRGAN's compact network: convolutions at the input's size, then a pixel shuffle
(`SRVGGNetCompact` in the code of arXiv 2107.10833)."""

from torch import Tensor, nn
from torch.nn import functional

from engine.upscaling.convolution import Conv3x3
from engine.upscaling.network import NetworkFacts


class CompactNet(nn.Module):
    """An `engine.upscaling.network.Network`; parameters have the names of Real-ESRGAN's files.

    It adds details to the plainly enlarged image.
    """

    def __init__(self, *, features: int = 64, num_convs: int = 16, scale: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = [Conv3x3(3, features), nn.PReLU(features)]
        for _ in range(num_convs):
            layers += [Conv3x3(features, features), nn.PReLU(features)]
        layers.append(Conv3x3(features, 3 * scale**2))
        self.body = nn.Sequential(*layers)
        self.facts = NetworkFacts(
            architecture="Compact",
            scale=scale,
            receptive_radius=num_convs + 2,
            flops_per_pixel=2.0 * sum(parameter.numel() for parameter in self.parameters()),
            bytes_per_pixel=4 * (3 * features + 3 * 3 * scale**2),
        )

    def forward(self, images: Tensor) -> Tensor:
        scale = self.facts.scale
        last = self.last_convolution
        x = images.to(self._convolutions[0].weight.dtype)
        layers: list[nn.Module] = [*self._convolutions] if last.arranged else [*self.body]
        for layer in layers[:-1]:
            x = layer(x)
        details = functional.pixel_shuffle(last(x.to(last.weight.dtype)), scale)
        return details + functional.interpolate(images, scale_factor=float(scale), mode="nearest")

    def arrange(self) -> None:
        """Use our own operation for all convolutions and their activations from now on, on a CPU in
        fp32."""
        activations = [module for module in self.body if isinstance(module, nn.PReLU)]
        for conv, activation in zip(self._convolutions, [*activations, None], strict=True):
            conv.arrange(None if activation is None else activation.weight)

    @property
    def last_convolution(self) -> Conv3x3:
        return self._convolutions[-1]

    @property
    def _convolutions(self) -> list[Conv3x3]:
        return [module for module in self.body if isinstance(module, Conv3x3)]
