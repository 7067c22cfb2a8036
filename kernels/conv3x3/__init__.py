"""3x3 convolution of feature maps with the operations that follow it in networks for enlarging
images."""

from kernels.conv3x3 import cases, cpu, reference
from kernels.conv3x3.convolution import Convolution
from kernels.registry import op

__all__ = ["Convolution", "conv3x3"]

conv3x3 = op(cases)(reference.conv3x3)
conv3x3.implementation("cpu", supports=cpu.supports)(cpu.conv3x3)
