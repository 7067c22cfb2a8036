"""What is special to weights in panels: exact packing, sums that no other row can change."""

import functools
import random
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from kernels import PackedWeight, isa, linear_packed
from kernels.isa import Arithmetic
from kernels.linear_gguf.cases import random_weight
from kernels.linear_gguf.dequantize import dequantize
from kernels.linear_gguf.quant_type import GGUFType
from kernels.linear_panels import (
    cases,
    cpu,
    linear_panels,
    panels_from_floats,
    panels_from_gguf,
    reference,
)
from kernels.linear_panels.digit_activations import round_to_digits
from kernels.linear_panels.formats import E2M1, WIDE
from kernels.linear_panels.gguf import panels_by_torch
from kernels.linear_panels.int16_activations import round_to_int16
from kernels.linear_panels.lookup import row_lookup
from kernels.linear_panels.panels import BLOCK, Meaning, pack, unpack
from tests.helpers import draws
from tests.helpers.kernels.rungs import X86_RUNGS

TYPES = list(GGUFType)
FORMATS = [*(one.name for one in GGUFType), *WIDE]
DIGITS_IN_LONG_REGISTERS = ("x86-64-v4-vnni",)
LOWEST, *HIGHER = X86_RUNGS
OTHERS = [
    (LOWEST,),
    *((rung,) for rung in draws.some(HIGHER, 1)),
    (isa.chosen(), "-DTANDEM_EMULATE_MATRIX_TILES"),
]
"""One drawn rung, since building one takes long; `test_linear_packed.py` has all of them. The last
one has a matrix unit."""
ROWS = (1, 2, 3, 4, 5, 6, 7, 13, 16, 17, 31, 33, 60)
"""Numbers of rows for every way to multiply, and for all heights of tiles."""


def random_panels(name, outputs, inputs):
    """A weight of a format, and the numbers that it stands for, in fp32."""
    if name in WIDE:
        codes = cases.random_codes(WIDE[name], outputs, inputs)
        return pack(codes), codes.dequantised()
    weight = random_weight(GGUFType[name], outputs, inputs)
    return panels_from_gguf(weight, GGUFType[name]), dequantize(weight, GGUFType[name])


