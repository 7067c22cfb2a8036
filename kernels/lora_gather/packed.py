"""A and B in 8 bits, laid out for products of integers.

A chunk holds 8 ranks. In A, each rank has a step (a scale) for 64 inputs; in B, all 8 ranks share
one for 8 outputs. Steps are bf16 and numbers are unsigned bytes with an offset of 128 steps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

RANKS = 8
"""Ranks of a chunk. All sizes here are those of `packed.h`."""
GROUP = 64
"""Numbers that share a step."""
_LARGEST, _MIDDLE = 127, 128
_SMALLEST_STEP = torch.finfo(torch.bfloat16).tiny
"""The smallest step; groups that would need a smaller one become zeros."""
_MOST = 126
"""The largest exponent of factors, and of the numbers that they are applied to."""
_LINE_BYTES = 64
_OCTET, _QUAD, _OUTPUTS = 8, 4, 16
"""Inputs of a rank, ranks, and outputs that lie together."""


def num_chunks(rank: int) -> int:
    """Return the number of chunks that hold a rank."""
    return -(-rank // RANKS)


def chunk_bytes(length: int) -> int:
    """Return the bytes of a chunk with this number of inputs or outputs."""
    return _steps_bytes(length) + _up_to(length, _OUTPUTS) * RANKS


def pack(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Round A and B of finite numbers to 8 bits.

    First, each rank of B is scaled by a power of two to a size between 1/2 and 1, and that of A by
    its inverse, so that ranks of all sizes can share steps.

    Args:
        a: [..., r, K].
        b: [..., r, N].

    Returns:
        [..., C, `chunk_bytes(K)`] and [..., C, `chunk_bytes(N)`] uint8, C being `num_chunks(r)`.
            The error of a number is at most half its group's step, which is 1/127 of the group's
            largest number, rounded up to bf16.
    """
    exponent = _exponent(b).minimum(_MOST - _exponent(a)).clamp(-_MOST, _MOST)
    return _pack_a(a, torch.exp2(exponent)), _pack_b(b, torch.exp2(-exponent))


def unpack(a: Tensor, b: Tensor, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Unpack to [..., 8 C, inputs] and [..., 8 C, outputs] fp32, whose product is that of the
    packed matrices."""
    steps, numbers = _parted(a, inputs)
    numbers = _cut(numbers, -1, RANKS, _OCTET).transpose(-3, -2).flatten(-2)
    steps = _cut(steps, -1, RANKS).mT.repeat_interleave(GROUP, -1)
    found_a = numbers[..., :inputs] * steps[..., :inputs]
    steps, numbers = _parted(b, outputs)
    numbers = _cut(numbers, -1, RANKS // _QUAD, _OUTPUTS, _QUAD)
    numbers = numbers.movedim((-3, -1), (-4, -3)).flatten(-4, -3).flatten(-2)
    steps = steps.repeat_interleave(GROUP // RANKS, -1)[..., None, :outputs]
    found_b = numbers[..., :outputs] * steps
    return found_a.flatten(-3, -2), found_b.flatten(-3, -2)


def _exponent(rows: Tensor) -> Tensor:
    """Return [..., r, 1], the exponent of the power of two above a row's largest magnitude; 0 for
    zeros."""
    return torch.frexp(rows.abs().amax(-1, keepdim=True).float()).exponent


def _pack_a(a: Tensor, factors: Tensor) -> Tensor:
    """Pack `a * factors`; factors are [..., r, 1]."""
    groups, factors = _cut(_in_chunks(a), -1, GROUP), _in_chunks(factors, 1)
    steps = _steps(groups.abs().amax(-1) * factors)
    numbers = _rounded(groups, (factors * _inverse(steps))[..., None]).flatten(-2)
    octets = _cut(numbers, -1, _OCTET).transpose(-3, -2)
    return _joined(steps.mT.flatten(-2), octets.flatten(-3), a.shape[-1])


def _pack_b(b: Tensor, factors: Tensor) -> Tensor:
    """Pack `b * factors`; factors are [..., r, 1]."""
    groups, factors = _cut(_in_chunks(b), -1, GROUP // RANKS), _in_chunks(factors, 1)
    steps = _steps((groups.abs().amax(-1) * factors).amax(-2))
    per_step = factors * _inverse(steps)[..., None, :]
    numbers = _rounded(groups, per_step[..., None]).flatten(-2)
    quads = _cut(_cut(numbers, -1, _OUTPUTS), -3, _QUAD)
    return _joined(steps, quads.movedim(-2, -4).movedim(-2, -1).flatten(-4), b.shape[-1])


def _in_chunks(rows: Tensor, multiple: int = GROUP) -> Tensor:
    """Divide ranks into chunks: [..., C, 8, n], with n padded to a multiple."""
    more_ranks, more = -rows.shape[-2] % RANKS, -rows.shape[-1] % multiple
    if more_ranks or more:
        rows = F.pad(rows, (0, more, 0, more_ranks))
    return _cut(rows, -2, RANKS)


def _cut(x: Tensor, dim: int, *sizes: int) -> Tensor:
    """Split a dimension into several, the last ones of these sizes."""
    end = x.dim() + dim + 1
    return x.reshape(*x.shape[: end - 1], -1, *sizes, *x.shape[end:])


def _steps(largest: Tensor) -> Tensor:
    """Return steps, rounded up so that no number is beyond the largest integer."""
    steps = (largest / _LARGEST).view(torch.int32) + 0xFFFF & -0x10000
    return steps.view(torch.float32)


def _inverse(steps: Tensor) -> Tensor:
    return torch.where(steps >= _SMALLEST_STEP, 1 / steps, 0)


def _rounded(numbers: Tensor, per_step: Tensor) -> Tensor:
    per_step = torch.where(per_step.isfinite(), per_step, 0)
    return (numbers * per_step).round_().add_(_MIDDLE).to(torch.uint8)


def _joined(steps: Tensor, numbers: Tensor, length: int) -> Tensor:
    """Return a chunk's bytes: its steps up to a line's end, its numbers up to a multiple of 16."""
    steps = F.pad(
        steps.to(torch.bfloat16).view(torch.uint8), (0, -2 * steps.shape[-1] % _LINE_BYTES)
    )
    return torch.cat((steps, numbers[..., : _up_to(length, _OUTPUTS) * RANKS]), -1)


def _parted(chunks: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return the steps and numbers of `_joined`, in fp32."""
    steps = chunks[..., : _up_to(length, GROUP) // GROUP * RANKS * torch.bfloat16.itemsize]
    numbers = chunks[..., _steps_bytes(length) :]
    return steps.contiguous().view(torch.bfloat16).float(), numbers.float() - _MIDDLE


def _steps_bytes(length: int) -> int:
    return _up_to(_up_to(length, GROUP) // GROUP * RANKS * torch.bfloat16.itemsize, _LINE_BYTES)


def _up_to(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
