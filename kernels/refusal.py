"""The reasons why an implementation does not run, for people who wonder why the server is slow."""

from collections.abc import Iterable

import torch
from torch import Tensor

from kernels import _triton, native

_HOMES = {"cpu": "cpu", "triton": "cuda"}
"""The type of the device of each implementation's tensors."""


def refusal(name: str, arguments: Iterable[object]) -> str:
    """Return the reason why `name` does not take these arguments, or first the lack of the
    machine."""
    home = _HOMES.get(name)
    lack = missing(name)
    if lack is not None:
        return lack
    elsewhere = {str(a.device.type) for a in arguments if isinstance(a, Tensor)} - {home}
    if home is not None and elsewhere:
        return f"the tensors are on {'/'.join(sorted(elsewhere))}"
    return "does not support these arguments"


def missing(name: str) -> str | None:
    """Return what this machine lacks for any implementation of that name; None if nothing."""
    if name == "cpu":
        return native.missing()
    if name != "triton":
        return None
    if not _triton.AVAILABLE:
        return "Triton is not installed"
    return None if torch.cuda.is_available() else "no NVIDIA GPU"
