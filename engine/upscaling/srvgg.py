"""Real-ESRGAN's compact network: plain convolutions at the input's size, then a pixel shuffle
(`SRVGGNetCompact` of arXiv 2107.10833's code)."""

from torch import Tensor, nn
from torch.nn import functional

from engine.upscaling.network import NetworkFacts


class CompactNet(nn.Module):
    """A `engine.upscaling.network.Network`; parameters are named as in Real-ESRGAN's files.

    It adds details to the image enlarged without any.
    """

    def __init__(self, *, features: int = 64, num_convs: int = 16, scale: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, features, 3, padding=1), nn.PReLU(features)]
        for _ in range(num_convs):
            layers += [nn.Conv2d(features, features, 3, padding=1), nn.PReLU(features)]
        layers.append(nn.Conv2d(features, 3 * scale**2, 3, padding=1))
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
        first, last = self.body[0], self.last_convolution
        assert isinstance(first, nn.Conv2d)
        x = self.body[:-1](images.to(first.weight.dtype))
        details = functional.pixel_shuffle(last(x.to(last.weight.dtype)), scale)
        return details + functional.interpolate(images, scale_factor=float(scale), mode="nearest")

    @property
    def last_convolution(self) -> nn.Conv2d:
        last = self.body[-1]
        assert isinstance(last, nn.Conv2d)
        return last
