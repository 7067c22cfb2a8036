"""Rows of one denoiser call, split by what must agree within one forward pass.

A transformer without attention masks needs sequences of one length. Rows nearly always agree, since
prompts are padded to one length; the odd ones (a prompt of several chunks, a reference image of
another size) get a pass of their own instead of padding that would change their result.
"""

from collections.abc import Callable, Hashable, Sequence

import torch

from engine.diffusion.families.family import Row


def denoise_by_layout(
    rows: Sequence[Row],
    layout: Callable[[Row], Hashable],
    forward: Callable[[Sequence[Row]], torch.Tensor],
) -> torch.Tensor:
    """One `forward` per layout; its predictions `[R, C, h, w]` in the order of `rows`."""
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


def stack_timesteps(rows: Sequence[Row], device: torch.device) -> torch.Tensor:
    """`[R]` fp32."""
    return torch.stack([row.timestep for row in rows]).to(device=device, dtype=torch.float32)
