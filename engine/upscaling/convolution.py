"""The convolutions of networks of our own: PyTorch's, or on a CPU in fp32 our own."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from kernels import Convolution, conv3x3


class Conv3x3(nn.Conv2d):
    """3x3, of a map that goes on as zeros, with a leaky activation behind it.

    Attributes:
        slope: of what is negative; 1: none.
        arranged: weights as our own operation reads them; with them it takes and makes fp32.
    """

    def __init__(self, inputs: int, outputs: int, slope: float = 1.0) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.slope = slope
        self.arranged: Convolution | None = None

    def arrange(self, slopes: Tensor | None = None) -> None:
        """Have our own operation run from now on.

        Args:
            slopes: of every output, in place of one for all.
        """
        assert self.bias is not None
        given = self.slope if slopes is None else slopes.data
        self.arranged = Convolution.of(self.weight.data, self.bias.data, given)

    def forward(self, x: Tensor, addend: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """In the type of its weights; `addend + scale * convolved` in the addend's, if there is
        one."""
        if self.arranged is not None:
            return conv3x3(x, self.arranged, addend, scale)
        made = super().forward(x.to(self.weight.dtype))
        if self.slope != 1.0:
            made = functional.leaky_relu(made, self.slope, inplace=True)
        return made if addend is None else addend.add(made, alpha=scale)

    def write(
        self, x: Tensor, out: Tensor, addend: Tensor | None = None, scale: float = 1.0
    ) -> None:
        """The same to `out`, which may be channels of the map that x is of; only if arranged."""
        assert self.arranged is not None
        conv3x3(x, self.arranged, addend, scale, out)


def num_arranged_bytes(network: Any) -> int:
    """Memory that a network's weights take a second time, for our own operation."""
    modules = network.modules() if isinstance(network, nn.Module) else ()
    return sum(
        module.arranged.transformed.nbytes
        for module in modules
        if isinstance(module, Conv3x3) and module.arranged is not None
    )
