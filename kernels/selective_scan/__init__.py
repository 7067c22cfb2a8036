"""The selective scan of state-space models: a decaying state, changed and read by each token."""

from kernels.registry import op
from kernels.selective_scan import cases, reference

selective_scan = op(cases)(reference.selective_scan)
