"""Block-quantised weights in the order in which `cpu.cpp` reads them.

A weight is `scale * (code - offset) + min`; scale and min belong to a group of 16 or 32 inputs of
one output. Stored codes may have another meaning, see `Meaning`. Scales and minima of 8 bits are
multiplied by factors that 256 inputs share.
16 outputs make a panel, 32 inputs of a panel a record:

- scales, [groups, 16 outputs], fp16, fp32, int8 or exponents, then minima if the format has any;
- 8-bit codes: [8 quads, 16 outputs, 4 inputs], one byte each;
- fewer bits: low nibbles of quads 0 to 3, with those of quads 4 to 7 in the upper halves, then the
  upper bits: with 5 bits those of all quads in one byte, with 6 of quads 0 to 3, then of 4 to 7.

A panel is its records in order of inputs, so that a multiplication reads memory once, in order.
Before them are its factors, if it has any: [inputs / 256, 1 or 2, 16 outputs] fp16, those of scales
and of minima.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from kernels.linear_gguf.quant_type import IQ4_NUMBERS
from kernels.shared.four_bit_numbers import E2M1, FP4, NF4
from kernels.shared.strip_rows import STRIP, StripRows

LANES, BLOCK = STRIP, 32
FACTOR_BLOCKS = 8
"""Records that share factors."""
_CHUNK_WEIGHTS = 1 << 20
_QUADS = BLOCK // 4


class Meaning(IntEnum):
    """The meanings of stored codes, as `product.h` numbers them."""

    INTEGERS = 0
    """Codes are integers."""
    IQ4 = 1
    """Codes of GGUF's 4-bit types with 16 integers of 8 bits; here plus 128."""
    NF4 = 2
    """Codes of bitsandbytes' 16 numbers."""
    FP4 = 3
    FP8 = 4
    """Codes are 8-bit floats, float8_e4m3fn, without NaN."""
    E2M1 = 5
    """Codes are 4-bit floats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelFormat:
    """The format of a weight; `cpu.cpp` knows the ones that `gguf.py` uses."""

    bits: int
    """Bits of a stored code: 4, 5, 6 or 8."""
    group: int = BLOCK
    """Inputs that share a scale: 16 or 32."""
    scale_dtype: torch.dtype = torch.float16
    """The type of scales and minima; int8 ones are multiplied by factors, `float8_e8m0fnu` is a
    power of two."""
    has_min: bool = False
    offset: int = 0
    """The number that is subtracted from codes."""
    meaning: Meaning = Meaning.INTEGERS

    @property
    def has_factors(self) -> bool:
        return self.scale_dtype == torch.int8

    @property
    def scale_type(self) -> int:
        """The number of the scales' type in `product.h`."""
        numbers = {torch.float32: 0, torch.float16: 2, torch.int8: 3, torch.float8_e8m0fnu: 4}
        return numbers[self.scale_dtype]

    @property
    def scales_of_group(self) -> int:
        """A group's numbers for each output: its scale, and its minimum if it has one."""
        return 2 if self.has_min else 1

    @property
    def record_bytes(self) -> int:
        scales = BLOCK // self.group * LANES * self.scale_dtype.itemsize * self.scales_of_group
        return scales + BLOCK * LANES * self.bits // 8

    def factor_bytes(self, in_features: int) -> int:
        """The bytes of a panel's factors."""
        if not self.has_factors:
            return 0
        return in_features // (BLOCK * FACTOR_BLOCKS) * self.scales_of_group * LANES * 2

    def panel_bytes(self, in_features: int) -> int:
        return self.factor_bytes(in_features) + in_features // BLOCK * self.record_bytes

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, including scales, minima and factors."""
        inputs = BLOCK * FACTOR_BLOCKS
        return 8 * self.panel_bytes(inputs) / (inputs * LANES)

    @property
    def takes_int8_activations(self) -> bool:
        """Whether there are products of 8-bit integers, which exist for the formats of GGUF
        files."""
        is_wide = self.bits == 8 and self.scale_dtype == torch.float32
        return self.meaning <= Meaning.IQ4 and not is_wide


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """An unpacked weight: [N, C] codes, [N, C / group] scales and minima, [N, C / 256 * 1 or 2]
    factors."""

    format: PanelFormat
    codes: Tensor
    """uint8."""
    scales: Tensor
    mins: Tensor | None = None
    factors: Tensor | None = None
    """fp16, those of scales and of minima in turn."""

    def dequantised(self) -> Tensor:
        """Compute the weight, [N, C] fp32."""
        group = self.format.group
        scales, mins = self._products()
        codes = self.codes
        if self.format.meaning != Meaning.INTEGERS:
            codes = _numbers(self.format.meaning)[codes.int()]
        codes = codes.float().sub_(self.format.offset).view(len(codes), -1, group)
        weights = codes.mul_(scales.unsqueeze(2))
        if mins is not None:
            weights.add_(mins.unsqueeze(2))
        return weights.flatten(1)

    def _products(self) -> tuple[Tensor, Tensor | None]:
        """Return the scales and minima in fp32, which holds every product exactly."""
        both = [None if one is None else one.float() for one in (self.scales, self.mins)]
        if self.factors is not None:
            factors = self.factors.float().view(len(self.factors), -1, self.format.scales_of_group)
            for i, one in enumerate(both):
                if one is not None:
                    shared = one.view(*factors.shape[:2], -1)
                    both[i] = (shared * factors[:, :, i : i + 1]).flatten(1)
        scales, mins = both
        assert scales is not None
        return scales, mins


def numbers_of(form: PanelFormat) -> Tensor:
    """Return [codes] fp32, the number of each code before the offset is subtracted."""
    if form.meaning == Meaning.INTEGERS:
        return torch.arange(1 << form.bits, dtype=torch.float32)
    return _numbers(form.meaning)


@functools.cache
def _numbers(meaning: Meaning) -> Tensor:
    """Return the number of each code."""
    if meaning == Meaning.FP8:
        return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    iq4 = [n + 128 for n in IQ4_NUMBERS]
    tables = {Meaning.IQ4: iq4, Meaning.NF4: NF4, Meaning.FP4: FP4, Meaning.E2M1: E2M1}
    return torch.tensor(tables[meaning], dtype=torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panels:
    """An [N, C] weight; C is a multiple of 32."""

    format: PanelFormat
    out_features: int
    in_features: int
    data: Tensor
    """[panels, bytes] uint8; outputs beyond the last are zero."""

    def row_lookup(self) -> Callable[[Tensor], Tensor]:
        """Return a function that looks up dequantised rows: [T] int64 → [T, C] fp32, new memory."""
        form = self.format
        groups = BLOCK // form.group
        num_scales = groups * form.scales_of_group
        find_scales = self._finder(form.scale_dtype, 0, num_scales)
        # A record has as many words of 4 codes (or bits of them) as a code has bits.
        scale_bytes = num_scales * LANES * form.scale_dtype.itemsize
        find_codes = self._finder(torch.int32, scale_bytes, form.bits)
        num_factors = form.factor_bytes(self.in_features) // (2 * LANES)
        find_factors = self._strip_rows(torch.float16, torch.arange(num_factors) * LANES)

        def look_up(rows: Tensor) -> Tensor:
            scales = find_scales(rows).view(len(rows), -1, num_scales)
            words = find_codes(rows).view(torch.uint8).view(len(rows), -1, 4 * form.bits)
            return Codes(
                format=form,
                codes=_unpacked_codes(words, form.bits, lanes=1).view(len(rows), -1),
                scales=scales[:, :, :groups].reshape(len(rows), -1),
                mins=scales[:, :, groups:].reshape(len(rows), -1) if form.has_min else None,
                factors=find_factors(rows) if form.has_factors else None,
            ).dequantised()

        return look_up

    def _finder(self, dtype: torch.dtype, first_byte: int, count: int) -> StripRows:
        """Return a finder of `count` numbers that every record has for an output."""
        records = torch.arange(self.in_features // BLOCK).unsqueeze(1) * self.format.record_bytes
        starts = records + self.format.factor_bytes(self.in_features) + first_byte
        places = (starts // dtype.itemsize + torch.arange(count) * LANES).view(-1)
        return self._strip_rows(dtype, places)

    def _strip_rows(self, dtype: torch.dtype, places: Tensor) -> StripRows:
        return StripRows(self.data.view(dtype), places)


def pack_in_parts(out_features: int, in_features: int, codes: Callable[[slice], Codes]) -> Panels:
    """Make panels of a weight that is unpacked some outputs at a time.

    Args:
        codes: returns the codes of a range of outputs.
    """
    parts = [pack(codes(some)) for some in chunks(out_features, in_features)]
    return Panels(
        format=parts[0].format,
        out_features=out_features,
        in_features=in_features,
        data=torch.cat([part.data for part in parts]),
    )


def chunks(out_features: int, in_features: int) -> list[slice]:
    """Divide outputs into slices of whole panels, of about a million weights each."""
    step = max(1, _CHUNK_WEIGHTS // max(1, in_features) // LANES) * LANES
    starts = range(0, out_features, step)
    return [slice(start, min(start + step, out_features)) for start in starts]


def pack(weight: Codes) -> Panels:
    """Arrange codes in panels."""
    form = weight.format
    rows, columns = weight.codes.shape
    padding = -rows % LANES
    parts = [_lanes_last(weight.scales, padding, BLOCK // form.group)]
    if weight.mins is not None:
        parts.append(_lanes_last(weight.mins, padding, BLOCK // form.group))
    # Flattened first, since a matrix of one row may have any stride.
    words = weight.codes.reshape(-1).view(torch.int32).view(rows, columns // 4)
    quads = _lanes_last(words, padding, _QUADS)
    codes = quads.view(torch.uint8)
    if form.bits == 8:
        parts.append(codes)
    else:
        parts.append(codes[:, :, : _QUADS // 2] & 15 | codes[:, :, _QUADS // 2 :] << 4)
        if form.bits > 4:
            parts.append(_packed_upper_bits(codes, form.bits - 4))
    data = torch.cat([part.flatten(2).view(torch.uint8) for part in parts], 2).flatten(1)
    if weight.factors is not None:
        factors = _lanes_last(weight.factors, padding, form.scales_of_group)
        data = torch.cat([factors.flatten(1).view(torch.uint8), data], 1)
    return Panels(format=form, out_features=rows, in_features=columns, data=data)


def unpack(panels: Panels) -> Codes:
    """The inverse of `pack`."""
    form = panels.format
    groups = BLOCK // form.group
    scale_bytes = groups * LANES * form.scale_dtype.itemsize
    ends = [scale_bytes * (i + 1) for i in range(form.scales_of_group)]
    factors, data = panels.data.tensor_split([form.factor_bytes(panels.in_features)], 1)
    parts = data.reshape(len(data), -1, form.record_bytes).tensor_split(ends, 2)
    scales = [
        _rows_first(part.contiguous().view(form.scale_dtype), panels, groups) for part in parts[:-1]
    ]
    quads = _unpacked_codes(parts[-1].contiguous(), form.bits, lanes=LANES).view(torch.int32)
    return Codes(
        format=form,
        codes=_rows_first(quads, panels, _QUADS).contiguous().view(torch.uint8),
        scales=scales[0],
        mins=scales[1] if form.has_min else None,
        factors=_factors(factors, panels) if form.has_factors else None,
    )


def _factors(data: Tensor, panels: Panels) -> Tensor:
    """Return the factors [N, inputs / 256 * 1 or 2] from the bytes before each panel's records."""
    per_record = panels.format.scales_of_group
    lanes = data.contiguous().view(torch.float16).view(len(data), -1, per_record * LANES)
    return _rows_first(lanes, panels, per_record)


