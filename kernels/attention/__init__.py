"""Attention over whole sequences without masks, as denoisers need it."""

from kernels.attention import cases, composed, cpu, reference
from kernels.registry import every_call, op

attention = op(cases)(reference.attention)
attention.implementation("composed", supports=every_call)(composed.attention)
attention.implementation("cpu", supports=cpu.supports)(cpu.attention)
