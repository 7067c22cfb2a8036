"""Uses bfloat16 where it is fast and makes no visible difference.

Convolutions take and return 16 bits. Values that bypass them, and the last convolution, whose
output is the image, keep 32 bits.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from engine.contract.worker_settings import DType
from engine.upscaling.network import Network
from kernels import isa, native

LEAST_DECIBELS = 50.0
"""The peak signal-to-noise ratio to 32 bits from which 16 bits make no visible difference: the
error is below one of 255 levels."""
_TRIAL_SIDE = 48


def served_network(network: Network, wanted: DType, device: torch.device) -> tuple[Network, str]:
    """The network in the type in which it is served, and the type's name.

    Args:
        wanted: the setting; auto is bfloat16 if the device multiplies it and a trial image looks
            alike.
    """
    is_fast = device.type != "cpu" or isa.multiplies_bf16()
    if wanted == "float32" or (wanted == "auto" and not is_fast):
        return arranged(network, device), "float32"
    narrow = narrowed(network)
    if narrow is None or (wanted == "auto" and decibels(network, narrow) < LEAST_DECIBELS):
        return arranged(network, device), "float32"
    return narrow, "bfloat16"


def arranged(network: Any, device: torch.device) -> Network:
    """The network itself. On a CPU that can run it, one of ours uses our own operation in fp32 from
    now on."""
    if device.type == "cpu" and hasattr(network, "arrange") and native.missing() is None:
        network.arrange()
    served: Network = network
    return served


def narrowed(network: Any) -> Network | None:
    """A copy in bfloat16; None for networks that are not ours, which may not support it."""
    last = getattr(network, "last_convolution", None)
    if last is None:
        return None
    narrow: Any = copy.deepcopy(network)
    for module in narrow.modules():
        if isinstance(module, nn.Conv2d | nn.PReLU) and module is not narrow.last_convolution:
            module.to(torch.bfloat16)
    made: Network = narrow
    return made


def decibels(network: Network, other: Network) -> float:
    """The similarity of two networks' results for an image with edges, slopes and noise."""
    trial = trial_image()
    with torch.inference_mode():
        error = (network(trial).clamp(0, 1) - other(trial).clamp(0, 1)).square().mean().item()
    return math.inf if error == 0 else -10 * math.log10(error)


def trial_image() -> Tensor:
    """The trial image `[1, 3, side, side]`, always the same."""
    seeded = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, _TRIAL_SIDE)
    slopes = torch.stack([ramp.expand(_TRIAL_SIDE, -1), ramp[:, None].expand(-1, _TRIAL_SIDE)])
    checks = ((ramp * 6).floor()[:, None] + (ramp * 6).floor()).remainder(2)
    image = torch.cat([slopes, checks[None]])[None]
    noise = torch.rand(image.shape, generator=seeded) - 0.5
    return (image + 0.2 * noise).clamp(0, 1)