@pytest.mark.parametrize("quant_type", TYPES, ids=lambda one: one.name)
def test_packing_keeps_every_weight(quant_type):
    weight = random_weight(quant_type, 37, 512)
    kept = unpack(panels_from_gguf(weight, quant_type)).dequantised()
    wanted = gguf.quants.dequantize(weight.numpy(), gguf.GGMLQuantizationType(quant_type))
    np.testing.assert_allclose(kept.numpy(), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("quant_type", TYPES, ids=lambda one: one.name)
def test_packing_natively_gives_the_bytes_of_pytorch(quant_type):
    outputs, inputs = random.randint(1, 70), 256 * random.randint(1, 5)
    weight = random_weight(quant_type, outputs, inputs)
    # Rows may be a part of a wider tensor.
    wider = torch.cat([weight, weight[:, :7]], 1)
    found = panels_from_gguf(wider[:, : weight.shape[1]], quant_type)
    assert (found.out_features, found.in_features) == (outputs, inputs)
    assert torch.equal(found.data, panels_by_torch(weight, quant_type).data)


@pytest.mark.parametrize("form", WIDE.values(), ids=WIDE)
def test_packing_keeps_every_code(form):
    codes = cases.random_codes(form, 37, 96)
    found = unpack(pack(codes))
    assert torch.equal(found.codes, codes.codes)
    assert torch.equal(found.scales, codes.scales)
    assert (found.mins is None) is (codes.mins is None)
    assert codes.mins is None or torch.equal(found.mins, codes.mins)
    assert pack(codes).data.nbytes * 8 == 48 * 96 * form.bits_per_weight


@pytest.mark.parametrize("name", FORMATS)
def test_single_rows_are_found(name):
    # Of the last panel, most outputs are missing.
    panels, _ = random_panels(name, 33, 512)
    wanted = unpack(panels).dequantised()
    for look_up in (panels.row_lookup(), row_lookup(panels, torch.float32)):
        for rows in ([32], [0, 15, 16, 31, 32], random.choices(range(33), k=50)):
            rows = torch.tensor(rows)
            found = look_up(rows)
            assert torch.equal(found, wanted[rows])
            found.zero_()  # is nobody else's memory
        assert torch.equal(look_up(rows), wanted[rows])
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(row_lookup(panels, dtype)(rows), wanted[rows].to(dtype))


def test_rounding_keeps_eight_bits():
    weight = torch.randn(33, 96)
    weight[2, :32] = 0
    kept = unpack(panels_from_floats(weight)).dequantised()
    step = weight.unflatten(1, (3, 32)).abs().amax(2, keepdim=True) / 127
    # Half a step, and what rounding the scale to fp16 moves the ends of the range by.
    assert ((kept - weight).unflatten(1, (3, 32)).abs() <= 0.57 * step).all()


@pytest.mark.parametrize("name", FORMATS)
def test_pairs_of_bf16_give_the_bits_of_plain_weights(name):
    panels, numbers = random_panels(name, 75, random.choice([512, 4096]))
    if arithmetic_of(panels.format, torch.bfloat16) != Arithmetic.PAIRS:
        pytest.skip("packed weights are not rounded here")
    plain = PackedWeight.pack(numbers.bfloat16())
    for rows in ROWS:
        x = torch.randn(rows, panels.in_features).bfloat16()
        wanted = linear_packed(x, plain, fp32_out=True)
        assert torch.equal(linear_panels(x, panels, fp32_out=True), wanted), rows


def test_any_power_of_two_may_be_a_scale():
    """Most are added to exponents. Those of very small and of large numbers are multiplied by."""
    form = WIDE["e2m1"]
    codes = cases.random_codes(form, 75, 512)
    for low, high in ((0, 2), (0, 4), (1, 128), (2, 127), (120, 135), (0, 240)):
        scales = torch.randint(low, high + 1, codes.scales.shape).to(torch.uint8)
        weight = replace(codes, scales=scales.view(form.scale_dtype))
        panels, numbers = pack(weight), weight.dequantised()
        for rows in ROWS:
            x = torch.randn(rows, 512).bfloat16()
            found = linear_panels(x, panels, fp32_out=True)
            if arithmetic_of(form, x.dtype) == Arithmetic.PAIRS:
                plain = PackedWeight.pack(numbers.bfloat16())
                assert torch.equal(found, linear_packed(x, plain, fp32_out=True)), (low, rows)
            else:
                exact = numbers.double().T
                assert excess(found, x.double(), exact) < 1, (low, rows)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_no_weight_is_rounded_but_in_pairs(name, dtype):
    panels, numbers = random_panels(name, 75, random.choice([512, 4096]))
    if arithmetic_of(panels.format, dtype) == Arithmetic.PAIRS:
        pytest.skip("weights are rounded here")
    exact = numbers.double().T
    for rows in ROWS:
        x = torch.randn(rows, panels.in_features).to(dtype)
        found = linear_panels(x, panels, fp32_out=True)
        assert excess(found, as_multiplied(x, panels.format), exact) < 1, rows
    if WIDE.get(name) != E2M1:  # a power of two times a short number, which bf16 holds
        rounded = x.float() @ exact.bfloat16().float()
        assert excess(rounded, x.double(), exact) > 1, "weights in bf16 would be found out"


def arithmetic_of(form, dtype):
    if dtype == torch.float32:
        return Arithmetic.FP32
    integers = form.meaning <= Meaning.IQ4
    return isa.packed_arithmetic(bf16=dtype == torch.bfloat16, integers=integers)


def as_multiplied(x, form):
    """What the numbers of x are when they meet the weights."""
    match arithmetic_of(form, x.dtype):
        case Arithmetic.DIGITS:
            q, scale = round_to_digits(x, form.group)
        case Arithmetic.INT16:
            q, scale = round_to_int16(x, BLOCK)
        case _:
            return x.double()
    return (q * scale.double()).view(x.shape)


@pytest.mark.parametrize("quant_type", TYPES, ids=lambda one: one.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_of_any_size_are_rounded_block_by_block(quant_type, dtype):
    weight = random_weight(quant_type, 37, 512)
    panels = panels_from_gguf(weight, quant_type)
    if arithmetic_of(panels.format, dtype) not in (Arithmetic.DIGITS, Arithmetic.INT16):
        pytest.skip("activations are not integers here")
    exact = dequantize(weight, quant_type).double().T
    largest = 30 if dtype == torch.bfloat16 else 4
    for rows in ROWS:
        # Blocks from very small to very large ones, outliers in them, and blocks of zeros.
        exponents = torch.randint(-largest, largest + 1, (rows, 512 // BLOCK, 1))
        x = torch.randn(rows, 512 // BLOCK, BLOCK) * torch.exp2(exponents)
        x[:, 0, 7] *= 500
        x[:, 3] = 0
        x = x.view(rows, 512).to(dtype)
        found = linear_panels(x, panels, fp32_out=True)
        assert excess(found, as_multiplied(x, panels.format), exact) < 1, rows


def excess(found, x, exact):
    """The largest error, as a multiple of what sums in fp32 may have."""
    allowed = 2e-6 * (x.abs() @ exact.abs())
    return ((found - x @ exact).abs() / allowed.clamp(min=1e-30)).max()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("int8_activations", [False, True])
def test_a_row_is_bitwise_the_same_whatever_is_beside_it(name, dtype, int8_activations):
    panels, _ = random_panels(name, 75, 768)
    if int8_activations and not panels.format.takes_int8_activations:
        pytest.skip("not multiplied in integers")
    x = torch.randn(41, 768, dtype=dtype)
    multiply = functools.partial(linear_panels, panels=panels, int8_activations=int8_activations)
    together = multiply(x)
    order = torch.randperm(len(x))
    start = 0
    while start < len(x):
        rows = order[start : start + random.randrange(1, 20)]
        assert torch.equal(multiply(x[rows]), together[rows])
        start += len(rows)


def differing_rows(multiply, x):
    """Rows whose result has other bits alone than among all."""
    together = multiply(x)
    return [i for i in range(len(x)) if not torch.equal(multiply(x[i : i + 1])[0], together[i])]


def test_a_product_that_looks_at_the_rows_beside_it_is_found():
    panels = panels_from_gguf(random_weight(GGUFType.Q4_0, 75, 768), GGUFType.Q4_0)
    multiply = functools.partial(linear_panels, panels=panels)
    x = torch.randn(5, 768, dtype=torch.bfloat16)
    assert differing_rows(multiply, x) == []

    def rounding_together(x):
        """Round as if activations were quantised with one scale for all rows."""
        step = x.float().abs().max() / 127
        return multiply(((x.float() / step).round() * step).to(x.dtype))

    assert differing_rows(rounding_together, x)


@pytest.mark.parametrize("int8_activations", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [3, 20])
def test_what_is_not_finite_shows(rows, dtype, int8_activations):
    panels = panels_from_gguf(random_weight(GGUFType.Q4_0, 48, 64), GGUFType.Q4_0)
    x = torch.randn(rows, 64).to(dtype)
    x[0, 5], x[2, 60] = torch.nan, torch.inf
    finite = linear_panels(x, panels, int8_activations=int8_activations).isfinite()
    assert finite.any(1).tolist() == [False, True, False] + [True] * (rows - 3)


@pytest.mark.slow
@pytest.mark.drawn(1)
@pytest.mark.parametrize("build", OTHERS, ids=" ".join)
def test_other_processors_get_the_same(build, run_build_of):
    """The same integers, so the same bits. In floats a rung rounds as its instructions do, but
    every row by itself. Integers of digits are exact, too, whatever the processor."""
    inputs = []
    for name in FORMATS:
        panels, _ = random_panels(name, 37, 512)
        for rows in (1, 3, 11, 20):
            inputs.append((torch.randn(rows, 512).to(torch.bfloat16), panels))
    with_integers = [one for one in inputs if one[1].format.takes_int8_activations]
    here = [cpu.linear_panels(*one, int8_activations=True) for one in with_integers]
    floats = [reference.linear_panels(*one) for one in inputs]
    has_digits = isa.packed_arithmetic(bf16=True, integers=True) == Arithmetic.DIGITS
    same = has_digits and build == DIGITS_IN_LONG_REGISTERS
    of_digits = [cpu.linear_panels(*one) for one in with_integers] if same else []
    run_build_of(cpu, *build)
    for wanted, one in zip(here, with_integers, strict=True):
        assert torch.equal(cpu.linear_panels(*one, int8_activations=True), wanted)
    for wanted, one in zip(floats, inputs, strict=True):
        # Rounding weights or activations, as some do and some do not, moves what is nearly zero.
        torch.testing.assert_close(cpu.linear_panels(*one), wanted, rtol=1.6e-2, atol=4e-2)
        assert differing_rows(functools.partial(cpu.linear_panels, panels=one[1]), one[0]) == []
    for wanted, one in zip(of_digits, with_integers, strict=same):
        assert torch.equal(cpu.linear_panels(*one), wanted)


def test_numbers_of_few_bits_are_not_multiplied_in_integers():
    """The reference does, where it is asked."""
    panels = pack(cases.random_codes(WIDE["nf4"], 20, 64))
    x = torch.randn(3, 64)
    assert not cpu.supports(x, panels, int8_activations=True)
    assert cpu.supports(x, panels) == cpu.supports(x, panels_from_floats(torch.randn(20, 64)))
    found = linear_panels(x, panels, int8_activations=True)
    exact = linear_panels(x, panels)
    assert 0 < (found - exact).abs().max() < 0.1
