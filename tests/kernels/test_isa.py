"""One instruction set for all C++ operations: chosen, told to the compiler, refused where it is not
there; and the lowest one is right."""

import itertools
import random
import subprocess
from typing import get_args

import pytest
import torch

import kernels
import kernels.__main__ as kernels_main
from engine.contract.worker_settings import CpuIsa
from engine.errors import ModelLoadError
from engine.runtime.device import choose_cpu_isa
from kernels import building, compilers, isa, machine, native
from kernels.isa import Arithmetic
from kernels.tools.check import check
from tests.helpers.kernels.rungs import HAS_RUNGS, X86_RUNGS

FP32, PAIRS, INT16, DIGITS = Arithmetic
LOWEST = next(iter(isa.RUNGS))
HASWELL = isa.RUNGS["x86-64-v3"]
ON_CPU = [op for op in kernels.OPS if "cpu" in op.implementations()]


@pytest.fixture
def processor(monkeypatch):
    """`processor(features, maker)`: this processor has no others, and is of this maker."""
    monkeypatch.setattr(isa, "_chosen", isa.NATIVE)

    def set_features(features, maker="GenuineIntel"):
        monkeypatch.setattr(isa, "features", lambda: frozenset(features))
        monkeypatch.setattr(isa, "cpuinfo", lambda: {"vendor_id": maker})

    return set_features


def test_the_setting_offers_what_there_is():
    assert get_args(CpuIsa) == ("auto", isa.NATIVE, *isa.RUNGS)


@pytest.mark.parametrize(
    ("wanted", "march"),
    [("auto", "native"), ("native", "native"), ("x86-64-v3", "x86-64-v3")],
)
def test_the_compiler_is_told(processor, wanted, march, monkeypatch):
    monkeypatch.setattr(native, "missing", lambda: None)  # nor is anything compiled here
    processor(HASWELL)
    targets = {building.library_file("g++")}
    isa.choose(wanted)
    assert building.flags()[0] == f"-march={march}"
    assert f"-march={march}" in machine.facts()["C++"]
    targets.add(building.library_file("g++"))
    assert len(targets) == 1 + (march != "native"), "each instruction set has files of its own"


def test_what_the_processor_lacks_is_refused(processor):
    processor(HASWELL)
    words = r"^cpu_isa x86-64-v4 needs avx512f, .*, which this processor does not have; use auto$"
    with pytest.raises(ModelLoadError, match=words):
        choose_cpu_isa("x86-64-v4")
    assert isa.chosen() == isa.NATIVE


@pytest.mark.parametrize(
    ("wanted", "without"),
    [
        ("auto", "x86-64-v4-bf16"),
        ("native", "x86-64-v4-bf16"),
        ("x86-64-v4-amx", "x86-64-v4-bf16"),
        ("x86-64-v4-vnni", "x86-64-v4-vnni"),
    ],
)
def test_latency_leaves_the_matrix_unit_unused(processor, wanted, without):
    processor(isa.RUNGS["x86-64-v4-amx"])
    choose_cpu_isa(wanted, "latency")
    assert isa.chosen() == without
    choose_cpu_isa(wanted, "throughput")
    assert isa.chosen() == ("native" if wanted == "auto" else wanted)
    assert isa.multiplies_tiles() == (wanted != "x86-64-v4-vnni")


def test_without_a_matrix_unit_latency_changes_nothing(processor):
    processor(HASWELL)
    choose_cpu_isa("auto", "latency")
    assert isa.chosen() == isa.NATIVE


def test_a_rung_is_what_the_compiler_says(monkeypatch):
    """A name that compilers define for each feature, of those that /proc/cpuinfo has; and none for
    those that only other rungs have."""
    compiler = compilers.find()
    if compiler is None or not HAS_RUNGS:
        pytest.skip("needs a C++ compiler for x86")
    names = {"abm": "LZCNT", "bmi1": "BMI"}
    beyond = {"avx_vnni": "AVXVNNI", "avx512_vnni": "AVX512VNNI", "avx512_bf16": "AVX512BF16"}
    names |= beyond | {"amx_tile": "AMX_TILE", "amx_bf16": "AMX_BF16"}
    for rung in X86_RUNGS:
        features = isa.RUNGS[rung]
        monkeypatch.setattr(isa, "_chosen", rung)
        command = [compiler, *isa.compiler_flags(), "-dM", "-E", "-x", "c++", "/dev/null"]
        macros = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for feature in {*features, *names}:
            defined = f"#define __{names.get(feature, feature).upper()}__ 1" in macros
            assert defined == (feature in features), (rung, feature)


@pytest.mark.parametrize(
    ("rung", "has_it"), [("x86-64-v3", False), ("x86-64-v4-vnni", False), ("x86-64-v4-bf16", True)]
)
def test_a_rung_says_whether_bf16_is_multiplied(rung, has_it, processor):
    processor(isa.RUNGS[rung])
    assert isa.multiplies_bf16() == has_it, "native: what the processor has"
    processor(isa.RUNGS["x86-64-v4-bf16"])
    isa.choose(rung)
    assert isa.multiplies_bf16() == has_it


@pytest.mark.parametrize(
    ("rung", "maker", "bf16", "fp16", "bf16_by_floats"),
    [
        ("x86-64-v3", "AuthenticAMD", INT16, INT16, FP32),
        ("x86-64-v3-vnni", "GenuineIntel", DIGITS, INT16, FP32),
        ("x86-64-v4", "AuthenticAMD", FP32, FP32, FP32),
        ("x86-64-v4-vnni", "AuthenticAMD", DIGITS, INT16, FP32),
        ("x86-64-v4-bf16", "AuthenticAMD", DIGITS, INT16, PAIRS),
        ("x86-64-v4-bf16", "GenuineIntel", DIGITS, INT16, FP32),
        ("x86-64-v4-amx", "GenuineIntel", PAIRS, INT16, PAIRS),
    ],
)
def test_a_rung_says_how_weights_of_few_bits_are_multiplied(
    rung, maker, bf16, fp16, bf16_by_floats, processor
):
    processor(isa.RUNGS[rung], maker)
    assert isa.packed_arithmetic(bf16=True, integers=True) == bf16
    assert isa.packed_arithmetic(bf16=False, integers=True) == fp16
    assert isa.packed_arithmetic(bf16=True, integers=False) == bf16_by_floats
    assert isa.packed_arithmetic(bf16=False, integers=False) == FP32


@pytest.mark.slow
def test_the_table_of_kernels_says_which_is_used(run_build, monkeypatch, capsys):
    run_build(LOWEST)
    monkeypatch.setattr(isa, "_chosen", isa.NATIVE)
    monkeypatch.setattr(kernels_main, "product_times", lambda types, dtype: {})
    monkeypatch.setattr(kernels, "OPS", [kernels.rms_norm])
    assert kernels_main.main(["--cpu-isa", LOWEST]) == 0
    assert isa.chosen() == LOWEST
    assert f"{LOWEST}: -march={LOWEST} " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("op", ON_CPU, ids=lambda op: op.name)
def test_the_lowest_rung_equals_the_reference(op, run_build):
    run_build(LOWEST)
    # Cases take turns in which of the short types they have, from a drawn one on.
    turns = itertools.cycle(random.sample([torch.bfloat16, torch.float16], 2))
    for case in op.cases.CASES:
        for dtype in (torch.float32, next(turns)):
            check(op, "cpu", case, dtype, torch.device("cpu"))
