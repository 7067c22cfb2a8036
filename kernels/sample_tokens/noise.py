"""Random numbers that are a pure function of (seed, index, position, token id).

There is no generator state, so a draw cannot depend on the rest of the batch, preemption or
restarts. Token `t` of a row gets word `t % 64 // 16` of Philox block `t // 64 * 16 + t % 16`, so
that sixteen neighbouring lanes of a vector unit hold sixteen neighbouring tokens:

    key      seed, low and high word
    counter  (position, index, block, 0); with 1 as the last word it gives 32 bits more, which only
             numbers below 2**-24 need. Last words from 2 on are for steps of `reference.py` that
             draw one number per row: each uses its own word, so no other numbers change

Everything is 32-bit integers and single fp32 additions and multiplications, no library function
and no fused multiply-add, so that any IEEE machine computes the same bits.

Papers: Philox4x32-10, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3",
section 4. The logarithm is that of Cephes (`logf`, Moshier), within 2 units in the last place.
"""

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_NUM_ROUNDS = 10
_LOG_TERMS = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)


def philox4x32(counters: Tensor, keys: Tensor) -> Tensor:
    """Compute ten rounds of Philox.

    Args:
        counters: [N, 4] int64, each a 32-bit word.
        keys: [N, 2] or [1, 2] int64, each a 32-bit word.

    Returns:
        [N, 4] int64, each a 32-bit word.
    """
    c0, c1, c2, c3 = counters.unbind(1)
    k0, k1 = keys.unbind(1)
    for _ in range(_NUM_ROUNDS):
        # The products wrap to negative numbers; their bits are those of the unsigned product.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> 32 & _LOW) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> 32 & _LOW) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = k0 + _KEY_STEPS[0] & _LOW, k1 + _KEY_STEPS[1] & _LOW
    return torch.stack((c0, c1, c2, c3), dim=1)


def token_words(
    num_tokens: int, *, seed: int, index: int, position: int, more: int, device: torch.device
) -> Tensor:
    """Return [num_tokens] int64, each token's 32 random bits; with `more` = 1 the next 32."""
    num_blocks = -(-num_tokens // 64) * 16
    counters = torch.zeros(num_blocks, 4, dtype=torch.int64, device=device)
    counters[:, 0] = position
    counters[:, 1] = index
    counters[:, 2] = torch.arange(num_blocks, device=device)
    counters[:, 3] = more
    keys = torch.tensor([[seed & _LOW, seed >> 32 & _LOW]], device=device)
    words = philox4x32(counters, keys)
    return words.view(-1, 16, 4).transpose(1, 2).reshape(-1)[:num_tokens]


def exponentials(
    num_tokens: int, *, seed: int, index: int, position: int, device: torch.device
) -> Tensor:
    """Return [num_tokens] fp32, a positive, exponentially distributed number for each token."""
    first, second = (
        token_words(num_tokens, seed=seed, index=index, position=position, more=more, device=device)
        for more in (0, 1)
    )
    return exponential(first, second)


def exponential(first: Tensor, second: Tensor) -> Tensor:
    """Compute `-log(1 - v)` in fp32, where v in (0, 1) has the bits `first` after its point.

    `second` refines the smallest v. Both ends are precise: v itself is used where it is small, and
    1 - v, made from the complement of the bits, where it is not.
    """
    small = (first.float() + 0.5) * 2.0**-32
    smallest = first.float() * 2.0**-32 + (second.float() + 0.5) * 2.0**-64
    v = torch.where(first < 256, smallest, small)
    rest = ((_LOW - first).float() + 0.5) * 2.0**-32
    bits = rest.view(torch.int32)
    exponent = ((bits >> 23) - 126).float()
    mantissa = ((bits & 0x7FFFFF) | 0x3F000000).view(torch.float32)
    low = mantissa < 0.70710678
    exponent = torch.where(low, exponent - 1.0, exponent)
    mantissa = torch.where(low, mantissa + mantissa, mantissa)
    is_small = first < 1 << 30
    f = torch.where(is_small, -v, mantissa - 1.0)
    exponent = torch.where(is_small, 0.0, exponent)
    return -_log(f, exponent)


def logarithm(x: Tensor) -> Tensor:
    """Compute the natural logarithm of positive, normal fp32."""
    bits = x.view(torch.int32)
    exponent = ((bits >> 23) - 126).float()
    mantissa = ((bits & 0x7FFFFF) | 0x3F000000).view(torch.float32)
    low = mantissa < 0.70710678
    exponent = torch.where(low, exponent - 1.0, exponent)
    mantissa = torch.where(low, mantissa + mantissa, mantissa)
    return _log(mantissa - 1.0, exponent)


def _log(f: Tensor, exponent: Tensor) -> Tensor:
    """Compute `log((1 + f) * 2**exponent)`, f near 0."""
    square = f * f
    series = torch.full_like(f, _LOG_TERMS[0])
    for term in _LOG_TERMS[1:]:
        series = series * f + term
    tail = f * square * series + exponent * -2.12194440e-4 - square * 0.5
    return f + tail + exponent * 0.693359375


def reciprocal(x: Tensor) -> Tensor:
    """Compute `1 / x` of positive fp32 within 2 units in the last place, by Newton's iteration.

    A division would also round alike everywhere, but on GPUs it calls a subroutine.
    """
    y = (0x7EF311C7 - x.view(torch.int32)).view(torch.float32)
    for _ in range(4):
        y = y * (2.0 - x * y)
    return y
