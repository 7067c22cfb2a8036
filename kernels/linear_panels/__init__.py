"""Multiplication by block-quantised weights, for CPUs."""

from kernels.linear_panels import cases, cpu, reference
from kernels.linear_panels.gguf import panels_from_gguf
from kernels.linear_panels.panels import Panels
from kernels.linear_panels.quantize import panels_from_floats
from kernels.registry import op

linear_panels = op(cases)(reference.linear_panels)
linear_panels.implementation("cpu", supports=cpu.supports)(cpu.linear_panels)

__all__ = ["Panels", "linear_panels", "panels_from_floats", "panels_from_gguf"]
