"""Randomness that depends on the request alone: a pure function of (seed, index, position).

No generator state exists, so a draw cannot depend on who shares the batch, on preemption or on a
restart. `engine.llm.sampling` asks for one number per drawn token.

Paper: Philox4x32-10, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)
_NUM_ROUNDS = 10


def philox4x32(counters: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Ten rounds of Philox on every row at once.

    Args:
        counters: [N, 4] uint64, each a 32-bit word.
        keys: [N, 2] uint64, each a 32-bit word.

    Returns:
        [N, 4] uint64, each a 32-bit word.
    """
    c0, c1, c2, c3 = counters.T
    k0, k1 = keys.T
    for _ in range(_NUM_ROUNDS):
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _WORD) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> _WORD) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0 = (k0 + _KEY_STEPS[0]) & _LOW
        k1 = (k1 + _KEY_STEPS[1]) & _LOW
    return np.stack((c0, c1, c2, c3), axis=1)


def uniforms(
    seeds: Sequence[int], indices: Sequence[int], positions: Sequence[int]
) -> NDArray[np.float64]:
    """One number in [0, 1) per row, with 53 random bits.

    Args:
        seeds: any integers; equal modulo 2**64 means equal, so every int64 is its own seed.
        indices: which of the request's completions; index 0 is what `n = 1` would draw.
        positions: number of tokens generated before this draw.
    """
    counters = np.zeros((len(seeds), 4), dtype=np.uint64)
    counters[:, 0] = positions
    counters[:, 1] = indices
    wrapped = np.array([seed & (2**64 - 1) for seed in seeds], dtype=np.uint64)
    words = philox4x32(counters, np.stack((wrapped & _LOW, wrapped >> _WORD), axis=1))
    bits = (words[:, 0] << _WORD | words[:, 1]) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
