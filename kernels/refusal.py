"""Why an implementation does not run, in words for whoever wonders why the server is slow."""

from collections.abc import Iterable

import torch
from torch import Tensor

from kernels import _triton, native

_HOMES = {"cpu": "cpu", "triton": "cuda"}
"""Implementation → type of the device that its tensors are on."""


def refusal(name: str, arguments: Iterable[object]) -> str:
    """What keeps `name` from taking these arguments; the machine's lacks come first."""
    home = _HOMES.get(name)
    lack = missing(name)
    if lack is not None:
        return lack
    elsewhere = {str(a.device.type) for a in arguments if isinstance(a, Tensor)} - {home}
    if home is not None and elsewhere:
        return f"the tensors are on {'/'.join(sorted(elsewhere))}"
    return "does not take these arguments"


def missing(name: str) -> str | None:
    """What this machine lacks for any implementation of that name; None: nothing."""
    if name == "cpu":
        return native.missing()
    if name != "triton":
        return None
    if not _triton.AVAILABLE:
        return "Triton is not installed"
    return None if torch.cuda.is_available() else "no NVIDIA GPU"
