"""Types of 4-bit numbers: the value of each code. Those of bitsandbytes are between -1 and 1."""

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of a normal distribution, with an exact zero (QLoRA, arXiv:2305.14314, appendix E)."""

_FP4_POSITIVE = tuple(twelfths / 12 for twelfths in (0, 0.0625, 8, 12, 4, 6, 2, 3))
FP4 = _FP4_POSITIVE + tuple(0.0 - number for number in _FP4_POSITIVE)
"""Floats with a sign, two bits of exponent and one of mantissa, ordered and scaled as in
bitsandbytes."""

_E2M1_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = _E2M1_POSITIVE + tuple(-number for number in _E2M1_POSITIVE)
"""Floats with a sign, two bits of exponent and one of mantissa (OCP Microscaling Formats)."""
