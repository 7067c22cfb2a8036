"""The convolutions of our own networks: PyTorch's, or on a CPU in fp32 our own."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from kernels import Convolution, conv3x3


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with zero padding, followed by a leaky activation.

    Attributes:
        slope: the factor of negative values; 1 is no activation.
        arranged: the weights in our own operation's layout, which then takes and returns fp32.
    """

    def __init__(self, inputs: int, outputs: int, slope: float = 1.0) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.slope = slope
        self.arranged: Convolution | None = None

    def arrange(self, slopes: Tensor | None = None) -> None:
        """Use our own operation from now on.

        Args:
            slopes: a slope for every output, instead of one for all.
        """
        assert self.bias is not None
        given = self.slope if slopes is None else slopes.data
        self.arranged = Convolution.of(self.weight.data, self.bias.data, given)

    def forward(self, x: Tensor, addend: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """The convolution in the type of its weights, or `addend + scale * convolved` in the
        addend's type if there is one."""
        if self.arranged is not None:
            return conv3x3(x, self.arranged, addend, scale)
        made = super().forward(x.to(self.weight.dtype))
        if self.slope != 1.0:
            made = functional.leaky_relu(made, self.slope, inplace=True)
        return made if addend is None else addend.add(made, alpha=scale)

    def write(
        self, x: Tensor, out: Tensor, addend: Tensor | None = None, scale: float = 1.0
    ) -> None:
        """Write the result to `out`, which may be channels of the map that contains x; only if
        arranged."""
        assert self.arranged is not None
        conv3x3(x, self.arranged, addend, scale, out)


def num_arranged_bytes(network: Any) -> int:
    """The memory of the second copy of a network's weights that our own operation uses."""
    modules = network.modules() if isinstance(network, nn.Module) else ()
    return sum(
        module.arranged.transformed.nbytes
        for module in modules
        if isinstance(module, Conv3x3) and module.arranged is not None
    )
