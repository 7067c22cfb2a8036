"""Inputs for `group_norm_silu`: maps of real models, odd sizes, far means."""

from dataclasses import dataclass

import torch

from kernels.shared.tolerances import FLOATS

# Means and deviations in fp32 in another order.
TOLERANCE = dict.fromkeys(FLOATS, 2e-5)
SLACK = {
    # PyTorch rounds the norm before the activation, which magnifies a relative error by up to 1.25.
    "composed": {torch.bfloat16: 5e-3, torch.float16: 6.3e-4},
}


@dataclass(frozen=True)
class Case:
    """`rows` maps of `size` x `size + 1` cells."""

    name: str
    rows: int
    channels: int
    size: int
    num_groups: int = 32
    silu: bool = True
    mean: float = 0.0
    is_channels_last: bool = True


CASES = (
    Case("sd15_first", 2, 320, 32),
    Case("sd15_no_silu", 2, 640, 16, silu=False),
    Case("shapes_batch", 5, 64, 8, num_groups=16),
    Case("shapes_skip", 3, 192, 16, num_groups=16),
    Case("autoencoder", 1, 32, 100),
    Case("one_group", 2, 7, 5, num_groups=1),
    Case("a_group_per_channel", 2, 5, 3, num_groups=5, silu=False),
    Case("far_mean", 2, 64, 12, num_groups=4, mean=4.0),
    Case("channels_first", 3, 32, 7, num_groups=8, is_channels_last=False),
)
REFUSED = {"triton": ("channels_first",)}
BENCHMARKS = {
    "cpu": (Case("shapes 32 rows", 32, 64, 16, num_groups=16), Case("sd15 2 rows", 2, 320, 64)),
    "cuda": (Case("sd15 8 rows", 8, 320, 64), Case("sdxl 8 rows", 8, 320, 128)),
}
"""Shapes of real models by type of device; `kernels.tools.bench` times them."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    x = torch.randn(case.rows, case.channels, case.size, case.size + 1, device=device) + case.mean
    layout = torch.channels_last if case.is_channels_last else torch.contiguous_format
    return {
        "x": x.to(dtype).to(memory_format=layout),
        "num_groups": case.num_groups,
        "weight": torch.rand(case.channels, device=device).add_(0.5).to(dtype),
        "bias": torch.randn(case.channels, device=device).to(dtype),
        "eps": 1e-5,
        "silu": case.silu,
    }
