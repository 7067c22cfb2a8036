"""The number of stages in which kernels load ahead, as measured on this machine's GPU.

Stages decide when data is loaded, never what is computed from it: results keep their bits. Tiles
and warps are not chosen here, since they are part of an order of sums or choose instructions.

`python -m kernels.tools.tune` measures and writes `stages.json` into the cache folder; without it
kernels run with their own defaults.
"""

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from kernels import _triton
from kernels.cache_folder import cache_folder

_asked: dict[str, int] = {}
"""Launches since `observed` began, with their defaults."""
_tried: dict[str, int] = {}


def num_stages(launch: str, default: int) -> int:
    """Return the stages for a kind of launch, such as `linear_w8 bfloat16 64x64`. The name includes
    everything that decides how much shared memory a stage takes, so a measured number fits wherever
    it is used.

    Args:
        default: the kernel's own choice, for GPUs without measurements.
    """
    _asked[launch] = default
    measured = _measured() if _triton.pretended_gpu is None else {}
    return _tried.get(launch) or measured.get(launch, default)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the dtype's part of launch names, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def observed() -> Iterator[dict[str, int]]:
    """Note the launches that ask for stages in this context: name → default."""
    _asked.clear()
    yield _asked


@contextlib.contextmanager
def trying(launch: str, stages: int) -> Iterator[None]:
    """Return these stages for a launch within this context."""
    _tried[launch] = stages
    try:
        yield
    finally:
        del _tried[launch]


def save(found: dict[str, int]) -> Path:
    """Keep measurements of this GPU, beside those of other GPUs and compilers."""
    path = _file()
    everything = _read(path)
    everything[_place()] = everything.get(_place(), {}) | found
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(everything, indent=1, sort_keys=True) + "\n")
    _measured.cache_clear()
    return path


@functools.cache
def _measured() -> dict[str, int]:
    return _read(_file()).get(_place(), {}) if _place() else {}


def _file() -> Path:
    return cache_folder() / "stages.json"


def _read(path: Path) -> dict[str, dict[str, int]]:
    """Read measurements; a file that is missing or broken counts as empty, since it can be measured
    again."""
    try:
        content: dict[str, dict[str, int]] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content


@functools.cache
def _place() -> str:
    """Return the GPU's architecture and the compiler, for which measurements are valid; empty
    without a GPU."""
    if not torch.cuda.is_available() or not _triton.AVAILABLE:
        return ""
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}, Triton {_triton.triton.__version__}"
