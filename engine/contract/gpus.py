"""Chooses a worker's GPU: `cuda:1` is the second of those that the server may use.

A worker sees only its own GPU, so that no thread or library in it needs an index: inside, the GPU
is always `cuda`.
"""

import re
from collections.abc import Sequence

VARIABLE = "CUDA_VISIBLE_DEVICES"
"""The environment variable with CUDA's list of the GPUs that a process may use."""

_NAME = re.compile(r"auto|cpu|cuda(?::([0-9]{1,3}))?")


def is_device(name: str) -> bool:
    """Whether it is `auto`, `cpu`, `cuda` or `cuda:N`."""
    return _NAME.fullmatch(name) is not None


def gpu_index(device: str) -> int | None:
    """The N of `cuda:N`; None for a device without one."""
    found = _NAME.fullmatch(device)
    return None if found is None or found[1] is None else int(found[1])


def gpu_variables(device: str, visible: Sequence[str] | None) -> dict[str, str]:
    """The environment variables that give a worker its GPU.

    Args:
        visible: the server's own list of GPUs; None is all. With an index beyond it, the worker
            sees no GPU and says so.
    """
    index = gpu_index(device)
    if index is None:
        return {}
    chosen = str(index)
    if visible is not None:
        chosen = visible[index] if index < len(visible) else ""
    return {VARIABLE: chosen}


def device_of_account(seen: str, wanted: str) -> str:
    """The arbiter's name of a device, which gives a GPU its index among the server's GPUs.

    Args:
        seen: the worker's name of the device.
        wanted: the device in the worker's configuration.
    """
    return f"cuda:{gpu_index(wanted) or 0}" if seen == "cuda" else seen
