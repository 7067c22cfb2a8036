"""Formats of panels other than those of GGUF files: whole bytes, and numbers of few bits.

Their scales are fp32, or powers of two in one format: each 32 inputs, or 16 in another, get the
scale that applies to them, whatever the groups of the tool that wrote the file.
"""

import torch

from kernels.linear_panels.panels import Meaning, PanelFormat

BYTES = PanelFormat(bits=8, scale_dtype=torch.float32, offset=128)
BYTES_WITH_MIN = PanelFormat(bits=8, scale_dtype=torch.float32, has_min=True)
NF4 = PanelFormat(bits=4, scale_dtype=torch.float32, meaning=Meaning.NF4)
FP4 = PanelFormat(bits=4, scale_dtype=torch.float32, meaning=Meaning.FP4)
E2M1 = PanelFormat(bits=4, scale_dtype=torch.float8_e8m0fnu, meaning=Meaning.E2M1)
E2M1_BY_16 = PanelFormat(bits=4, group=16, scale_dtype=torch.float32, meaning=Meaning.E2M1)
FP8 = PanelFormat(bits=8, scale_dtype=torch.float32, meaning=Meaning.FP8)

WIDE = {
    "bytes": BYTES,
    "bytes_with_min": BYTES_WITH_MIN,
    "nf4": NF4,
    "fp4": FP4,
    "e2m1": E2M1,
    "e2m1_by_16": E2M1_BY_16,
    "fp8": FP8,
}
