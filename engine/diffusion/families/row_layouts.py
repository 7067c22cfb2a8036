"""Divides the rows of a denoiser call into groups that can share a forward pass.

A transformer without attention masks needs sequences of one length. Rows nearly always agree, since
prompts are padded to one length; other rows (with a prompt of several chunks, or a reference image
of another size) get a pass of their own, because padding would change their result.

In fp32 on a CPU a row's bits must not depend on the others. A transformer with thousands of tokens
keeps the processor busy with one row, so there each row has a pass of its own.
"""

from collections.abc import Callable, Hashable, Sequence

import torch

from engine.diffusion.families.family import Row
from kernels import native


def denoise_by_layout(
    rows: Sequence[Row],
    layout: Callable[[Row], Hashable],
    forward: Callable[[Sequence[Row]], torch.Tensor],
) -> torch.Tensor:
    """Run one `forward` per layout; returns predictions `[R, C, h, w]` in the order of `rows`."""
    places: dict[Hashable, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(layout(row), []).append(place)
    if len(places) == 1:
        return forward(rows)
    predictions: dict[int, torch.Tensor] = {}
    for members in places.values():
        parts = torch.split(forward([rows[place] for place in members]), 1)
        predictions.update(zip(members, parts, strict=True))
    return torch.cat([predictions[place] for place in range(len(rows))])


def is_exact(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a row's predictions have the same bits in any batch, as on a CPU in fp32 with our own
    operations."""
    is_fp32_on_cpu = device.type == "cpu" and dtype is torch.float32
    return is_fp32_on_cpu and native.missing() is None


def denoise_each(
    rows: Sequence[Row], forward: Callable[[Sequence[Row]], torch.Tensor]
) -> torch.Tensor:
    """Run one `forward` per row."""
    return torch.cat([forward([row]) for row in rows])


def stack_timesteps(rows: Sequence[Row], device: torch.device) -> torch.Tensor:
    """The timesteps of all rows, `[R]` in fp32."""
    return torch.stack([row.timestep for row in rows]).to(device=device, dtype=torch.float32)
