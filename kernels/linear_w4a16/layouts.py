"""The layout of 4-bit weights that the op takes, and conversions of checkpoints to it.

The layout is GPTQ's: an int32 holds the weights of eight consecutive inputs for one output, the
first in its lowest four bits. Zero points are unpacked to a byte each: a scale takes two bytes per
group and output, so packing zero points would save under 1 % at a group size of 128.
"""

import torch
from torch import Tensor

PER_INT32 = 8
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The order of the eight consecutive outputs in AWQ's int32: nibble i is the output
`AWQ_ORDER[i]`."""


def pack(q: Tensor) -> Tensor:
    """Pack [K, N] integers of 0 ... 15 into [K / 8, N] int32."""
    nibbles = q.reshape(-1, PER_INT32, q.shape[1]).to(torch.int32)
    return (nibbles << _shifts(q.device)[:, None]).sum(1, dtype=torch.int32)


def unpack(qweight: Tensor) -> Tensor:
    """Unpack [K / 8, N] int32 to [K, N] int32 of 0 ... 15."""
    return (qweight[:, None] >> _shifts(qweight.device)[:, None] & 15).flatten(0, 1)


def numbers_together(bits: int) -> int:
    """Return how many numbers GPTQ packs into whole int32s."""
    return 32 if 32 % bits else 32 // bits


def gptq_weight(qweight: Tensor, bits: int = 4) -> Tensor:
    """Convert GPTQ's weights of up to 4 bits, [K * bits / 32, N] int32, to this layout."""
    return qweight if bits == 4 else pack(_unpack_stream(qweight, bits))


def gptq_bytes(qweight: Tensor) -> Tensor:
    """Unpack GPTQ's weights of 8 bits, [K / 4, N] int32 → [N, K] uint8."""
    return qweight.unsqueeze(2).view(torch.uint8).transpose(0, 1).flatten(1)


def gptq_zeros(qzeros: Tensor, bits: int = 4, *, minus_one: bool) -> Tensor:
    """Unpack GPTQ's zero points, a stream along the outputs: [G, N * bits / 32] → [G, N] uint8.

    `minus_one`: the file stores zero - 1 modulo 2^bits, as `checkpoint_format` "gptq" (v1, which is
    what a checkpoint without that field has) does; "gptq_v2" stores the zero itself.
    """
    zeros = _unpack_stream(qzeros.T, bits).T
    return ((zeros + 1) & ((1 << bits) - 1) if minus_one else zeros).to(torch.uint8).contiguous()


def from_awq(qweight: Tensor, qzeros: Tensor) -> tuple[Tensor, Tensor]:
    """Repack an AWQ layer (`version` "gemm"): [K, N / 8] and [G, N / 8] int32 → qweight, zeros."""
    zeros = _unpack_outputs(qzeros, AWQ_ORDER).to(torch.uint8)
    return pack(_unpack_outputs(qweight, AWQ_ORDER)), zeros


def _unpack_stream(words: Tensor, bits: int) -> Tensor:
    """Unpack [R * bits / 32, N] int32, a stream of numbers from low to high bits, to [R, N]
    int32."""
    together = numbers_together(bits)
    num_words = together * bits // 32
    groups = words.reshape(-1, num_words, words.shape[1])
    numbers = []
    for place in range(together):
        word, shift = divmod(place * bits, 32)
        number = groups[:, word] >> shift
        left = 32 - shift
        if left < bits:
            number = number & (1 << left) - 1 | groups[:, word + 1] << left
        numbers.append(number & (1 << bits) - 1)
    return torch.stack(numbers, 1).flatten(0, 1)


def _unpack_outputs(packed: Tensor, order: tuple[int, ...]) -> Tensor:
    """Unpack [R, N / 8] int32 to [R, N] int32 of 0 ... 15, for an order of the nibbles."""
    nibbles = packed[:, :, None] >> _shifts(packed.device) & 15
    outputs = torch.empty_like(nibbles)
    outputs[:, :, list(order)] = nibbles
    return outputs.flatten(1)


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(0, 32, 4, dtype=torch.int32, device=device)