def _unpacked_codes(data: Tensor, bits: int, *, lanes: int) -> Tensor:
    """Unpack [panels, records, bytes] → [panels, records, 8 quads * lanes * 4 inputs], for 16
    outputs or one."""
    if bits == 8:
        return data
    size = BLOCK * lanes // 2
    nibbles, rest = data[:, :, :size], data[:, :, size:]
    codes = torch.cat([nibbles & 15, nibbles >> 4], 2)
    if bits > 4:
        upper = bits - 4
        bytes_ = rest.view(*rest.shape[:2], upper, 1, 4 * lanes)
        codes |= ((bytes_ >> _places(upper) & (1 << upper) - 1) << 4).flatten(2)
    return codes


def _lanes_last(rows: Tensor, padding: int, per_record: int) -> Tensor:
    """Reorder [N, records * per_record] → [panels, records, per_record, 16]."""
    if padding:
        rows = torch.cat([rows, rows.new_zeros(padding, rows.shape[1])])
    shape = (-1, LANES, rows.shape[1] // per_record, per_record)
    return rows.view(shape).permute(0, 2, 3, 1).contiguous()


def _rows_first(lanes: Tensor, panels: Panels, per_record: int) -> Tensor:
    """The inverse of `_lanes_last`: [panels, records, per_record * 16] → [N, ...]."""
    shape = (lanes.shape[0], lanes.shape[1], per_record, LANES)
    rows = lanes.view(shape).permute(0, 3, 1, 2)
    return rows.reshape(len(lanes) * LANES, -1)[: panels.out_features]


def _packed_upper_bits(codes: Tensor, upper: int) -> Tensor:
    """Pack the bits above the nibbles, [..., 8 quads, 64] → [..., upper, 64], of 8 / upper quads
    per byte."""
    panels, records, quads, size = codes.shape
    bits = (codes >> 4).view(panels, records, upper, quads // upper, size) << _places(upper)
    return torch.sum(bits, -2, dtype=torch.uint8)


def _places(upper: int) -> Tensor:
    """Return [8 / upper, 1], the places of the upper bits of quads that share a byte."""
    return torch.arange(0, 8, upper, dtype=torch.uint8).unsqueeze(1)
